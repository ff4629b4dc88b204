"""What the separation score comes to where classes mean nothing: its null band.

Each random partition, of the same sizes tensor by tensor, has an S of its own. A rule whose S
lies among them separates nothing that a deal of the cards would not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

BAND = 0.95
FEWEST = 20  # random partitions that a band of 95% takes at the least


@dataclass(frozen=True)
class Null:
    """S of each random partition, and the band that holds 95% of them.

    Attributes:
        values: S of each draw that has one, in the order of draws.
        low: of the band; NaN for fewer than `FEWEST` values.
        high: likewise.
        undefined: draws without an S, a mean η of theirs not being positive.
    """

    values: list[float]
    low: float
    high: float
    undefined: int


def null_band(
    sens: FloatArray, func: FloatArray, draws: NDArray[np.int64]
) -> tuple[Null, list[str]]:
    """The null from η of both classes, [seeds], and the draw that each seed belongs to."""
    values, undefined = [], 0
    for draw in np.unique(draws):
        rows = (draws == draw) & np.isfinite(sens) & np.isfinite(func)
        above = float(sens[rows].mean()) if rows.any() else math.nan
        below = float(func[rows].mean()) if rows.any() else math.nan
        if above > 0 and below > 0:
            values.append(math.log2(above / below))
        else:
            undefined += 1
    notes = [f"{undefined} of {undefined + len(values)} draws have no S"] if undefined else []
    if len(values) < FEWEST:
        notes.append(f"no band from {len(values)} draws, it takes {FEWEST}")
        return Null(values, math.nan, math.nan, undefined), notes
    low, high = np.quantile(values, [(1 - BAND) / 2, (1 + BAND) / 2])
    return Null(values, float(low), float(high), undefined), notes


def null_p(value: float, values: Sequence[float]) -> float:
    """Two-sided p of S among the null's values: (1 + those as far from their median) / (1 + n).

    NaN where S is not defined or there are no values. Source: Phipson and Smyth 2010
    (doi:10.2202/1544-6115.1585) for counting the observed one in.
    """
    if not len(values) or not math.isfinite(value):
        return math.nan
    null = np.asarray(values)
    middle = np.median(null)
    farther = int((np.abs(null - middle) >= abs(value - middle)).sum())
    return (1 + farther) / (1 + len(null))
