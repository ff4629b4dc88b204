"""Stage `dpsgd_results`: all profiles of a workload side by side."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def dpsgd_results(
    output: Annotated[
        Path, Argument(help="Folder to write profiles.parquet, summary.txt and table.tex in.")
    ],
    profile: Annotated[list[Path], Option(help="Profile of one variant; repeat for more.")],
    workload: Annotated[str, Option(help="Name of the workload that all were profiled on.")],
) -> None:
    """Gather the profiles of a workload: as a table, as text, and as a table for a paper."""
    arguments = dict(locals())
    from paramscope.artifacts.atomic import atomic
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import read_record
    from paramscope.artifacts.tables import write_table
    from paramscope.dpsgd.comparison import PROFILES, latex, summary, table

    profiles = [read_record(path) for path in profile]
    made_by = provenance("cli.dpsgd_results", arguments)
    rows, told = table(profiles, workload), summary(profiles, workload)
    write_table(output / "profiles.parquet", rows, PROFILES, made_by)
    with atomic(output / "summary.txt") as partial:
        partial.write_text(told, encoding="utf-8")
    with atomic(output / "table.tex") as partial:
        partial.write_text(latex(rows), encoding="utf-8")
    print(told, end="")
