"""Figure `separation`: separation scores by rule, against random partitions."""

from pathlib import Path
from typing import Annotated

from typer import Option

from paramscope.cli.options import Output


def separation(
    output: Output,
    statistics: Annotated[
        list[Path], Option(help="Statistics of one rule; repeat for more rules.")
    ],
    model: Annotated[str, Option(help="Name of the model, for the title.")],
) -> None:
    """Draw S by rule with its interval and the null band: PNG, and PDF beside it."""
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import read_record
    from paramscope.figures.saving import any_synthetic, save
    from paramscope.figures.separation import separation as draw

    synthetic = any_synthetic(statistics)
    made_by = provenance("cli.separation", arguments, synthetic=synthetic)
    save(draw([read_record(path) for path in statistics], model), output, made_by)
    print(f"{output} and {output.with_suffix('.pdf')}")
