"""Figure `benchmark_curvature`: what estimators of the curvature cost and give."""

from pathlib import Path
from typing import Annotated

from typer import Option

from paramscope.cli.options import Output


def benchmark_curvature(
    output: Output,
    runs: Annotated[Path, Option(help="Table of the benchmark's runs.")],
    summary: Annotated[Path, Option(help="Table of the benchmark's contenders.")],
    model: Annotated[str, Option(help="What the runs were on, for the title.")] = "",
) -> None:
    """Draw accuracy over cost, and peak memory, of each contender: PNG, and PDF beside it."""
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.tables import read_table
    from paramscope.figures.benchmark_curvature import RUNS, SUMMARY
    from paramscope.figures.benchmark_curvature import benchmark_curvature as draw
    from paramscope.figures.saving import any_synthetic, save

    synthetic = any_synthetic([runs, summary])
    made_by = provenance("cli.benchmark_curvature", arguments, synthetic=synthetic)
    save(draw(read_table(runs, RUNS), read_table(summary, SUMMARY), model), output, made_by)
    print(f"{output} and {output.with_suffix('.pdf')}")
