"""Command `memory_regression`: fail where a variant needs more memory than it did."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def memory_regression(
    baseline: Annotated[Path, Argument(help="Profile to compare with.")],
    new: Annotated[Path, Argument(help="Profile of the same variant and workload, made now.")],
    tolerance: Annotated[
        str, Option(help="Growth of a part or of the total that is let pass: 2% or 0.02.")
    ] = "2%",
) -> None:
    """Compare two profiles part by part; exit 1 and name the parts that grew, 0 if none did."""
    from paramscope.artifacts.records import read_record
    from paramscope.dpsgd.regression import check, compare, text, tolerance_of

    allowed = tolerance_of(tolerance)
    now = read_record(new)
    changes = compare(read_record(baseline), now, allowed)
    print(text(changes), end="", flush=True)
    check(changes, now, allowed)
