"""Figure `memory_timeline`: memory over one iteration."""

from pathlib import Path
from typing import Annotated

from typer import Option

from paramscope.cli.options import Output


def memory_timeline(
    output: Output,
    profile: Annotated[list[Path], Option(help="Profile of one variant; repeat for more.")],
    workload: Annotated[str, Option(help="Name of the workload that all were profiled on.")],
) -> None:
    """Draw memory by part over the operations of an iteration, a panel a variant: PNG and PDF."""
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import read_record
    from paramscope.figures.memory_timeline import memory_timeline as draw
    from paramscope.figures.saving import any_synthetic, save

    made_by = provenance("cli.memory_timeline", arguments, synthetic=any_synthetic(profile))
    save(draw([read_record(path) for path in profile], workload), output, made_by)
    print(f"{output} and {output.with_suffix('.pdf')}")
