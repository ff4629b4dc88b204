"""The table of units, and its features made comparable.

A unit is an output row of a weight matrix with its bias, a tensor, or an MLP's neuron; all
units of a table are of one such granularity.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from paramscope.errors import RequestError

UNITS = pa.schema(
    [
        pa.field("unit", pa.string(), nullable=False),
        pa.field("tensor", pa.string(), nullable=False),
        pa.field("layer", pa.int16(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("n_parameters", pa.int32(), nullable=False),
        pa.field("curvature_mean", pa.float64(), nullable=False),
        pa.field("curvature_sum", pa.float64(), nullable=False),
        pa.field("curvature_se", pa.float64(), nullable=False),
        pa.field("sparsity", pa.float64(), nullable=False),
        pa.field("alignment", pa.float64(), nullable=False),
        pa.field("alignment_percentile", pa.float64(), nullable=False),
        pa.field("weight_rms", pa.float64(), nullable=False),
        pa.field("saliency", pa.float64(), nullable=False),
        pa.field("gate", pa.float64()),
        pa.field("loss_gap", pa.float64()),
        pa.field("contrast", pa.float64()),
    ]
)
MEMBERSHIP_FEATURES = ("gate", "loss_gap", "contrast")  # null where no membership table was given

# curvature_sum is left out: it is curvature_mean times the row's length, so it would count the
# same measurement twice. The percentile stands in for the alignment, whose raw values crowd
# near zero in a real model.
FEATURES = ("curvature_mean", "sparsity", "alignment_percentile", "weight_rms", "saliency")
HEAVY_TAILED = frozenset({"curvature_mean", "curvature_sum", "saliency"})
FLOOR = 1e-4  # of the median positive value: a dead row stays four decades below the typical one
CONSTANT = 1e-12  # relative range below which a feature is rounding noise


@dataclass(frozen=True)
class Standardised:
    """Features of mean 0 and standard deviation 1.

    `values` is [units, features], `features` names its columns, `notes` say what was raised to a
    floor or left out.
    """

    values: np.ndarray
    features: tuple[str, ...]
    notes: tuple[str, ...]


def percentile(values: pd.Series) -> pd.Series:
    """Where each value stands within the model, in (0, 1).

    (rank − ½)/n with ties at their average rank: the share of values below plus half the share
    of equals, so that all values equal gives .5 (`scipy.stats.percentileofscore`, kind "mean").
    """
    return (values.rank(method="average") - 0.5) / len(values)


def standardise(units: pd.DataFrame, features: Sequence[str] = FEATURES) -> Standardised:
    """Make the features comparable: log10 of the heavy-tailed ones, then mean 0, deviation 1.

    Before the logarithm, values below `FLOOR` times the feature's median positive value are
    raised to it, negative ones too: a noisy estimate of the Hessian has some. A feature that is
    constant carries nothing and is left out. Both are noted.

    Raises:
        RequestError: a feature is missing or has a value that is not finite; or none of them
            varies.
    """
    columns, kept, notes = [], [], []
    for name in features:
        values = _checked(units, name)
        if name in HEAVY_TAILED:
            values, note = _logarithm(values, name)
            notes += note
        if np.ptp(values) <= CONSTANT * np.abs(values).max():
            notes.append(f"{name} is constant and was left out")
            continue
        columns.append((values - values.mean()) / values.std())
        kept.append(name)
    if not columns:
        raise RequestError(f"nothing to embed: {', '.join(features)} are constant over the units")
    return Standardised(np.stack(columns, axis=1), tuple(kept), tuple(notes))


def _checked(units: pd.DataFrame, name: str) -> np.ndarray:
    if name not in units.columns:
        raise RequestError(f"the units lack the feature {name}; take one of their columns")
    values = units[name].to_numpy(dtype=np.float64)
    if len(wrong := np.flatnonzero(~np.isfinite(values))):
        raise RequestError(
            f"feature {name}: {len(wrong)} of {len(values)} values are not finite, the first in "
            f"unit {units['unit'].iloc[wrong[0]]}; rerun the rule units"
        )
    return values


def _logarithm(values: np.ndarray, name: str) -> tuple[np.ndarray, list[str]]:
    if not (values > 0).any():
        return np.zeros_like(values), []
    floor = FLOOR * float(np.median(values[values > 0]))
    raised = int((values < floor).sum())
    note = f"{name}: {raised} of {len(values)} values were raised to {floor:.3g}"
    return np.log10(np.maximum(values, floor)), [note] if raised else []
