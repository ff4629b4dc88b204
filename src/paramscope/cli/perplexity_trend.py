"""Figure `perplexity_trend`: perplexity by epoch, a panel a density."""

from pathlib import Path
from typing import Annotated

from typer import Option

from paramscope.cli.options import Output


def perplexity_trend(
    output: Output,
    epochs: Annotated[Path, Option(help="Table of all runs' epochs.")],
    record: Annotated[Path, Option(help="The study's record, results.json.")],
    model: Annotated[str, Option(help="Name of the model, for the title.")],
) -> None:
    """Draw perplexity by epoch, a panel a density: PNG and PDF."""
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import read_record
    from paramscope.artifacts.tables import read_table
    from paramscope.figures.perplexity_trend import perplexity_trend as draw
    from paramscope.figures.pruned import by_run
    from paramscope.figures.saving import any_synthetic, save

    baseline = float(read_record(record)["dense"]["evaluation"])
    made_by = provenance("cli.perplexity_trend", arguments, synthetic=any_synthetic([epochs]))
    save(draw(by_run(read_table(epochs)), baseline, model), output, made_by)
    print(f"{output} and {output.with_suffix('.pdf')}")
