"""Clipping in two backwards through one graph: norms first, then the reweighted loss.

`ghost` takes norms from whole Gram matrices over tokens, as Li et al. 2022 (arXiv:2110.05679);
`flash` from tiles of them or from the gradient itself, whichever takes fewer operations.
"""

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from paramscope.dpsgd.losses import sample_losses
from paramscope.dpsgd.parts import NORMS, STASH, Accounts
from paramscope.dpsgd.privacy import Clipped, clip_factors, finite_samples
from paramscope.dpsgd.trained import REMEDY, trained_layers
from paramscope.errors import RequestError, otherwise
from paramscope.models.blocks import checkpointed
from paramscope.models.sequences import Sequences
from paramscope.persample import answers, tied_head
from paramscope.persample.capture import Captured, capture
from paramscope.persample.linear import NormRoute


@dataclass
class TwoBackwards:
    """Clipped sums of per-sample gradients: a backward for the norms, one for the sum.

    Attributes:
        model: a causal language model of transformers as it is.
        max_norm: C.
        accounts: who is told what tensors are for.
        route: the way to linear layers' norms; None: the one of fewest operations.
        checkpoint: keep blocks' inputs alone; both backwards then run the blocks again.
    """

    model: PreTrainedModel
    max_norm: float
    accounts: Accounts
    route: NormRoute | None = None
    checkpoint: bool = False

    def __post_init__(self) -> None:
        with otherwise(REMEDY):
            trained = trained_layers(self.model)
        self.layers = dict(trained.layers)
        if trained.head_wanted:
            self.layers[trained.head_name] = trained.head_wanted
        self.head_name, self.tied = trained.head_name, trained.tied
        self._pending: tuple[ExitStack, Captured, Tensor] | None = None

    def forward(self, batch: Sequences) -> None:
        """Run the model on a batch.

        Raises:
            RequestError: there are no samples.
        """
        if self._pending is not None:  # of a step that was not finished
            self._pending[0].close()
            self._pending = None
        with ExitStack() as stack:
            stack.enter_context(otherwise(REMEDY))
            if self.checkpoint:
                stack.enter_context(checkpointed(self.model))
            B, T = batch.ids.shape
            captured = stack.enter_context(
                capture(self.model, (B, T), owners=self.layers, frozen=False)
            )
            losses = sample_losses(self.model, batch, self.accounts)
            self._pending = stack.pop_all(), captured, losses

    def backward(self) -> Clipped:
        """Go back twice, and add the clipped sum to the `.grad` of the trained parameters.

        Raises:
            RequestError: there was no forward; or a sample's gradient is not finite, which a
                weight of 0 in the loss does not undo.
        """
        if self._pending is None:
            raise RequestError("backward came without a forward")
        (stack, captured, losses), self._pending = self._pending, None
        with stack:
            squared = self._norms(captured, losses)
            if finite_samples(squared) is not None:
                raise RequestError(
                    "a sample's gradient is not finite, and two backwards can't leave it out; "
                    "method bk or micro would do"
                )
            factors = clip_factors(squared, self.max_norm)
            captured.plain_backward(losses, factors.to(losses.dtype))
        return Clipped(losses.detach(), squared.sqrt(), factors)

    def _norms(self, captured: Captured, losses: Tensor) -> Tensor:
        found: list[Tensor] = []
        head: list[tuple[Tensor, Tensor]] = []  # kept for the cross term

        def receive(name: str, module: nn.Module, a: Tensor, g: Tensor) -> None:
            with self.accounts.scope(STASH):
                norms = answers.squared_norms(name, module, a, g, route=self.route)
                found.extend(norms[suffix] for suffix in self.layers[name])
                if self.tied is not None and name == self.head_name:
                    head.append((a, g))
                if name == self.tied and head:
                    assert isinstance(module, nn.Embedding)
                    h, r = head.pop()
                    found.append(tied_head.cross_norms(a, g, h, r, module.padding_idx))

        captured.backward(losses, torch.ones_like(losses), receive, retain_graph=True)
        with self.accounts.scope(NORMS):
            return torch.stack(found).sum(0).clamp_(min=0)
