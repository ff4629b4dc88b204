"""Bootstrap intervals over replicates, with a word where there can be none."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

FloatArray = NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 9_999
LEAST_REPLICATES = 3
ROUNDING = 1e-12  # relative spread below which values count as equal


@dataclass(frozen=True)
class Bounds:
    """An interval's ends, NaN where there is none, and a note that says why."""

    low: float
    high: float
    note: str | None = None


def mean_interval(values: FloatArray, seed: int) -> Bounds:
    """BCa 95% interval of the mean of independent `values` [n]; see `interval`.

    From few values it is too short: of normal ones it covered the mean in 89% of 2,000 trials at
    n = 8 and in 90% at n = 12. The sign-flip test does not share this; judge by its p.
    """
    return interval([values], lambda x, axis: np.mean(x, axis=axis), seed)


def interval(samples: Sequence[FloatArray], statistic: Callable[..., Any], seed: int) -> Bounds:
    """95% bootstrap interval of a statistic, resampling replicates jointly over the samples.

    BCa (Efron 1987, doi:10.1080/01621459.1987.10478410). Where the statistic is undefined (not
    finite) in some resamples there is no BCa; the percentile interval is taken instead, with
    those resamples counted against both ends, so that it is never too short on their account.
    An end that lies among them is NaN: the interval is open there.

    Args:
        samples: arrays [n], replicate i the same in each.
        statistic: called with the samples and `axis`; vectorised.
        seed: of the resampling.
    """
    n = len(samples[0])
    if n < LEAST_REPLICATES:
        return Bounds(np.nan, np.nan, f"no interval from {n} seeds, it takes {LEAST_REPLICATES}")
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # degenerate data become notes below
        result = bootstrap(
            samples,
            statistic,
            n_resamples=RESAMPLES,
            vectorized=True,
            paired=len(samples) > 1,
            axis=0,
            confidence_level=CONFIDENCE,
            method="BCa",
            rng=np.random.default_rng(seed),
        )
    resampled = np.asarray(result.bootstrap_distribution, np.float64)
    low, high = (float(end) for end in result.confidence_interval)
    defined = np.isfinite(resampled)
    if equal(resampled[defined]):
        return Bounds(np.nan, np.nan, f"no interval, the {n} seeds agree to rounding")
    if defined.all() and np.isfinite([low, high]).all():
        return Bounds(low, high)
    return _percentile_bounds(resampled)


def equal(values: FloatArray) -> bool:
    """Whether values differ by no more than rounding; true of none and of one."""
    return len(values) < 2 or bool(np.ptp(values) <= ROUNDING * np.abs(values).max())


def _percentile_bounds(resampled: FloatArray) -> Bounds:
    tail = (1 - CONFIDENCE) / 2
    defined = np.isfinite(resampled)
    low = float(np.quantile(np.where(defined, resampled, -np.inf), tail, method="lower"))
    high = float(np.quantile(np.where(defined, resampled, np.inf), 1 - tail, method="higher"))
    note = "percentile interval, BCa could not be had"
    if not defined.all():
        note += f": undefined in {1 - defined.mean():.1%} of the resamples"
    if not np.isfinite([low, high]).all():
        note += "; open where an end is null"
    low, high = (float(end) if np.isfinite(end) else np.nan for end in (low, high))
    return Bounds(low, high, note)
