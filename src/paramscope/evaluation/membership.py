"""Membership inference: scores of documents, and how well they tell members apart.

A score is higher where a document looks more like a member. Sources: loss, Yeom et al. 2018
(arXiv:1709.01604); Min-K%, Shi et al. 2024 (arXiv:2310.16789).
"""

import torch
from torch import Tensor


def min_k(log_probs: Tensor, lengths: Tensor, percent: float) -> Tensor:
    """Min-K% score of each document, [S]: mean log p of its least likely `percent` of tokens.

    At least one token counts. `log_probs` [S, T−1] is read up to each document's length.
    """
    predicted = lengths - 1
    counted = (predicted * percent / 100).floor().clamp(min=1)
    places = torch.arange(log_probs.shape[1], device=log_probs.device)
    text = places < predicted[:, None]
    ordered = log_probs.masked_fill(~text, torch.inf).sort(1).values
    lowest = places < counted[:, None]
    return torch.where(lowest, ordered, 0).sum(1) / counted


def wins(members: Tensor, nonmembers: Tensor) -> Tensor:
    """1 where a member's score is above a non-member's, ½ where equal, else 0, [M, N]."""
    above = members[:, None] > nonmembers
    equal = members[:, None] == nonmembers
    return above.to(torch.float64) + 0.5 * equal.to(torch.float64)


def auc(members: Tensor, nonmembers: Tensor) -> float:
    """Area under the ROC curve: how often a member outscores a non-member."""
    return float(wins(members, nonmembers).mean())


def resampled_auc(table: Tensor, members: Tensor, nonmembers: Tensor) -> Tensor:
    """AUC of each resample of documents, [R].

    `table` [M, N] is from `wins`; `members` [R, M] and `nonmembers` [R, N] count how often
    each document was drawn.
    """
    members, nonmembers = members.to(table), nonmembers.to(table)
    total = members.sum(1) * nonmembers.sum(1)
    return ((members @ table) * nonmembers).sum(1) / total


def resampled_mean(values: Tensor, counts: Tensor) -> Tensor:
    """Mean of each resample, [R], of values [n] that were drawn `counts` [R, n] times."""
    counts = counts.to(values)
    return (counts @ values) / counts.sum(1)


def resample_counts(n: int, resamples: int, seed: int) -> Tensor:
    """How often each of n items is drawn in each bootstrap resample, [R, n]."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n, (resamples, n), generator=generator)
    counts = torch.zeros(resamples, n, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
