"""The table of measured responses, put together from shards and seen as trajectories over σ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from paramscope.errors import ArtifactError
from paramscope.names import LABELS

SIGNS = (-1, 1)
RESPONSE_NAMES = ("delta_log_ppl", "delta_auc", "delta_auc_min_k", "delta_loss_gap")
BASELINE_TOLERANCE = 1e-3  # relative; a device's rounding stays below it, another model does not

CLASSES = LABELS
KEY = ["class", "sigma", "seed", "sign"]
MEASURED = (
    "ppl",
    "delta_log_ppl",
    "delta_log_ppl_se",
    "auc",
    "delta_auc",
    "delta_auc_se",
    "auc_min_k",
    "delta_auc_min_k",
    "loss_gap",
    "delta_loss_gap",
)
RESPONSES = pa.schema(
    [
        pa.field("class", pa.string(), nullable=False),
        pa.field("sigma", pa.float64(), nullable=False),
        pa.field("seed", pa.int32(), nullable=False),
        pa.field("sign", pa.int8(), nullable=False),
        pa.field("draw", pa.int16(), nullable=False),
        pa.field("n_units", pa.int32(), nullable=False),
        pa.field("n_parameters", pa.int64(), nullable=False),
        pa.field("noise", pa.string(), nullable=False),
        pa.field("noise_energy", pa.float64(), nullable=False),
        pa.field("predicted_delta_log_ppl", pa.float64()),
        pa.field("predicted_delta_log_ppl_se", pa.float64()),
        *(pa.field(name, pa.float64()) for name in MEASURED),  # null where the model broke down
    ]
)

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Trajectories:
    """Responses of each class over σ, the mean of ±z, one trajectory a noise seed.

    `values[label]` is [seeds, sigmas, responses] in the order of `seeds`, the class's `sigmas`
    (ascending, above 0) and `RESPONSE_NAMES`; NaN where a measurement is not finite.
    """

    sigmas: Mapping[str, FloatArray]
    seeds: NDArray[np.int64]
    values: Mapping[str, FloatArray]

    def of(self, label: str, response: str) -> FloatArray:
        """One response of one class, [seeds, sigmas]."""
        return self.values[label][:, :, RESPONSE_NAMES.index(response)]


def merge(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Put shards together in canonical order: class, σ, seed, sign.

    The result does not depend on how the sweep was sharded nor on the shards' order. A class
    without units has no rows; every other has the full grid of its σ × seed × sign.

    Args:
        frames: tables with the columns of `RESPONSES`; empty ones are shards of empty classes.

    Raises:
        ArtifactError: no rows, an unknown class, a measurement made twice or missing, a seed
            with two draws of the partition, or shards measured on different models.
    """
    filled = [frame for frame in frames if len(frame)]
    if not filled:
        raise ArtifactError("the shards hold no responses: no class of the partition has units")
    merged = pd.concat(filled, ignore_index=True)
    unknown = sorted(set(merged["class"]) - set(CLASSES))
    if unknown:
        raise ArtifactError(f"unknown class {unknown[0]!r}; classes are {', '.join(CLASSES)}")
    order = merged["class"].map(CLASSES.index)
    merged = (
        merged.assign(_order=order)
        .sort_values(["_order", "sigma", "seed", "sign"])
        .drop(columns="_order")
        .reset_index(drop=True)
    )
    _refuse_duplicates(merged)
    _refuse_holes(merged)
    _refuse_mixtures(merged)
    return merged


def baseline(frame: pd.DataFrame) -> dict[str, float]:
    """The unperturbed model's ppl, auc, auc_min_k and loss_gap, as the rows imply them."""
    return {str(name): float(values.median()) for name, values in _baselines(frame).items()}


def trajectories(frame: pd.DataFrame) -> Trajectories:
    """Responses over σ > 0 by class and seed, the mean over rows of both signs.

    The mean of ±z cancels the odd orders in σ. It is NaN where any of its rows is not finite.

    Raises:
        ArtifactError: no σ above 0.
    """
    frame = frame[frame["sigma"] > 0]
    seeds = np.sort(frame["seed"].unique())
    if frame.empty:
        raise ArtifactError("the responses hold no σ above 0; give the sweep some")
    values, scales = {}, {}
    for label in [label for label in CLASSES if (frame["class"] == label).any()]:
        rows = frame[frame["class"] == label]
        sigmas = scales[label] = np.sort(rows["sigma"].unique()).astype(np.float64)
        measured = rows[list(RESPONSE_NAMES)].replace([np.inf, -np.inf], np.nan)
        groups = measured.groupby([rows["seed"], rows["sigma"]])
        complete = groups.count().eq(groups.size(), axis=0)
        grid = pd.MultiIndex.from_product([seeds, sigmas])
        means = groups.mean().where(complete).reindex(grid)
        values[label] = means.to_numpy(np.float64).reshape(len(seeds), len(sigmas), -1)
    return Trajectories(scales, seeds.astype(np.int64), values)


def _baselines(frame: pd.DataFrame) -> pd.DataFrame:
    with np.errstate(all="ignore"):
        ppl = frame["ppl"] / np.exp(frame["delta_log_ppl"])
    return pd.DataFrame(
        {
            "ppl": ppl,
            "auc": frame["auc"] - frame["delta_auc"],
            "auc_min_k": frame["auc_min_k"] - frame["delta_auc_min_k"],
            "loss_gap": frame["loss_gap"] - frame["delta_loss_gap"],
        }
    )


def _refuse_duplicates(frame: pd.DataFrame) -> None:
    twice = frame[frame.duplicated(KEY)]
    if len(twice):
        raise ArtifactError(
            f"{_name(twice[KEY].iloc[0])} is measured twice; give each shard once, and no two"
            " shards the same piece"
        )


def _refuse_holes(frame: pd.DataFrame) -> None:
    seeds = range(int(frame["seed"].max()) + 1)
    present = set(frame[KEY].itertuples(index=False, name=None))
    for label in [label for label in CLASSES if (frame["class"] == label).any()]:
        sigmas = sorted(set(frame.loc[frame["class"] == label, "sigma"]))
        expected = list(product([label], sigmas, seeds, SIGNS))
        missing = [key for key in expected if key not in present]
        if missing:
            raise ArtifactError(
                f"{len(missing)} of {len(expected)} measurements are missing, the first:"
                f" {_name(missing[0])}; give the shards that hold them"
            )


def _refuse_mixtures(frame: pd.DataFrame) -> None:
    draws = frame.groupby("seed")["draw"].nunique()
    if (draws > 1).any():
        raise ArtifactError(
            f"seed {draws.idxmax()} has several draws of the partition; rerun its shards on one"
        )
    ppl = _baselines(frame)["ppl"].replace(np.inf, np.nan)
    if ppl.max() - ppl.min() > BASELINE_TOLERANCE * ppl.max():
        raise ArtifactError(
            f"the shards' unperturbed perplexities run from {ppl.min():.6g} to {ppl.max():.6g}:"
            " they were measured on different models or text; rerun them on one"
        )


def _name(key: Sequence[object] | pd.Series) -> str:
    label, sigma, seed, sign = key
    return f"class {label}, σ {sigma:g}, seed {seed}, sign {sign:+d}"
