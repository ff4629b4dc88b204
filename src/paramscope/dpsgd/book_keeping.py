"""Clipping in one backward: what the norms were found from also gives the clipped sum.

The backward makes the gradients of layers' outputs alone. What each layer needs is kept from it
in a stash; once all norms are known, each stash is weighted, written to `.grad` and freed, layer
by layer. With `by_layer` each layer is clipped as soon as the backward has passed it, and nothing
is kept.

Sources: Bu et al. 2023 (arXiv:2210.00038) for the single backward; He et al. 2023
(arXiv:2212.01539) for clipping by layer inside of it.
"""

import math
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from paramscope.dpsgd.losses import add_head_gradient, check_samples, head_chunks, new_losses
from paramscope.dpsgd.parts import LOGITS, NORMS, STASH, Accounts
from paramscope.dpsgd.plain import Micro, Pass
from paramscope.dpsgd.privacy import Clipped, clip_factors, finite_samples
from paramscope.dpsgd.stashes import Gradients, Pairs, Stash, TiedHead, stash
from paramscope.dpsgd.trained import REMEDY, trained_layers
from paramscope.errors import RequestError, otherwise
from paramscope.models.blocks import checkpointed
from paramscope.models.heads import last_hidden, without_head
from paramscope.models.sequences import Sequences
from paramscope.persample.capture import Captured, capture
from paramscope.persample.linear import prefers_gradients

HeadKept = dict[str, Tensor] | Pairs  # per-sample gradients, or what they follow from


@dataclass
class _Forward:
    """A forward that has not been gone back from.

    Attributes:
        stack: what ends with it.
        captured: what goes back.
        hidden: the head's input, with its graph.
        gradient: the samples' losses' gradient by it.
        losses: of the samples, [B].
        head: what is kept of the head, if it is trained.
    """

    stack: ExitStack
    captured: Captured
    hidden: Tensor
    gradient: Tensor
    losses: Tensor
    head: HeadKept | None


@dataclass
class BookKeeping:
    """Clipped sums of per-sample gradients by a single backward.

    Attributes:
        model: a causal language model of transformers as it is.
        max_norm: C.
        accounts: who is told what tensors are for.
        chunk_tokens: tokens whose logits exist at a time; 0: a sample's.
        checkpoint: keep blocks' inputs alone, and run the blocks again in the backward.
        by_layer: clip each layer's part of a gradient to C / √layers by itself: the whole is
            then at most C, too.
    """

    model: PreTrainedModel
    max_norm: float
    accounts: Accounts
    chunk_tokens: int = 0
    checkpoint: bool = False
    by_layer: bool = False
    _alone: Micro | None = None
    _pending: _Forward | None = None
    _stashes: list[Stash] = field(default_factory=list)
    _squared: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        with otherwise(REMEDY):
            self.trained = trained_layers(self.model)
        groups = len(self.trained.layers) + bool(self.trained.head_wanted)
        self.groups = groups - (self.trained.tied is not None)
        self.parameters = dict(self.model.named_parameters(remove_duplicate=False))

    def forward(self, batch: Sequences) -> None:
        """Run the model on a batch, the head's own backward included.

        The gradient of a sample that is alone is the plain one, so that is what it takes.

        Raises:
            RequestError: there are no samples.
        """
        check_samples(batch)
        self._forget()
        if len(batch) == 1 and not self.by_layer:
            chunk = self.chunk_tokens or batch.ids.shape[1]
            through = Pass(self.model, self.accounts, chunk, self.checkpoint)
            self._alone = Micro(through, self.max_norm)
            self._alone.forward(batch)
            return
        with ExitStack() as stack:
            stack.enter_context(otherwise(REMEDY))
            stack.enter_context(without_head(self.model))
            if self.checkpoint:
                stack.enter_context(checkpointed(self.model))
            B, T = batch.ids.shape
            captured = stack.enter_context(capture(self.model, (B, T), owners=self.trained.layers))
            hidden = last_hidden(self.model, batch.ids)
            head, gradient, losses = self._head(hidden.detach(), batch)
            self._pending = _Forward(stack.pop_all(), captured, hidden, gradient, losses, head)

    def backward(self) -> Clipped:
        """Go back, and add the clipped sum to the `.grad` of the trained parameters.

        Raises:
            RequestError: there was no forward.
        """
        alone, self._alone = self._alone, None
        if alone is not None:
            return alone.backward()
        pending, self._pending = self._pending, None
        if pending is None:
            raise RequestError("backward came without a forward")
        with pending.stack:
            if pending.head is not None and self.trained.tied is None:
                kept = pending.head
                self._keep(kept if isinstance(kept, Pairs) else Gradients(kept, self.accounts))
            if pending.hidden.requires_grad:
                self._go_back(pending)
        losses = pending.losses
        del pending
        with self.accounts.scope(NORMS):
            squared = torch.stack(self._squared).sum(0)
            self._squared.clear()
            norms = squared.sqrt()
        if self.by_layer:
            return Clipped(losses, norms, None)
        factors = clip_factors(squared, self.max_norm)
        samples = finite_samples(squared)
        while self._stashes:
            self._write(self._stashes.pop(), factors, samples)
        return Clipped(losses, norms, factors)

    def _forget(self) -> None:
        """Let go of a step that was not finished: one that failed must not be in the next."""
        if self._pending is not None:
            self._pending.stack.close()
        self._alone = self._pending = None
        self._stashes.clear()
        self._squared.clear()

    def _go_back(self, pending: _Forward) -> None:
        def receive(name: str, module: nn.Module, a: Tensor, g: Tensor) -> None:
            if name == self.trained.tied and pending.head is not None:
                assert isinstance(module, nn.Embedding)
                head, pending.head = pending.head, None
                weight = f"{self.trained.head_name}.weight"
                self._keep(TiedHead(head, weight, (module, a, g), self.accounts))
            else:
                wanted = self.trained.layers[name]
                self._keep(stash(name, module, a, g, wanted, self.accounts))

        hidden, gradient = pending.hidden, pending.gradient
        del pending.hidden, pending.gradient
        pending.captured.backward(hidden, gradient, receive)

    def _keep(self, kept: Stash) -> None:
        self._squared.append(kept.squared_norms)
        if not self.by_layer:
            self._stashes.append(kept)
            return
        factors = clip_factors(kept.squared_norms, self.max_norm / math.sqrt(self.groups))
        self._write(kept, factors, finite_samples(kept.squared_norms))

    def _write(self, kept: Stash, weights: Tensor, samples: Tensor | None) -> None:
        for name, total in kept.weighted_sums(weights, samples):
            parameter = self.parameters[name]
            total = total.to(parameter.dtype)
            if parameter.grad is None:
                parameter.grad = total
            else:
                parameter.grad += total

    def _head(self, hidden: Tensor, batch: Sequences) -> tuple[HeadKept | None, Tensor, Tensor]:
        """What is kept of the head, the gradient by its input, and the losses."""
        head, name, wanted = self.trained.head, self.trained.head_name, self.trained.head_wanted
        (B, T, d), V = hidden.shape, head.out_features
        whole = bool(self.chunk_tokens) or prefers_gradients(B, T, d, V)
        with self.accounts.scope(LOGITS):
            losses, gradient = new_losses(hidden), torch.empty_like(hidden)
            logits = hidden.new_empty(B, T, V) if wanted and not whole else None
        with self.accounts.scope(STASH):
            sums = {
                suffix: hidden.new_empty(B, *head.get_parameter(suffix).shape)
                for suffix in (wanted if whole else ())
            }
        chunks = head_chunks(hidden, head, batch, self.chunk_tokens, losses, gradient)
        while True:
            with self.accounts.scope(LOGITS):
                chunk = next(chunks, None)
            if chunk is None:
                break
            if logits is not None:
                logits[chunk.sample, chunk.tokens] = chunk.r
            with self.accounts.scope(STASH):
                for suffix, total in sums.items():
                    add_head_gradient(total[chunk.sample], suffix, chunk, fresh=chunk.first)
        if not wanted:
            return None, gradient, losses
        if logits is not None:
            return Pairs(name, head, (hidden, logits), wanted, self.accounts), gradient, losses
        return {f"{name}.{suffix}": total for suffix, total in sums.items()}, gradient, losses
