"""Figure `layer_sparsity`: the share of zeros by block, asked against got."""

from pathlib import Path
from typing import Annotated

from typer import Option

from paramscope.cli.options import Output


def layer_sparsity(
    output: Output,
    layers: Annotated[Path, Option(help="Table of all runs' layers.")],
    model: Annotated[str, Option(help="Name of the model, for the title.")],
) -> None:
    """Draw the share of zeros by block, asked against got: PNG and PDF."""
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.tables import read_table
    from paramscope.figures.layer_sparsity import layer_sparsity as draw
    from paramscope.figures.pruned import by_run
    from paramscope.figures.saving import any_synthetic, save

    made_by = provenance("cli.layer_sparsity", arguments, synthetic=any_synthetic([layers]))
    save(draw(by_run(read_table(layers)), model), output, made_by)
    print(f"{output} and {output.with_suffix('.pdf')}")
