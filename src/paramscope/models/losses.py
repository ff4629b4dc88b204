"""Log-probabilities of the tokens that came next."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from paramscope.memory import Microbatch, pieces
from paramscope.models.load import logits
from paramscope.models.sequences import Sequences
from paramscope.rehearsal import rounds

CHUNK_BYTES = 2**20  # of logits that a softmax is taken of at a time: they stay in the cache


def log_probabilities(model: PreTrainedModel, batch: Sequences) -> Tensor:
    """log p of each next token, [B, T−1], 0 where there is no text to predict.

    In float32 at least, whatever the model's own format.
    """
    scores = logits(model, batch.ids)[:, :-1]
    if scores.dtype not in (torch.float32, torch.float64):
        scores = scores.float()
    chosen = scores.log_softmax(-1).gather(-1, batch.ids[:, 1:, None]).squeeze(-1)
    return chosen.masked_fill(~batch.predicted, 0)


def mean_loss(model: PreTrainedModel, batch: Sequences) -> Tensor:
    """Mean negative log-likelihood a predicted token: a scalar with a gradient."""
    return -log_probabilities(model, batch).sum() / batch.n_predicted


def document_losses(log_probs: Tensor, lengths: Tensor) -> Tensor:
    """Mean negative log-likelihood a token of each document, [S], in nats.

    `log_probs` [S, T−1] is 0 beyond a document's end; `lengths` [S] counts its tokens.
    """
    return -log_probs.sum(1) / (lengths - 1)


@dataclass(frozen=True)
class TokenStatistics:
    """What a model says of each next token: [S, T−1] in float64, 0 where there is no text.

    Attributes:
        log_probs: log p of the token that came.
        mean: expectation of log p over the vocabulary under p, the entropy's negative; None
            unless asked for.
        deviation: its standard deviation, likewise.
    """

    log_probs: Tensor
    mean: Tensor | None = None
    deviation: Tensor | None = None


@torch.no_grad()
def token_statistics(
    model: PreTrainedModel, sequences: Sequences, batch_size: int | Microbatch, moments: bool
) -> TokenStatistics:
    """Statistics of all next tokens, with the mean and deviation of log p if `moments`.

    Softmax and moments are taken a few tokens at a time, in float32 at least: the logits of a
    batch are held once, and nothing else of their size.

    Raises:
        DeviceError: memory runs out, and the batch can't be halved any more.
    """
    shape = (3 if moments else 1, len(sequences), sequences.ids.shape[1] - 1)
    found = torch.zeros(shape, dtype=torch.float64, device=sequences.ids.device)

    def statistics(place: slice) -> Tensor:
        batch = sequences.part(place)
        scores = logits(model, batch.ids).flatten(0, 1)
        following = batch.ids.roll(-1, 1).flatten()  # of a last token: not one that is predicted
        size = max(1, CHUNK_BYTES // (4 * scores.shape[1]))
        made = torch.promote_types(scores.dtype, torch.float32)
        values = torch.empty(len(found), len(scores), dtype=made, device=scores.device)
        for start in rounds(range(0, len(scores), size)):
            part = slice(start, start + size)
            values[:, part] = _statistics(scores[part], following[part], moments)
        shaped: Tensor = values.unflatten(1, batch.ids.shape)[:, :, :-1]
        return shaped.masked_fill(~batch.predicted, 0)

    for place, values in pieces(len(sequences), batch_size, statistics):
        found[:, place, : values.shape[2]] = values
    return TokenStatistics(*found)


def token_log_probabilities(
    model: PreTrainedModel, sequences: Sequences, batch_size: int | Microbatch
) -> Tensor:
    """`log_probabilities` of all sequences, [S, T−1], in float64 and without a gradient."""
    return token_statistics(model, sequences, batch_size, moments=False).log_probs


def _statistics(scores: Tensor, chosen: Tensor, moments: bool) -> Tensor:
    """log p of the chosen tokens and, if asked, μ and σ of log p: [1 or 3, n] of scores [n, V]."""
    if scores.dtype not in (torch.float32, torch.float64):
        scores = scores.float()
    log_p = scores.log_softmax(-1)
    own = log_p.gather(-1, chosen[:, None]).squeeze(-1)
    if not moments:
        return own[None]
    p = log_p.exp()
    mean = torch.linalg.vecdot(p, log_p)
    log_p -= mean[:, None]  # centred before it is squared: no cancellation
    deviation = torch.linalg.vecdot(p.mul_(log_p), log_p).sqrt()
    return torch.stack([own, mean, deviation])
