"""Perplexity over windows of joined text, and its bootstrap over windows."""

import math

import torch
from torch import Tensor


def log_perplexity(log_probs: Tensor, lengths: Tensor) -> float:
    """Mean negative log-likelihood a predicted token, in nats.

    `log_probs` [S, T−1] is 0 where nothing is predicted; `lengths` [S] counts each
    sequence's tokens. Perplexity is its exponential; windows weigh by their tokens.
    """
    return float(-log_probs.sum() / (lengths - 1).sum())


def perplexity(log_probs: Tensor, lengths: Tensor) -> float:
    """exp(total negative log-likelihood / total predicted tokens)."""
    return math.exp(log_perplexity(log_probs, lengths))


def resampled_log_perplexity(log_probs: Tensor, lengths: Tensor, counts: Tensor) -> Tensor:
    """Log perplexity of each resample, [R], for window counts [R, S]."""
    counts = counts.to(torch.float64)
    losses = -log_probs.sum(1).to(torch.float64)
    return (counts @ losses) / (counts @ (lengths - 1).to(torch.float64))
