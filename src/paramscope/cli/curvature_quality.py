"""Figure `curvature_quality`: the curvature's estimate beside exact entries."""

from pathlib import Path
from typing import Annotated

from typer import Option

from paramscope.cli.options import Output


def curvature_quality(
    output: Output,
    spotcheck: Annotated[Path, Option(help="Table of estimates beside exact entries.")],
    spotcheck_draws: Annotated[Path, Option(help="Table of errors by group of draws.")],
    quality: Annotated[Path, Option(help="Record of the spot check.")],
    model: Annotated[str, Option(help="Name of the model, for the title.")],
) -> None:
    """Draw the estimate against exact G and H, and its error: PNG, and PDF beside it."""
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import read_record
    from paramscope.artifacts.tables import read_table
    from paramscope.figures.curvature_errors import GROUPS
    from paramscope.figures.curvature_quality import CHECKED
    from paramscope.figures.curvature_quality import curvature_quality as draw
    from paramscope.figures.saving import any_synthetic, save

    synthetic = any_synthetic([spotcheck, spotcheck_draws, quality])
    made_by = provenance("cli.curvature_quality", arguments, synthetic=synthetic)
    figure = draw(
        checked=read_table(spotcheck, CHECKED),
        groups=read_table(spotcheck_draws, GROUPS),
        quality=read_record(quality),
        model=model,
    )
    save(figure, output, made_by)
    print(f"{output} and {output.with_suffix('.pdf')}")
