"""Perplexity over windows of joined text, and its bootstrap over windows."""

import math

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from paramscope.memory import Microbatch, pieces
from paramscope.models.losses import token_log_probabilities
from paramscope.models.sequences import Sequences


def log_perplexity(log_probs: Tensor, lengths: Tensor) -> float:
    """Mean negative log-likelihood a predicted token, in nats.

    `log_probs` [S, T−1] is 0 where nothing is predicted; `lengths` [S] counts each
    sequence's tokens. Perplexity is its exponential; windows weigh by their tokens.
    """
    return float(-log_probs.sum() / (lengths - 1).sum())


def model_log_perplexity(
    model: PreTrainedModel, sequences: Sequences, batch_size: int | Microbatch, bar: str = ""
) -> float:
    """A model's mean negative log-likelihood a predicted token of the sequences, in nats.

    `bar` names a bar of the sequences done; without a name none is shown.
    """
    total = 0.0

    def summed(place: slice) -> float:
        batch = sequences.part(place)
        return float(token_log_probabilities(model, batch, len(batch)).sum())

    with tqdm(total=len(sequences), desc=bar, unit="sequence", disable=not bar) as shown:
        for place, log_p in pieces(len(sequences), batch_size, summed):
            total -= log_p
            shown.update(place.stop - place.start)
    return total / sequences.n_predicted


def model_perplexity(
    model: PreTrainedModel, sequences: Sequences, batch_size: int | Microbatch, bar: str = ""
) -> float:
    """The exponential of `model_log_perplexity`; infinite where no float holds it."""
    try:
        return math.exp(model_log_perplexity(model, sequences, batch_size, bar))
    except OverflowError:
        return math.inf


def resampled_log_perplexity(log_probs: Tensor, lengths: Tensor, counts: Tensor) -> Tensor:
    """Log perplexity of each resample, [R], for window counts [R, S]."""
    counts = counts.to(torch.float64)
    losses = -log_probs.sum(1).to(torch.float64)
    return (counts @ losses) / (counts @ (lengths - 1).to(torch.float64))
