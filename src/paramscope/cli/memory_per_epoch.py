"""Figure `memory_per_epoch`: memory by epoch."""

from pathlib import Path
from typing import Annotated

from typer import Option

from paramscope.cli.options import Output


def memory_per_epoch(
    output: Output,
    epochs: Annotated[Path, Option(help="Table of all runs' epochs.")],
    model: Annotated[str, Option(help="Name of the model, for the title.")],
) -> None:
    """Draw memory by epoch: PNG and PDF."""
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.tables import read_table
    from paramscope.figures.memory_per_epoch import memory_per_epoch as draw
    from paramscope.figures.pruned import by_run
    from paramscope.figures.saving import any_synthetic, save

    made_by = provenance("cli.memory_per_epoch", arguments, synthetic=any_synthetic([epochs]))
    save(draw(by_run(read_table(epochs)), model), output, made_by)
    print(f"{output} and {output.with_suffix('.pdf')}")
