"""Efficiency of noise in a class at equal perplexity, and how far two classes differ in it.

η = −Δresponse/Δlog PPL where a class's trajectory reaches Δlog PPL = log 1.05: how much of the
membership signal (loss gap, or AUC) the noise removes for its cost in perplexity. The separation
score is S = log2(η_sens/η_func), at equal perplexity and hence free of the classes' sizes.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paramscope.response.intervals import interval, mean_interval

FloatArray = NDArray[np.float64]

ISO_LOG_PPL = math.log(1.05)
EFFICIENCY_RESPONSES = {"gap": "delta_loss_gap", "auc": "delta_auc"}


@dataclass(frozen=True)
class Efficiency:
    """Mean η over the `n` seeds that reach the perplexity, nats or AUC a nat; BCa 95%."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Separation:
    """S = log2(mean η_sens/mean η_func) over the `n` seeds that both classes have.

    `null_low` and `null_high` hold 95% of random partitions' S, and `p_null` is S's own p among
    them; NaN where no null was measured.
    """

    value: float
    low: float
    high: float
    n: int
    null_low: float = math.nan
    null_high: float = math.nan
    p_null: float = math.nan


def eta(log_ppl: FloatArray, response: FloatArray, iso_log_ppl: float = ISO_LOG_PPL) -> FloatArray:
    """η a seed, [seeds], from Δlog PPL and Δresponse, both [seeds, sigmas] by ascending σ.

    Each seed's trajectory starts at (0, 0), is linear between neighbouring σ, and is read where
    it first crosses `iso_log_ppl`. NaN for a seed that never does: nothing is extrapolated. Of
    a single σ, set to be where that crossing is, the ratio itself is taken on either side.
    """
    if log_ppl.shape[1] == 1:
        with np.errstate(all="ignore"):
            ratio: FloatArray = -(response / log_ppl)[:, 0]
        return np.where(log_ppl[:, 0] > 0, ratio, np.nan)
    crossing = np.array(
        [_at(x, y, iso_log_ppl) for x, y in zip(log_ppl, response, strict=True)], np.float64
    )
    return -crossing / iso_log_ppl


def within_first_step(log_ppl: FloatArray, iso_log_ppl: float = ISO_LOG_PPL) -> int:
    """Seeds whose smallest σ is already past `iso_log_ppl`, from Δlog PPL [seeds, sigmas]."""
    return int((log_ppl[:, 0] > iso_log_ppl).sum())


def efficiency(etas: FloatArray, seed: int) -> tuple[Efficiency, list[str]]:
    """Mean and interval of η [seeds] over the seeds that have one, with notes on the others."""
    reached = etas[np.isfinite(etas)]
    n = len(reached)
    notes = []
    if n < len(etas):
        notes.append(
            f"{len(etas) - n} of {len(etas)} seeds never reach the iso-PPL with finite responses"
        )
    if not n:
        return Efficiency(np.nan, np.nan, np.nan, 0), notes
    bounds = mean_interval(reached, seed)
    notes += [bounds.note] if bounds.note else []
    return Efficiency(float(reached.mean()), bounds.low, bounds.high, n), notes


def separation(sens: FloatArray, func: FloatArray, seed: int) -> tuple[Separation, list[str]]:
    """S and its interval from η of W_sens and of W_func, each [seeds], paired by seed.

    The ratio is of means, so that a seed with a small η_func does not rule it. S is NaN, with a
    note, where a mean is not positive: noise that adds signal has no efficiency to compare.
    """
    both = np.isfinite(sens) & np.isfinite(func)
    n = int(both.sum())
    if not n:
        return Separation(np.nan, np.nan, np.nan, 0), ["no seed reaches the iso-PPL in both"]
    sens, func = sens[both], func[both]
    means = {"W_sens": sens.mean(), "W_func": func.mean()}
    lost = [f"{label} ({mean:.3g})" for label, mean in means.items() if mean <= 0]
    if lost:
        note = f"undefined, the mean η is not positive in {' and '.join(lost)}"
        return Separation(np.nan, np.nan, np.nan, n), [note]
    bounds = interval([sens, func], _log_ratio, seed)
    value = float(_log_ratio(sens, func))
    notes = [bounds.note] if bounds.note else []
    return Separation(value, bounds.low, bounds.high, n), notes


def _log_ratio(sens: FloatArray, func: FloatArray, axis: int = -1) -> FloatArray:
    above, below = np.mean(sens, axis=axis), np.mean(func, axis=axis)
    with np.errstate(all="ignore"):
        ratio = np.log2(above / below)
    return np.where((above > 0) & (below > 0), ratio, np.nan)


def _at(x: FloatArray, y: FloatArray, target: float) -> float:
    """The first value of y where x, from (0, 0) on, rises to `target`; NaN if it never does."""
    x, y = np.concatenate([[0.0], x]), np.concatenate([[0.0], y])
    for i in range(1, len(x)):
        if not (np.isfinite(x[i]) and np.isfinite(y[i])):
            return math.nan
        if x[i] >= target:
            share = (target - x[i - 1]) / (x[i] - x[i - 1])
            return float(y[i - 1] + share * (y[i] - y[i - 1]))
    return math.nan
