"""A plain forward and backward, alone (not private) or a sample at a time and clipped."""

from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from paramscope.dpsgd.losses import (
    add_head_gradient,
    check_samples,
    head_chunks,
    new_losses,
    sample_losses,
)
from paramscope.dpsgd.parts import LOGITS, NORMS, Accounts
from paramscope.dpsgd.privacy import Clipped, clip_factors
from paramscope.dpsgd.trained import check_private
from paramscope.errors import RequestError, otherwise
from paramscope.models.blocks import checkpointed
from paramscope.models.heads import last_hidden, linear_head, without_head
from paramscope.models.sequences import Sequences
from paramscope.persample.precision import wide
from paramscope.tracker import GRADIENTS


@dataclass
class Pass:
    """A forward and a backward of the sum of the samples' losses.

    Attributes:
        model: a causal language model of transformers.
        accounts: who is told what tensors are for.
        chunk_tokens: tokens whose logits exist at a time; 0: all of them.
        checkpoint: keep blocks' inputs alone, and run the blocks again in the backward.
    """

    model: PreTrainedModel
    accounts: Accounts
    chunk_tokens: int = 0
    checkpoint: bool = False
    _stack: ExitStack | None = None
    _output: Tensor = field(default_factory=lambda: torch.empty(0))
    _cotangent: Tensor = field(default_factory=lambda: torch.empty(0))
    _head: list[tuple[nn.Parameter, Tensor]] = field(default_factory=list)

    def forward(self, batch: Sequences) -> Tensor:
        """The samples' losses, [B]; with chunks, the head's own backward is done with it.

        Raises:
            RequestError: there are no samples.
        """
        check_samples(batch)
        self._head.clear()
        if self._stack is not None:  # of a step that was not finished
            self._stack.close()
            self._stack = None
        with ExitStack() as stack:
            if self.checkpoint:
                stack.enter_context(checkpointed(self.model))
            if self.chunk_tokens:
                losses = self._in_chunks(batch)
            else:
                self._output = losses = sample_losses(self.model, batch, self.accounts)
                self._cotangent = torch.ones_like(losses)
            self._stack = stack.pop_all()
        return losses.detach()

    def backward(self, scale: float = 1.0) -> None:
        """Add `scale` times the sum of the samples' gradients to `.grad`.

        Raises:
            RequestError: there was no forward.
        """
        if self._stack is None:
            raise RequestError("backward came without a forward")
        with self._stack:
            for parameter, total in self._head:
                if parameter.grad is None:
                    parameter.grad = total.mul_(scale)
                else:
                    parameter.grad.add_(total, alpha=scale)
            output, cotangent = self._output, self._cotangent
            self._output = self._cotangent = torch.empty(0)
            self._head.clear()
            if output.requires_grad:
                torch.autograd.backward([output], [cotangent.mul_(scale)])
        self._stack = None

    def _in_chunks(self, batch: Sequences) -> Tensor:
        with otherwise("leave the chunks out"):
            with without_head(self.model):
                self._output = last_hidden(self.model, batch.ids)
            head, hidden = linear_head(self.model), self._output.detach()
        wanted = {n: p for n, p in head.named_parameters() if p.requires_grad}
        with self.accounts.scope(LOGITS):
            losses, self._cotangent = new_losses(hidden), torch.empty_like(hidden)
            sums = {suffix: torch.zeros_like(parameter) for suffix, parameter in wanted.items()}
            self.accounts.register(sums.values(), GRADIENTS)
            for chunk in head_chunks(
                hidden, head, batch, self.chunk_tokens, losses, self._cotangent
            ):
                for suffix, total in sums.items():
                    add_head_gradient(total, suffix, chunk, fresh=False)
        self._head = [(wanted[suffix], total) for suffix, total in sums.items()]
        return losses


@dataclass
class Vanilla:
    """The gradient of the samples' mean loss: what private training is set against."""

    through: Pass

    def __post_init__(self) -> None:
        self._losses = torch.empty(0)

    def forward(self, batch: Sequences) -> None:
        """Run the model on a batch."""
        self._losses = self.through.forward(batch)

    def backward(self) -> None:
        """Add the gradient of the mean loss to `.grad`."""
        self.through.backward(1 / max(1, len(self._losses)))


@dataclass
class Micro:
    """Clipped sums of per-sample gradients, a sample at a time: exact for any model.

    Attributes:
        through: what runs one sample.
        max_norm: C.
    """

    through: Pass
    max_norm: float

    def __post_init__(self) -> None:
        self.trained = check_private(self.through.model)
        self._samples: list[Sequences] = []
        self._losses: list[Tensor] = []

    def forward(self, batch: Sequences) -> None:
        """Run the model on the first sample; the others follow in `backward`.

        Raises:
            RequestError: there are no samples.
        """
        check_samples(batch)
        self._samples = [batch[s : s + 1] for s in range(len(batch))]
        self._losses = [self.through.forward(self._samples.pop(0))]

    def backward(self) -> Clipped:
        """Go back a sample at a time, and add the clipped sum to `.grad`.

        Raises:
            RequestError: there was no forward.
        """
        if not self._losses:
            raise RequestError("backward came without a forward")
        sums = [parameter.grad for parameter in self.trained]
        found: list[Tensor] = []
        accounts = self.through.accounts
        while True:
            for parameter in self.trained:
                parameter.grad = None
            self.through.backward()
            gradients = [p.grad for p in self.trained]
            with accounts.scope(NORMS):
                squared = [
                    torch.linalg.vector_norm(g, dtype=wide(g[:0]).dtype).square()
                    for g in gradients
                    if g is not None
                ]
                found.append(torch.stack(squared).sum())
            factor = clip_factors(found[-1], self.max_norm)
            sums = [
                _added(total, gradient, factor)
                for total, gradient in zip(sums, gradients, strict=True)
            ]
            if not self._samples:
                break
            del gradients
            self._losses.append(self.through.forward(self._samples.pop(0)))
        for parameter, total in zip(self.trained, sums, strict=True):
            parameter.grad = total
        squared_norms = torch.stack(found)
        losses, self._losses = torch.cat(self._losses), []
        return Clipped(losses, squared_norms.sqrt(), clip_factors(squared_norms, self.max_norm))


def _added(total: Tensor | None, gradient: Tensor | None, factor: Tensor) -> Tensor | None:
    """total + factor · gradient, in place of one of them."""
    if gradient is None or _is_dropped(factor):
        return total
    factor = factor.to(gradient.dtype)
    return gradient.mul_(factor) if total is None else total.addcmul_(gradient, factor)


def _is_dropped(factor: Tensor) -> bool:
    return not isinstance(factor, torch._subclasses.FakeTensor) and not float(factor)
