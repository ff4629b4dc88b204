"""The tables that a compression study ends with."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import pyarrow as pa

from paramscope.errors import ArtifactError

Run = tuple[str, float]  # a method and a density
FRONTIER = pa.schema(
    [
        pa.field("method", pa.string(), nullable=False),
        pa.field("density", pa.float64(), nullable=False),
        pa.field("perplexity_pruned", pa.float64()),  # null where it is not finite
        pa.field("perplexity_finetuned", pa.float64()),
        pa.field("density_reached", pa.float64(), nullable=False),
        pa.field("overall_zeros", pa.float64(), nullable=False),
        pa.field("compact_bytes", pa.int64(), nullable=False),
        pa.field("dense_bytes", pa.int64(), nullable=False),
    ]
)
RUN = [
    pa.field("method", pa.string(), nullable=False),
    pa.field("of_density", pa.float64(), nullable=False),
]


def frontier(evaluated: Mapping[Run, Mapping[str, Any]]) -> tuple[pd.DataFrame, float]:
    """A row of `FRONTIER` a run, and the dense model's perplexity, from the runs' evaluations.

    Raises:
        ArtifactError: no run, or runs whose dense models differ, or have no finite perplexity.
    """
    baselines = {found["dense"]["evaluation"] for found in evaluated.values()}
    if len(baselines) != 1:
        raise ArtifactError(
            f"{len(baselines)} perplexities of the dense model in one study; rerun evaluate on one"
        )
    baseline = baselines.pop()
    if baseline is None:  # as evaluate writes what is not finite
        raise ArtifactError("the dense model's perplexity is not finite; mend the model")
    rows = [
        {
            "method": method,
            "density": density,
            "perplexity_pruned": found["pruned"]["evaluation"],
            "perplexity_finetuned": found["finetuned"]["evaluation"],
            "density_reached": found["shape"]["density"],
            "overall_zeros": found["shape"]["overall_zeros"],
            "compact_bytes": found["shape"]["compact_bytes"],
            "dense_bytes": found["shape"]["dense_bytes"],
        }
        for (method, density), found in evaluated.items()
    ]
    return pd.DataFrame(rows, columns=FRONTIER.names), float(baseline)


def of_runs(tables: Mapping[Run, pd.DataFrame], own: pa.Schema) -> tuple[pd.DataFrame, pa.Schema]:
    """The runs' tables, each of schema `own`, as one, with method and of_density before the rest.

    Raises:
        ArtifactError: no run.
    """
    if not tables:
        raise ArtifactError("no run to gather; give one or more")
    parts = [
        table.assign(method=method, of_density=density)
        for (method, density), table in tables.items()
    ]
    schema = pa.schema([*RUN, *own])
    return pd.concat(parts, ignore_index=True)[schema.names], schema
