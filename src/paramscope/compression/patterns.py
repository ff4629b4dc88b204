"""Choosing an exact number of weights by their scores, anywhere or two of every four."""

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from paramscope.rehearsal import rounds

Pattern = Literal["unstructured", "2:4"]
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)
CHUNK = 2**20  # scores that are ranked at a time, where rows are ranked one by one


def kept_of(density: float, n: int) -> int:
    """How many of `n` weights a density keeps: the nearest integer."""
    return round(density * n)


def largest(scores: Tensor, count: int) -> Tensor:
    """Where the `count` largest of each row stand, [R, n] bool; of equals the first are taken."""
    n = scores.shape[-1]
    if not 0 < count < n:
        return torch.full_like(scores, count > 0, dtype=torch.bool)
    threshold = _ranked(scores, n - count)
    chosen, equal = scores > threshold, scores == threshold
    short = count - chosen.sum(-1, keepdim=True)
    if (equal.sum(-1, keepdim=True) > short).any():
        equal &= equal.cumsum(-1, dtype=torch.int32) <= short.to(torch.int32)  # or one is widened
    return chosen.logical_or_(equal)


def _ranked(scores: Tensor, place: int) -> Tensor:
    """The value that stands at `place` of each row in rising order, [R, 1]."""
    fake = isinstance(scores, FakeTensor)  # NumPy can't hold one
    if scores.device.type == "cpu" and not fake:
        # Five times as fast as kthvalue, with a third of its memory.
        values = np.partition(scores.numpy(), place, axis=-1)
        return torch.from_numpy(values[..., place : place + 1].copy())
    return scores.kthvalue(place + 1, dim=-1, keepdim=True).values


def largest_two_of_four(scores: Tensor) -> Tensor:
    """Where the two largest of every four neighbours in a row stand, [R, n] bool, n = 4k.

    Of equals the first are taken.
    """
    return _largest_by_row(scores.unflatten(-1, (-1, 4)).flatten(0, -2), 2).view(scores.shape)


def _largest_by_row(scores: Tensor, count: int) -> Tensor:
    """`largest`, of so many rows at a time that `CHUNK` scores are ranked at most."""
    mask = torch.empty_like(scores, dtype=torch.bool)
    rows = max(1, CHUNK // scores.shape[1])
    for start in rounds(range(0, len(scores), rows)):
        mask[start : start + rows] = largest(scores[start : start + rows], count)
    return mask


def choose(
    scores: Tensor, density: float, pattern: Pattern, *, by_row: bool, allowed: Tensor | None
) -> Tensor:
    """The mask of the weights that are kept, [out, in] bool.

    Args:
        scores: how much a weight is worth, [out, in], none below 0; may be overwritten.
        density: the share that is kept, where the pattern leaves that open.
        pattern: "2:4" keeps two of every four inputs of each output.
        by_row: keep that share of each output's weights, not of the layer's.
        allowed: where a weight may be kept, [out, in] bool.
    """
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -1)
    if pattern == "2:4":
        mask = largest_two_of_four(scores)
    elif by_row:
        mask = _largest_by_row(scores, kept_of(density, scores.shape[1]))
    else:
        mask = largest(scores.reshape(1, -1), kept_of(density, scores.numel())).view(scores.shape)
    return mask if allowed is None else mask.logical_and_(allowed)
