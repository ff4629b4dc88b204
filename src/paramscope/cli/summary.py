"""Stage `summary`: perplexities of one compression in plain lines."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def summary(
    folder: Annotated[
        Path, Argument(help="Folder METHOD/density-DENSITY, with epochs.parquet, evaluation.json.")
    ],
    model: Annotated[str, Option(help="Name of the model.")] = "model",
) -> None:
    """Print baseline, pruned, final and best perplexity and their trend; write summary.txt."""
    from paramscope.artifacts.atomic import atomic
    from paramscope.artifacts.records import read_record
    from paramscope.artifacts.tables import read_table
    from paramscope.compression.runs import run_of
    from paramscope.compression.summary import summary as summarise

    method, density = run_of(folder)
    evaluated = read_record(folder / "evaluation.json")
    found = summarise(read_table(folder / "epochs.parquet"), evaluated["dense"]["evaluation"])
    text = found.text(model, method, density)
    with atomic(folder / "summary.txt") as partial:
        partial.write_text(text, encoding="utf-8")
    print(text, end="")
