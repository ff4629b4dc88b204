"""Passes over the text for draws of the Gauss–Newton matrix: forward, sampled labels, backward."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from paramscope.curvature.labels import HeadDraws, head_draws
from paramscope.errors import otherwise
from paramscope.models.heads import linear_head, without_head
from paramscope.models.sequences import Sequences
from paramscope.persample.capture import capture
from paramscope.persample.graphs import Forward, Graph, Take, forward
from paramscope.persample.layers import check_known
from paramscope.persample.sharing import tied_embedding

REMEDY = "method hutchinson would do"  # for a model that draws can't be taken of


class Passes:
    """A model and a text, ready for draws.

    Attributes:
        model: the model.
        names: a parameter's name, by its `id`.
        head: the head.
        embedding: the token embedding.
        tied: whether the head is the embedding's transpose.
        local: names of the layers whose output at a token reaches no other token's logits; found
            by a look at the model unless they are given.

    Raises:
        UnsupportedModelError: the model has a layer whose per-sample gradients are not known,
            its head is not a linear layer on the hidden state, or it shares a parameter in a
            way other than a tied head.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sequences: Sequences,
        batch_size: int,
        graph: Graph = "whole",
        local: Collection[str] | None = None,
    ) -> None:
        with otherwise(REMEDY):
            self.head = linear_head(model)
            check_known(model)
            self.tied = tied_embedding(model, self.head) is not None
        self.model, self.graph, self.batch_size = model, graph, batch_size
        self.sequences = sequences.by_length()
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.embedding = model.get_input_embeddings()
        if local is None:
            first = self.sequences.ids[0, : self.sequences.lengths[0]]
            with otherwise(REMEDY):
                local = local_layers(model, first, graph)
        self.local = local

    def batches(self, draws: range, seed: int, what: str) -> Iterator["Drawn"]:
        """The text batch by batch, the longest sequences first, each with its draws."""
        total = -(-len(self.sequences) // self.batch_size)
        for batch in tqdm(self.sequences.batches(self.batch_size), what, total):
            shape = (len(batch), batch.ids.shape[1])
            with (
                otherwise(REMEDY),
                without_head(self.model),
                capture(self.model, shape) as captured,
            ):
                passed = forward(self.model, batch.ids, captured, self.graph)
                h = passed.hidden.detach()
                head = head_draws(self.head, h, batch, draws, seed, own=self.tied)
                yield Drawn(batch, h, head, passed)


@dataclass(frozen=True)
class Drawn:
    """A batch after its forward, with all its draws at the head.

    Attributes:
        batch: its sequences.
        h: the last hidden state, [B, T, d].
        head: the draws' share of the head.
        forward: the way back.
    """

    batch: Sequences
    h: Tensor
    head: HeadDraws
    forward: Forward

    def backward(self, take: Take) -> None:
        """Go back once a draw: `take(k, name, module, a, g)` for each layer of the k-th draw."""
        self.forward.back(self.head.cotangents, take)


def local_layers(model: PreTrainedModel, sequence: Tensor, graph: Graph = "whole") -> set[str]:
    """Names of layers whose output at a token reaches no other token's logits.

    Found by one backward from the last token of `sequence` [T]: where no gradient arrives at
    any earlier token, none can, since the path through attention is the same for all.
    """
    local: set[str] = set()

    def take(k: int, name: str, module: nn.Module, a: Tensor, g: Tensor) -> None:
        if not g[:, :-1].any():
            local.add(name)

    with without_head(model), capture(model, (1, len(sequence))) as captured:
        passed = forward(model, sequence[None], captured, graph)
        cotangent = torch.zeros_like(passed.hidden)
        generator = torch.Generator().manual_seed(0)
        cotangent[:, -1] = torch.randn(cotangent.shape[-1], generator=generator).to(cotangent)
        passed.back([cotangent], take)
    return local
