"""Noise seeds as replicates: their means, intervals and confidence ellipses.

A replicate is a noise seed: the mean over its signs (antithetic pair) and, where a seed of
the random control saw several draws of the partition, over those.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtrit

LEVEL = 0.95
PAIR = ["class", "sigma", "seed", "draw"]
SEED = ["class", "sigma", "seed"]
DRAW = ["class", "sigma", "draw"]


def seed_means(responses: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """A row a (class, sigma, seed): the mean over draws of the mean over signs of `columns`.

    A replicate with any value that is not finite is not finite in all columns, so that
    nothing is averaged over what was left.
    """
    return _means(_means(responses, PAIR, columns), SEED, columns)


def draw_means(responses: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """A row a (class, sigma, draw): the mean over seeds of the mean over signs of `columns`."""
    return _means(_means(responses, PAIR, columns), DRAW, columns)


def null_band(
    paths: Sequence[NDArray[np.float64]], points: int = 60
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Where 95% of trajectories pass: x, low and high, [points] each.

    A path [levels, 2] starts at (0, 0) and is linear between its levels; x goes as far as
    half of the paths do, and those that end before are left out beyond.
    """
    x = np.linspace(0, np.median([path[-1, 0] for path in paths]), points)
    y = np.stack([np.interp(x, [0, *path[:, 0]], [0, *path[:, 1]], right=np.nan) for path in paths])
    low, high = np.nanquantile(y, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return x, low, high


def _means(frame: pd.DataFrame, by: list[str], columns: Sequence[str]) -> pd.DataFrame:
    names = list(columns)
    finite = np.isfinite(frame[names].to_numpy(dtype=float)).all(axis=1)
    groups = frame[[*by, *names]].assign(finite=finite).groupby(by, sort=True)
    means = groups[names].mean()
    means[~groups["finite"].all()] = np.nan
    return means.reset_index()


def mean_curve(replicates: pd.DataFrame, label: str, column: str) -> pd.DataFrame:
    """Mean and 95% t interval over seeds at each sigma for one class.

    Returns:
        Index sigma; columns mean, low, high, n. Replicates that are not finite are left
        out; low and high are NaN where fewer than two are left.
    """
    of_class = replicates[replicates["class"] == label].dropna(subset=[column])
    groups = of_class.groupby("sigma")[column]
    mean, n = groups.mean(), groups.count()
    half = stdtrit(np.maximum(n - 1, 1), (1 + LEVEL) / 2) * groups.std() / np.sqrt(n)
    return pd.DataFrame({"mean": mean, "low": mean - half, "high": mean + half, "n": n})


def confidence_ellipse(points: NDArray[np.float64], vertices: int = 120) -> NDArray[np.float64]:
    """Outline, [vertices, 2], of the 95% confidence region of the mean of `points`, [n, 2].

    Hotelling's T² region (Hotelling 1931, doi:10.1214/aoms/1177732979): the mean μ for which
    n (x̄ − μ)ᵀ S⁻¹ (x̄ − μ) ≤ 2(n − 1)/(n − 2) · F, F the quantile of F(2, n − 2), which has
    the closed form (n − 2)/2 · (α^(−2/(n − 2)) − 1). Empty, [0, 2], for fewer than 3 points.
    """
    n = len(points)
    if n < 3:
        return np.empty((0, 2))
    scale = (n - 1) * ((1 - LEVEL) ** (-2 / (n - 2)) - 1) / n
    values, vectors = np.linalg.eigh(np.cov(points.T))
    angle = np.linspace(0, 2 * np.pi, vertices)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    radii = np.sqrt(scale * np.maximum(values, 0))
    outline: NDArray[np.float64] = points.mean(0) + (vectors @ (radii[:, None] * circle)).T
    return outline


def not_finite(replicates: pd.DataFrame, columns: Sequence[str]) -> int:
    """How many replicates have a value that is not finite, and so are in no mean."""
    return int(replicates[list(columns)].isna().any(axis=1).sum())
