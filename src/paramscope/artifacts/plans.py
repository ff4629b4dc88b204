"""The plan's table, a row a model, strategy and device: its schema, its checks, what to take.

A row's state says whether the strategy fits the device: `fits`, as it was asked for; `mended`,
with the change in `mend`; `tight`, only within the margin that a plan leaves free, with the
change in `mend`, which is empty where none is needed; `no`.

What a strategy takes is in float64: whole bytes up to 9 PB, and a full Hessian can have more
than int64 holds (28 EB for OPT-2.7B).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import pyarrow as pa

from paramscope.artifacts.tables import read_table
from paramscope.errors import ArtifactError
from paramscope.names import DPSGD_PARTS

PART_COLUMNS: Mapping[str, str] = MappingProxyType(
    {part: f"{part.replace(' ', '_')}_bytes" for part in DPSGD_PARTS}
)
STATES = ("fits", "mended", "tight", "no")  # the best first
CHANGED = ("mended", "tight")  # states that have a mend and what it takes
CLOSED_FORM = "closed form"  # of the column `how`: a matrix that nothing runs
ROUNDING = 2.0**-52  # of a float64: below 4 PB less than a byte
KEYS = ["model", "strategy", "device"]
ASKED = ("dtype", "batch", "length")  # of all rows alike

PLAN = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("parameters", pa.int64(), nullable=False),
        pa.field("strategy", pa.string(), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),
        pa.field("batch", pa.int32(), nullable=False),
        pa.field("length", pa.int32(), nullable=False),
        pa.field("device", pa.string(), nullable=False),
        pa.field("device_kind", pa.string(), nullable=False),  # cpu, wsl or cuda
        pa.field("memory_bytes", pa.int64(), nullable=False),
        pa.field("held_bytes", pa.int64(), nullable=False),  # by the system, beside the run
        pa.field("usable_bytes", pa.int64(), nullable=False),  # memory - held - margin
        pa.field("peak_bytes", pa.float64(), nullable=False),  # live tensors
        pa.field("extra_bytes", pa.float64(), nullable=False),  # known terms beside the tensors
        pa.field("total_bytes", pa.float64(), nullable=False),  # peak + extra
        *(pa.field(column, pa.float64(), nullable=False) for column in PART_COLUMNS.values()),
        pa.field("operation", pa.string(), nullable=False),  # that made the peak
        pa.field("phase", pa.string(), nullable=False),  # that it fell in
        pa.field("how", pa.string(), nullable=False),  # full, extrapolated or closed form
        pa.field("state", pa.string(), nullable=False),
        pa.field("mend", pa.string()),  # options as typed
        pa.field("mended_bytes", pa.float64()),  # the total with them
    ]
)
TASKS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {  # strategies of a task: the fastest first, of pruning the one that keeps most
        "evaluation": ("inference",),
        "curvature": ("ggn", "hutchinson"),
        "pruning": ("prune-sparsegpt", "prune-wanda", "prune-magnitude"),
        "finetuning": ("masked_finetune",),
        "training": ("training",),
        "private training": (
            *("dpsgd-bk", "dpsgd-flash", "dpsgd-ghost", "dpsgd-per_layer", "dpsgd-micro"),
        ),
    }
)


def plan_rows(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Records of all columns, a row each, in the schema's types; bytes may be any integers.

    Raises:
        ArtifactError: as `checked`.
    """
    rows = pd.DataFrame(list(records))
    floats = [field.name for field in PLAN if pa.types.is_floating(field.type)]
    for name in rows.columns.intersection(floats):
        rows[name] = [None if value is None else float(value) for value in rows[name]]
        rows[name] = rows[name].astype(float)
    return checked(rows)


def read_plan(path: Path) -> pd.DataFrame:
    """A plan's rows, checked.

    Raises:
        ArtifactError: as `read_table` and `checked`.
    """
    return checked(read_table(path, PLAN.names))


def checked(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows as they are.

    Raises:
        ArtifactError: no rows, a column missing, two rows of one model, strategy and device,
            rows asked for otherwise than others, or one that is at odds with itself.
    """
    missing = [name for name in PLAN.names if name not in rows.columns]
    if missing:
        raise ArtifactError(f"not a plan: lacks the column(s) {', '.join(missing)}")
    if rows.empty:
        raise ArtifactError("the plan has no rows; name a model, a strategy and a device")
    twice = rows[rows.duplicated(KEYS)]
    if len(twice):
        raise ArtifactError(f"the plan has two rows of {_called(twice.iloc[0])}; make it anew")
    _refuse_mixed(rows)
    for what, wrong in _flaws(rows).items():
        if wrong.any():
            row = rows[wrong].iloc[0]
            raise ArtifactError(
                f"the plan's row of {_called(row)} (state {row['state']}): {what}; make it anew"
            )
    return rows


def recommended(rows: pd.DataFrame, task: str) -> pd.Series | None:
    """Of one model's and device's rows, the one to take for a task of `TASKS`.

    That is the first strategy in the task's order that fits; else the first that does when
    mended, else the first that is tight. None where none does, or none was planned for.

    Raises:
        ArtifactError: rows of several models or devices.
    """
    if len(rows[["model", "device"]].drop_duplicates()) > 1:
        raise ArtifactError("a recommendation is of one model on one device; give its rows alone")
    for state in STATES[:-1]:
        for strategy in TASKS[task]:
            found = rows[(rows["strategy"] == strategy) & (rows["state"] == state)]
            if len(found):
                return found.iloc[0]
    return None


def taken_bytes(row: pd.Series) -> int:
    """What a row takes in its state: with its mend where it has one."""
    return int(row["mended_bytes"] if row["state"] in CHANGED else row["total_bytes"])


def _refuse_mixed(rows: pd.DataFrame) -> None:
    """Refuse rows that say different things of one device, one model, or of what was asked."""
    memory = ["device_kind", "memory_bytes", "held_bytes", "usable_bytes"]
    for of, columns in (("device", memory), ("model", ["parameters"])):
        told = rows[[of, *columns]].drop_duplicates()
        twice = told[told.duplicated(of)]
        if len(twice):
            name = twice[of].iloc[0]
            raise ArtifactError(f"the plan's rows differ in what {of} {name} is; make it anew")
    for column in ASKED:
        values = rows[column].unique()
        if len(values) > 1:
            raise ArtifactError(
                f"the plan's rows differ in {column}: {', '.join(map(str, values))}; "
                "make it anew, all with one"
            )


def _flaws(rows: pd.DataFrame) -> dict[str, "pd.Series[bool]"]:
    """Rows at odds with themselves, by what is wrong with them."""
    state, usable, total = rows["state"], rows["usable_bytes"], rows["total_bytes"]
    free = rows["memory_bytes"] - rows["held_bytes"]
    changed, mended = state.isin(CHANGED), rows["mended_bytes"]
    return {
        f"a state is one of {', '.join(STATES)}": ~state.isin(STATES),
        "its parts don't add up to its peak": (
            rows[list(PART_COLUMNS.values())].sum(axis=1) != rows["peak_bytes"]
        ),
        "its total is not peak and extra": (
            (rows["peak_bytes"] + rows["extra_bytes"] - total).abs() > total * ROUNDING
        ),
        "more is usable than its memory less what is held": usable > free.clip(lower=0),
        "it fits where its total is within what is usable": (total <= usable) != (state == "fits"),
        "a mend and its bytes are of states mended and tight, and of no other": (
            (changed != rows["mend"].notna()) | (changed != mended.notna())
        ),
        "it is mended where that is within what is usable": (
            (state == "mended") & ~(mended <= usable)
        ),
        "it is tight between what is usable and memory less what is held": (
            (state == "tight") & ~((mended > usable) & (mended <= free))
        ),
    }


def _called(row: pd.Series) -> str:
    return ", ".join(str(row[key]) for key in KEYS)
