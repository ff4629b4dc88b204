"""Each weight on its own: what noise in it costs and takes, beside what curvature foretold.

Noise goes into one weight (with its bias) at a time, at the scale where curvature foretells a
rise of log perplexity by `AIM`; no search is needed, and how far the measurement is from the
aim is how good the prediction is.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from transformers import PreTrainedModel

from paramscope.geometry.sparsity import unit_layers
from paramscope.names import block_number
from paramscope.response.classes import ClassSet
from paramscope.response.noise import NoiseSource, UnitSet
from paramscope.response.sweep import Curvature

AIM = 0.01  # nats a token
LARGEST = 8.0  # scale at most, in units of a tensor's RMS: some tensors matter to nothing
CLOSE = 0.25  # a prediction within this share of the measurement is close
TENSOR_RESPONSES = pa.schema(
    [
        pa.field("tensor", pa.string(), nullable=False),
        pa.field("layer", pa.int16(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("n_parameters", pa.int64(), nullable=False),
        pa.field("sigma", pa.float64(), nullable=False),
        pa.field("n_seeds", pa.int32(), nullable=False),
        pa.field("predicted_delta_log_ppl", pa.float64(), nullable=False),
        pa.field("predicted_delta_log_ppl_se", pa.float64(), nullable=False),
        *(
            pa.field(f"{response}{error}", pa.float64())
            for response in ("delta_log_ppl", "delta_auc", "delta_loss_gap")
            for error in ("", "_se")
        ),
    ]
)


class TensorClasses:
    """Every weight of the linear layers, with its bias, as a class of its own; one draw."""

    draws = 1

    def __init__(self, model: PreTrainedModel) -> None:
        names = [f"{layer}.weight" for layer in unit_layers(model)]
        self.sets = {name: UnitSet.named(model, [name]) for name in names}
        self.labels = tuple(names)

    def of(self, draw: int) -> Mapping[str, ClassSet]:
        """The weights, by name."""
        return self.sets


def foretold_scales(
    classes: TensorClasses, source: NoiseSource, curvature: Curvature
) -> dict[str, list[float]]:
    """The σ of each weight at which log perplexity should rise by `AIM`."""
    found = {}
    for name, units in classes.sets.items():
        change, _ = units.predicted(source, curvature.diagonal, curvature.standard_error)
        sigma = math.sqrt(AIM / change) if change > 0 else LARGEST
        found[name] = [min(sigma, LARGEST)]
    return found


def tensor_table(responses: pd.DataFrame) -> pd.DataFrame:
    """A row a weight, of the schema `TENSOR_RESPONSES`: means over noise seeds, with errors.

    Args:
        responses: of a sweep over `TensorClasses`; the replicate is the mean of ±z of a seed.
    """
    rows = []
    for tensor, frame in responses.groupby("class", sort=False):
        by_seed = frame.groupby("seed")[["delta_log_ppl", "delta_auc", "delta_loss_gap"]].mean()
        n = len(by_seed)
        row: dict[str, Any] = {
            "tensor": tensor,
            "layer": block_number(str(tensor)),
            "kind": str(tensor).removesuffix(".weight").rpartition(".")[2],
            "n_parameters": int(frame["n_parameters"].iloc[0]),
            "sigma": float(frame["sigma"].iloc[0]),
            "n_seeds": n,
            "predicted_delta_log_ppl": float(frame["predicted_delta_log_ppl"].mean()),
            "predicted_delta_log_ppl_se": float(frame["predicted_delta_log_ppl_se"].mean()),
        }
        for response, values in by_seed.items():
            row[str(response)] = float(values.mean())
            row[f"{response}_se"] = float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Foresight:
    """How good the prediction is over weights.

    Attributes:
        n: weights.
        close: share of them whose prediction is within `CLOSE` of the measurement.
        median_ratio: of predicted over measured.
    """

    n: int
    close: float
    median_ratio: float


def foresight(table: pd.DataFrame) -> Foresight:
    """Over the rows of a table of the schema `TENSOR_RESPONSES`."""
    ratio = (table["predicted_delta_log_ppl"] / table["delta_log_ppl"]).to_numpy(np.float64)
    close = np.abs(ratio - 1) <= CLOSE
    return Foresight(len(ratio), float(close.mean()), float(np.median(ratio)))
