"""Figure `statistical_summary`: differences between classes, and separation scores."""

from pathlib import Path
from typing import Annotated

from typer import Option

from paramscope.cli.options import Output


def statistical_summary(
    output: Output,
    statistics: Annotated[
        list[Path], Option(help="Statistics of one rule; repeat for more rules.")
    ],
    model: Annotated[str, Option(help="Name of the model, for the title.")],
) -> None:
    """Draw effect sizes with corrected p, and separation scores: PNG, and PDF beside it."""
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import read_record
    from paramscope.figures.saving import any_synthetic, save
    from paramscope.figures.statistical_summary import statistical_summary as draw

    synthetic = any_synthetic(statistics)
    made_by = provenance("cli.statistical_summary", arguments, synthetic=synthetic)
    save(draw([read_record(path) for path in statistics], model), output, made_by)
    print(f"{output} and {output.with_suffix('.pdf')}")
