"""The curvature of each tensor in a row."""

from collections.abc import Mapping

import pandas as pd
import pyarrow as pa
from torch import Tensor

SUMMARY = pa.schema(
    [
        pa.field("tensor", pa.string(), nullable=False),
        pa.field("n", pa.int64(), nullable=False),
        pa.field("draws", pa.int32(), nullable=False),
        pa.field("mean", pa.float64(), nullable=False),
        pa.field("min", pa.float64(), nullable=False),
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

    `se_mean` is the mean standard error of the tensor's entries, `relative_se` that over their
    mean; both are missing for a single draw. Single draws of a tied embedding can be negative
    (its cross term is drawn), and so can their mean: `fraction_negative` counts that.
    """
    rows = []
    for name, value in diagonal.items():
        entries, error = value.double(), standard_error[name].double()
        mean, se = float(entries.mean()), float(error.mean())
        rows.append(
            {
                "tensor": name,
                "n": entries.numel(),
                "draws": draws,
                "mean": mean,
                "min": float(entries.min()),
                "max": float(entries.max()),
                "se_mean": se,
                "relative_se": se / mean if mean > 0 else None,
                "fraction_negative": float((entries < 0).double().mean()),
                "fraction_zero": float((entries == 0).double().mean()),
            }
        )
    return pd.DataFrame(rows)
