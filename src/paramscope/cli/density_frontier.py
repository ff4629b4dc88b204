"""Figure `density_frontier`: perplexity over density, after pruning and after finetuning."""

from pathlib import Path
from typing import Annotated

from typer import Option

from paramscope.cli.options import Output


def density_frontier(
    output: Output,
    frontier: Annotated[Path, Option(help="Table of all runs' frontier.")],
    record: Annotated[Path, Option(help="The study's record, results.json.")],
    model: Annotated[str, Option(help="Name of the model, for the title.")],
) -> None:
    """Draw perplexity over density, after pruning and after finetuning: PNG and PDF."""
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import read_record
    from paramscope.artifacts.tables import read_table
    from paramscope.figures.density_frontier import density_frontier as draw
    from paramscope.figures.saving import any_synthetic, save

    baseline = float(read_record(record)["dense"]["evaluation"])
    made_by = provenance("cli.density_frontier", arguments, synthetic=any_synthetic([frontier]))
    save(draw(read_table(frontier), baseline, model), output, made_by)
    print(f"{output} and {output.with_suffix('.pdf')}")
