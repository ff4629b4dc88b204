"""Whether classes respond differently: paired tests over noise seeds, and a descriptive MANOVA."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import permutation_test
from statsmodels.multivariate.manova import MANOVA
from statsmodels.stats.multitest import multipletests

from paramscope.artifacts.digest import seed_of
from paramscope.response.intervals import equal, mean_interval

FloatArray = NDArray[np.float64]

PERMUTATIONS = 10_000
ALPHA = 0.05


@dataclass(frozen=True)
class Comparison:
    """One response's slope in class `first` less that in `second`, over `n` paired seeds.

    `effect_size` is Cohen's d_z: the mean difference over the standard deviation (n − 1) of the
    differences. `p` is two-sided; `p_holm` is corrected over all comparisons of the rule.
    """

    response: str
    first: str
    second: str
    difference: float
    low: float
    high: float
    effect_size: float
    p: float
    p_holm: float
    n: int


@dataclass(frozen=True)
class Manova:
    """Pillai's trace of (Δlog PPL, ΔAUC) ~ class, with its F approximation.

    Descriptive: its rows share noise seeds between classes, and normality is not checked.
    """

    pillai: float
    f: float
    df_num: float
    df_den: float
    p: float


def slopes(sigmas: FloatArray, values: FloatArray) -> FloatArray:
    """Slope of each response over σ², [seeds, responses], from values [seeds, sigmas, responses].

    Least squares through the origin: the response is 0 at σ = 0 by definition, and the mean of
    ±z has no odd orders, so its first term is σ². One number a seed, so that rows of different
    σ, which share the noise z, never count as replicates.
    """
    squared = sigmas**2
    slope: FloatArray = np.einsum("k,nkr->nr", squared, values) / np.sum(squared**2)
    return slope


def sign_flip_p(differences: FloatArray, seed: int) -> float:
    """Two-sided p of mean 0 when the sign of each difference [n] is as likely + as −.

    Exact over all 2ⁿ sign patterns while they are no more than 10,000 (n ≤ 13); that many drawn
    at random above, the observed one counted in. It can't fall below 2/2ⁿ. NaN for n < 2.
    """
    if len(differences) < 2:
        return float("nan")
    result = permutation_test(
        (differences,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def effect_size(differences: FloatArray) -> float:
    """Cohen's d_z of paired differences [n]; NaN where they don't vary."""
    if equal(differences):
        return float("nan")
    return float(differences.mean() / differences.std(ddof=1))


def compare(
    by_class: Mapping[str, FloatArray], responses: tuple[str, ...], *identity: object
) -> tuple[list[Comparison], list[str]]:
    """Every pair of classes on every response, Holm-corrected over all of them, with notes.

    Args:
        by_class: slopes [seeds, responses] a class, seeds in the same order (the noise of a
            seed is common to the classes, hence the pairing).
        responses: names of the last axis.
        identity: what the resampling's seeds derive from.
    """
    found, notes = [], []
    for index, response in enumerate(responses):
        for first, second in combinations(by_class, 2):
            differences = by_class[first][:, index] - by_class[second][:, index]
            differences = differences[np.isfinite(differences)]
            seed = seed_of(*identity, first, second, response)
            bounds = mean_interval(differences, seed)
            if bounds.note:
                notes.append(f"{response}, {first} − {second}: {bounds.note}")
            comparison = Comparison(
                response,
                first,
                second,
                float(differences.mean()) if len(differences) else float("nan"),
                bounds.low,
                bounds.high,
                effect_size(differences),
                sign_flip_p(differences, seed),
                float("nan"),
                len(differences),
            )
            found.append(comparison)
    return holm(found), notes + _resolution(found)


def holm(comparisons: list[Comparison]) -> list[Comparison]:
    """The comparisons with `p_holm` set (Holm 1979); one without a p is not counted."""
    tested = [c for c in comparisons if np.isfinite(c.p)]
    if not tested:
        return comparisons
    corrected = iter(multipletests([c.p for c in tested], method="holm")[1])
    return [
        replace(c, p_holm=float(next(corrected))) if np.isfinite(c.p) else c for c in comparisons
    ]


def manova(by_class: Mapping[str, FloatArray]) -> tuple[Manova | None, list[str]]:
    """Pillai's trace over slopes [seeds, 2] a class, one row a seed and class.

    Returns None and a note where it can't be had: fewer than two classes, too few rows, or
    responses that don't vary within classes or only together.
    """
    groups = [rows[np.isfinite(rows).all(axis=1)] for rows in by_class.values()]
    groups = [rows for rows in groups if len(rows)]
    if len(groups) < 2:
        return None, ["no MANOVA with fewer than two classes"]
    endog = np.concatenate(groups)
    spread = endog.std(axis=0)
    if len(endog) - len(groups) < endog.shape[1] or not (spread > 0).all():
        return None, ["no MANOVA: too few seeds, or a response that never changes"]
    within = np.concatenate([rows - rows.mean(axis=0) for rows in groups]) / spread
    if np.linalg.matrix_rank(within, tol=1e-8) < endog.shape[1]:
        return None, ["no MANOVA: within classes the responses don't vary, or only together"]
    # Scaled, since Pillai's trace does not change with units and rounding does.
    exog = np.repeat(np.eye(len(groups)), [len(rows) for rows in groups], axis=0)
    contrast = np.eye(len(groups))[:-1] - np.eye(len(groups))[1:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of statsmodels; what could be wrong is refused above
        tested = MANOVA(endog / spread, exog).mv_test([("class", contrast)])
    row = tested.results["class"]["stat"].loc["Pillai's trace"]
    columns = ("Value", "F Value", "Num DF", "Den DF", "Pr > F")
    return Manova(*(float(row[name]) for name in columns)), []


def _resolution(comparisons: list[Comparison]) -> list[str]:
    """A note where the seeds are too few for any comparison to fall below .05 after Holm."""
    tested = [c for c in comparisons if np.isfinite(c.p)]
    if not tested:
        return []
    n, m = max(c.n for c in tested), len(tested)
    least = m * 2.0 ** (1 - n)
    if least <= ALPHA:
        return []
    enough = next(k for k in range(n, 64) if m * 2.0 ** (1 - k) <= ALPHA)
    return [
        f"{n} seeds can't show p_holm below {min(1.0, least):.2g} over {m} comparisons,"
        f" whatever the effect; {enough} seeds could"
    ]
