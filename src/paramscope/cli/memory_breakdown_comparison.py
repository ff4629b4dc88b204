"""Figure `memory_breakdown_comparison`: what memory holds at the peak, by variant."""

from pathlib import Path
from typing import Annotated

from typer import Option

from paramscope.cli.options import Output


def memory_breakdown_comparison(
    output: Output,
    profile: Annotated[list[Path], Option(help="Profile of one variant; repeat for more.")],
    workload: Annotated[str, Option(help="Name of the workload that all were profiled on.")],
) -> None:
    """Draw the parts of each variant's peak and what differs from vanilla's: PNG and PDF."""
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import read_record
    from paramscope.figures.memory_breakdown_comparison import memory_breakdown_comparison as draw
    from paramscope.figures.saving import any_synthetic, save

    made_by = provenance(
        "cli.memory_breakdown_comparison", arguments, synthetic=any_synthetic(profile)
    )
    save(draw([read_record(path) for path in profile], workload), output, made_by)
    print(f"{output} and {output.with_suffix('.pdf')}")
