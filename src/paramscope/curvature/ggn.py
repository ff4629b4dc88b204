"""Diagonal of the generalised Gauss–Newton matrix by random draws, a few gradients each.

For the mean negative log-likelihood over W predicted tokens, G = Σ_t J_tᵀ (diag p_t − p_t p_tᵀ)
J_t / W with J_t the logits' Jacobian. A draw takes e_t = ±√p_t with independent signs and
r_t = (e_t − p_t Σe_t)/√W, whose covariance is exactly the middle factor over W; the square of
each sequence's own gradient g_s = Σ_t J_tᵀ r_t has the mean diag G_s, and their sum diag G.
Squaring by sequence, not by batch, is what keeps the noise at about √(2/(S·k)) for k draws.

Three parts need less chance. The head's own term Σ p(1 − p)h²/W is exact. With a tied head
the embedding's draw is exact up to its cross term with the head's, which is drawn. And a
layer whose output at a token reaches no other token's logits takes its squares token by
token: the left-out products have mean zero.

Sources: Schraudolph 2002 for G; Bekas et al. 2007 for diagonals from probes; Dangel et al.
2020 (arXiv:1912.10985) for diagonals layer by layer from sampled output gradients. For the
softmax cross-entropy G is the Fisher information (Martens 2020, arXiv:1412.1193).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from paramscope.artifacts.digest import seed_of
from paramscope.errors import RequestError
from paramscope.models.load import logits
from paramscope.models.sequences import Sequences
from paramscope.persample.capture import capture
from paramscope.persample.layers import check_known, squared_sums
from paramscope.persample.precision import accumulator, wide
from paramscope.persample.tied_head import cross_term, softmax_ggn


def ggn_draws(
    model: PreTrainedModel, sequences: Sequences, draws: range, *, seed: int, batch_size: int
) -> list[dict[str, Tensor]]:
    """diag G over `sequences`, once a draw: by parameter name, each of its parameter's shape.

    A draw's value hangs on (seed, sequence names, draw number) alone: never on the batch size
    or on which other draws are made with it. Draws share their forwards; each holds one
    accumulator of the model's size, in float32 at least.

    Raises:
        UnknownLayerError: the model has a layer whose per-sample gradients are not known.
        RequestError: its head is not a linear layer on the hidden state, or it shares a
            parameter in a way other than a tied head.
    """
    engine = _Engine(model, sequences)
    totals = [engine.zeros() for _ in draws]
    progress = tqdm(sequences.batches(batch_size), total=-(-len(sequences) // batch_size))
    progress.set_description(f"GGN draws {draws.start}-{draws.stop - 1}")
    for batch in progress:
        engine.add(batch, draws, totals, seed)
    return totals


def local_layers(model: PreTrainedModel, sequence: Tensor) -> set[str]:
    """Names of layers whose output at a token reaches no other token's logits.

    Found by one backward from the last token of `sequence` [T]: where no gradient arrives at
    any earlier token, none can, since the path through attention is the same for all.
    """
    local: set[str] = set()

    def receive(name: str, module: nn.Module, a: Tensor, g: Tensor) -> None:
        if not g[:, :-1].any():
            local.add(name)

    with capture(model, (1, len(sequence)), receive):
        z = logits(model, sequence[None])
        cotangent = torch.zeros_like(z)
        generator = torch.Generator().manual_seed(0)
        cotangent[:, -1] = torch.randn(z.shape[-1], generator=generator).to(z)
        z.backward(cotangent)
    return local


class _Engine:
    """What all batches share: who owns which parameter, the head, the local layers."""

    def __init__(self, model: PreTrainedModel, sequences: Sequences) -> None:
        check_known(model)
        self.model = model
        self.predicted = sequences.n_predicted
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.head = model.get_output_embeddings()
        if not isinstance(self.head, nn.Linear):
            raise RequestError(
                f"the head is {type(self.head).__name__}, but `ggn` needs a linear one"
            )
        self.embedding = model.get_input_embeddings()
        self.tied = self.embedding.weight is self.head.weight
        self._check_sharing()
        longest = int(sequences.lengths.argmax())
        row = sequences.ids[longest, : int(sequences.lengths[longest])]
        self.local = local_layers(model, row)

    def _check_sharing(self) -> None:
        owners: dict[int, str] = {}
        for name, module in self.model.named_modules():
            for parameter in module.parameters(recurse=False):
                other = owners.setdefault(id(parameter), name)
                if other != name and not (module is self.head and self.tied):
                    raise RequestError(
                        f"{name} and {other} share a parameter; `ggn` handles a tied head only"
                    )

    def zeros(self) -> dict[str, Tensor]:
        return {name: accumulator(p, *p.shape) for name, p in self.model.named_parameters()}

    def add(
        self, batch: Sequences, draws: range, totals: list[dict[str, Tensor]], seed: int
    ) -> None:
        """Add the batch's share of every draw to its total."""
        shape = (len(batch), batch.ids.shape[1])
        current: dict[str, Tensor] = {}
        hidden: list[Tensor] = []
        r = torch.empty(0)

        def receive(name: str, module: nn.Module, a: Tensor, g: Tensor) -> None:
            if module is self.head:
                return  # exact, below
            for suffix, value in squared_sums(name, module, a, g, name in self.local).items():
                current[self.names[id(getattr(module, suffix))]] += value
            if self.tied and module is self.embedding:
                current[self.names[id(module.weight)]] += cross_term(a, g, hidden[0], r)

        with capture(self.model, shape, receive), _head_input(self.head, hidden):
            z = logits(self.model, batch.ids)
            if z.data_ptr() != hidden[1].data_ptr():
                raise RequestError("the logits are not the head's own output: `ggn` can't do that")
            p = wide(z.detach()).softmax(-1)
            p[:, -1] = 0
            p[:, :-1] *= batch.predicted[..., None]
            self._add_head(p, hidden[0], totals)
            for i, (draw, total) in enumerate(zip(draws, totals, strict=True)):
                current = total
                r = _residual(p, batch, draw, seed, self.predicted)
                z.backward(r.to(z.dtype), retain_graph=i + 1 < len(totals))

    def _add_head(self, p: Tensor, h: Tensor, totals: list[dict[str, Tensor]]) -> None:
        weight = softmax_ggn(p, h) / self.predicted
        bias = (p - p.square()).sum((0, 1)) / self.predicted
        for total in totals:
            total[self.names[id(self.head.weight)]] += weight
            if self.head.bias is not None:
                total[self.names[id(self.head.bias)]] += bias


def _residual(p: Tensor, batch: Sequences, draw: int, seed: int, predicted: int) -> Tensor:
    """r = (e − p Σe)/√W with e = ±√p, [B, T, V]; 0 where nothing is predicted."""
    e = p.sqrt()
    for row, name, length in zip(e, batch.names, batch.lengths.tolist(), strict=True):
        generator = torch.Generator().manual_seed(seed_of(seed, "ggn", name, draw))
        shape = (length - 1, p.shape[-1])
        signs = torch.randint(0, 2, shape, generator=generator, dtype=torch.int8)
        row[: length - 1] *= (2 * signs - 1).to(p.device)
    return (e - p * e.sum(-1, keepdim=True)).div_(math.sqrt(predicted))


@contextmanager
def _head_input(head: nn.Linear, hidden: list[Tensor]) -> Iterator[None]:
    """Keep the head's input and output of the forward in `hidden`."""

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        hidden[:] = [args[0].detach(), output.detach()]

    hook: Callable[..., None] = keep
    handle = head.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
