"""Log-probabilities of the tokens that came next."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from paramscope.models.load import logits
from paramscope.models.sequences import Sequences


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


@torch.no_grad()
def token_log_probabilities(
    model: PreTrainedModel, sequences: Sequences, batch_size: int
) -> Tensor:
    """`log_probabilities` of all sequences, [S, T−1], without a gradient."""
    rows = sequences.ids.new_zeros(
        (len(sequences), sequences.ids.shape[1] - 1), dtype=torch.float64
    )
    start = 0
    for batch in sequences.batches(batch_size):
        part = log_probabilities(model, batch)
        rows[start : start + len(batch), : part.shape[1]] = part
        start += len(batch)
    return rows


def document_losses(log_probs: Tensor, lengths: Tensor) -> Tensor:
    """Mean negative log-likelihood a token of each document, [S], in nats.

    `log_probs` [S, T−1] is 0 beyond a document's end; `lengths` [S] counts its tokens.
    """
    return -log_probs.sum(1) / (lengths - 1)
