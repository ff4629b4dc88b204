"""Figure `curvature_by_layer`: curvature over depth and kinds of tensor."""

from pathlib import Path
from typing import Annotated

from typer import Option

from paramscope.cli.options import Output


def curvature_by_layer(
    output: Output,
    summary: Annotated[Path, Option(help="Table of the curvature of each tensor.")],
    model: Annotated[str, Option(help="Name of the model, for the title.")],
) -> None:
    """Draw curvature by layer and kind, and shares of its trace: PNG, and PDF beside it."""
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.tables import read_table
    from paramscope.figures.curvature_by_layer import SUMMARY
    from paramscope.figures.curvature_by_layer import curvature_by_layer as draw
    from paramscope.figures.saving import any_synthetic, save

    synthetic = any_synthetic([summary])
    made_by = provenance("cli.curvature_by_layer", arguments, synthetic=synthetic)
    save(draw(read_table(summary, SUMMARY), model), output, made_by)
    print(f"{output} and {output.with_suffix('.pdf')}")
