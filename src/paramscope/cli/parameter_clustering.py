"""Figure `parameter_clustering`: the classes in feature space, by layer and by kind."""

from pathlib import Path
from typing import Annotated

from typer import Option

from paramscope.cli.options import Output


def parameter_clustering(
    output: Output,
    units: Annotated[Path, Option(help="Table of units with their features.")],
    partition: Annotated[
        Path, Option(help="Table of a class a unit; the rule is its file's name.")
    ],
    model: Annotated[str, Option(help="Name of the model, for the title.")],
) -> None:
    """Draw the classes' features and their shares of layers and kinds: PNG, PDF beside it."""
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.tables import read_table
    from paramscope.figures.parameter_clustering import FEATURES
    from paramscope.figures.parameter_clustering import parameter_clustering as draw
    from paramscope.figures.saving import any_synthetic, save

    synthetic = any_synthetic([units, partition])
    made_by = provenance("cli.parameter_clustering", arguments, synthetic=synthetic)
    figure = draw(
        units=read_table(units, ["unit", "tensor", "layer", "kind", *FEATURES]),
        partition=read_table(partition, ["unit", "label", "draw"]),
        rule=partition.stem,
        model=model,
    )
    save(figure, output, made_by)
    print(f"{output} and {output.with_suffix('.pdf')}")
