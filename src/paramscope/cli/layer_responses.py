"""Figure `layer_responses`: what noise in each weight costs and takes, by layer."""

from pathlib import Path
from typing import Annotated

from typer import Option

from paramscope.cli.options import Output


def layer_responses(
    output: Output,
    responses: Annotated[Path, Option(help="Table of responses to noise in each weight.")],
    model: Annotated[str, Option(help="Name of the model, for the title.")],
) -> None:
    """Draw measured against predicted cost, and what noise takes, by layer: PNG and PDF."""
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.tables import read_table
    from paramscope.figures.layer_responses import COLUMNS
    from paramscope.figures.layer_responses import layer_responses as draw
    from paramscope.figures.saving import any_synthetic, save

    synthetic = any_synthetic([responses])
    made_by = provenance("cli.layer_responses", arguments, synthetic=synthetic)
    save(draw(read_table(responses, COLUMNS), model), output, made_by)
    print(f"{output} and {output.with_suffix('.pdf')}")
