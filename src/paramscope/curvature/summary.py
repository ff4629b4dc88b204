"""The curvature of each tensor in a row."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pyarrow as pa
from torch import Tensor

from paramscope.names import block_number

SUMMARY = pa.schema(
    [
        pa.field("tensor", pa.string(), nullable=False),
        pa.field("layer", pa.int16(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("role", pa.string(), nullable=False),
        pa.field("n", pa.int64(), nullable=False),
        pa.field("draws", pa.int32(), nullable=False),
        pa.field("mean", pa.float64(), nullable=False),
        pa.field("min", pa.float64(), nullable=False),
        pa.field("q05", pa.float64(), nullable=False),
        pa.field("median", pa.float64(), nullable=False),
        pa.field("q95", pa.float64(), nullable=False),
        pa.field("max", pa.float64(), nullable=False),
        pa.field("se_mean", pa.float64()),
        pa.field("relative_se", pa.float64()),
        pa.field("fraction_negative", pa.float64(), nullable=False),
        pa.field("fraction_zero", pa.float64(), nullable=False),
    ]
)


def summarize(
    diagonal: Mapping[str, Tensor], standard_error: Mapping[str, Tensor], draws: int
) -> pd.DataFrame:
    """A row a tensor, of the schema `SUMMARY`.

    `layer` is the block's number, −1 outside the blocks, `kind` the module's own name, `role`
    weight or bias; `q05` and the like are quantiles over entries.
    `se_mean` is the mean standard error of the tensor's entries, `relative_se` that over their
    mean; both are missing for a single draw. Single draws of a tied embedding can be negative
    (its cross term is drawn), and so can their mean: `fraction_negative` counts that.
    """
    rows = []
    for name, value in diagonal.items():
        entries, error = value.cpu().double(), standard_error[name].double()
        mean, se = float(entries.mean()), float(error.mean())
        low, median, high = np.quantile(entries.numpy(), [0.05, 0.5, 0.95]).tolist()
        module, _, role = name.rpartition(".")
        rows.append(
            {
                "tensor": name,
                "layer": block_number(name),
                "kind": module.rpartition(".")[2],
                "role": role,
                "n": entries.numel(),
                "draws": draws,
                "mean": mean,
                "min": float(entries.min()),
                "q05": low,
                "median": median,
                "q95": high,
                "max": float(entries.max()),
                "se_mean": None if np.isnan(se) else se,
                "relative_se": se / mean if mean > 0 and not np.isnan(se) else None,
                "fraction_negative": float((entries < 0).double().mean()),
                "fraction_zero": float((entries == 0).double().mean()),
            }
        )
    return pd.DataFrame(rows)
