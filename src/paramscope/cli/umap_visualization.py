"""Figure `umap_visualization`: the units in the UMAP plane."""

from pathlib import Path
from typing import Annotated

from typer import Option

from paramscope.cli.options import Output


def umap_visualization(
    output: Output,
    units: Annotated[Path, Option(help="Table of units with their features.")],
    embedding: Annotated[Path, Option(help="Table of the units' places and clusters.")],
    quality: Annotated[Path, Option(help="Record of the embedding's quality.")],
    partition: Annotated[
        Path, Option(help="Table of a class a unit; the rule is its file's name.")
    ],
    model: Annotated[str, Option(help="Name of the model, for the title.")],
) -> None:
    """Draw the units in the UMAP plane, by cluster and by class: PNG, and PDF beside it."""
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import read_record
    from paramscope.artifacts.tables import read_table
    from paramscope.figures.saving import any_synthetic, save
    from paramscope.figures.umap_visualization import umap_visualization as draw

    synthetic = any_synthetic([units, embedding, quality, partition])
    made_by = provenance("cli.umap_visualization", arguments, synthetic=synthetic)
    figure = draw(
        units=read_table(units, ["unit", "tensor", "layer"]),
        embedding=read_table(embedding, ["unit", "umap_x", "umap_y", "cluster"]),
        quality=read_record(quality),
        partition=read_table(partition, ["unit", "label", "draw"]),
        rule=partition.stem,
        model=model,
    )
    save(figure, output, made_by)
    print(f"{output} and {output.with_suffix('.pdf')}")
