"""Losses by sample, each normalised by its own tokens, with logits whole or in chunks."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from paramscope.dpsgd.parts import LOGITS, Accounts
from paramscope.errors import RequestError
from paramscope.models.load import logits
from paramscope.models.sequences import Sequences
from paramscope.persample.precision import accumulator, wide
from paramscope.rehearsal import rounds

IGNORED = -100  # label of a token that nothing is predicted after


def sample_losses(model: PreTrainedModel, batch: Sequences, accounts: Accounts) -> Tensor:
    """Mean negative log-likelihood a predicted token of each sample, [B], with a graph.

    Raises:
        RequestError: there are no samples.
    """
    check_samples(batch)
    scores = logits(model, batch.ids)
    with accounts.scope(LOGITS):
        labels = _labels(batch)
        log_p = wide(scores).flatten(0, 1).log_softmax(-1)
        accounts.register([scores], LOGITS)
        for made in (scores, log_p):
            if made.requires_grad:
                made.register_hook(lambda gradient: _tell(gradient, accounts))
        tokens = F.nll_loss(log_p, labels.flatten(), ignore_index=IGNORED, reduction="none")
        return tokens.view(labels.shape).sum(1) / (batch.lengths - 1)


def check_samples(batch: Sequences) -> None:
    """Refuse a forward of nothing.

    Raises:
        RequestError: the batch has no samples.
    """
    if not len(batch):
        raise RequestError(
            "a forward of 0 samples; a logical batch that chance left empty takes none: its step "
            "adds noise alone"
        )


def _tell(gradient: Tensor, accounts: Accounts) -> None:
    accounts.register([gradient], LOGITS)


@dataclass(frozen=True)
class Chunk:
    """Some tokens of one sample at the head.

    Attributes:
        sample: its place in the batch.
        first: whether it is the sample's first chunk.
        tokens: which of its tokens.
        h: the head's input, [n, d].
        r: gradient of the sample's loss by the logits, [n, V].
    """

    sample: int
    first: bool
    tokens: slice
    h: Tensor
    r: Tensor


def head_chunks(
    hidden: Tensor,
    head: nn.Linear,
    batch: Sequences,
    chunk_tokens: int,
    losses: Tensor,
    into: Tensor,
) -> Iterator[Chunk]:
    """Go through the head a sample and `chunk_tokens` at a time (0: a sample at a time).

    Logits, their softmax and its gradient exist for one chunk alone: the forward and the
    backward of the head in one go, with the products of a plain backward.

    Args:
        hidden: the head's input, [B, T, d], without a graph.
        head: the head.
        batch: the ids.
        chunk_tokens: tokens a chunk at most.
        losses: zeros [B], which get the samples' losses.
        into: [B, T, d], which gets the gradient of each sample's loss by `hidden`.
    """
    weight, bias = head.weight.detach(), None if head.bias is None else head.bias.detach()
    B, T, _ = hidden.shape
    labels = _labels(batch)
    shares = (labels != IGNORED).to(losses.dtype) / (batch.lengths[:, None] - 1)
    labels = labels.clamp(min=0)
    size = chunk_tokens or T
    for sample in range(B):
        for start in rounds(range(0, T, size)):
            tokens = slice(start, min(start + size, T))
            h = hidden[sample, tokens]
            r = wide(F.linear(h, weight, bias)).log_softmax(-1)
            own, share = labels[sample, tokens, None], shares[sample, tokens, None]
            losses[sample] -= (r.gather(1, own) * share).sum()
            r.exp_().scatter_add_(1, own, -torch.ones_like(share, dtype=r.dtype)).mul_(share)
            r = r.to(h.dtype)
            torch.mm(r, weight, out=into[sample, tokens])
            yield Chunk(sample, start == 0, tokens, h, r)
            del r


def add_head_gradient(total: Tensor, suffix: str, chunk: Chunk, *, fresh: bool) -> None:
    """Add a chunk's part of the gradient of the head's weight or bias; if `fresh`, write it."""
    if suffix == "bias":
        part = wide(chunk.r).sum(0)
        total.copy_(part) if fresh else total.add_(part)
    elif fresh:
        torch.mm(chunk.r.T, chunk.h, out=total)
    else:
        total.addmm_(chunk.r.T, chunk.h)


def new_losses(hidden: Tensor) -> Tensor:
    """Zeros for `head_chunks` to add losses to, [B]."""
    return accumulator(hidden, len(hidden))


def _labels(batch: Sequences) -> Tensor:
    """The token that comes next, [B, T]; IGNORED at a sample's last and after it."""
    T = batch.ids.shape[1]
    last = torch.arange(1, T + 1, device=batch.ids.device) >= batch.lengths[:, None]
    return batch.ids.roll(-1, 1).masked_fill(last, IGNORED)
