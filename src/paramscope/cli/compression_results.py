"""Stage `compression_results`: all runs of a compression study in three tables and a record."""

from pathlib import Path
from typing import Annotated

from typer import Option

from paramscope.cli.options import OutputFolder


def compression_results(
    output: OutputFolder,
    run: Annotated[
        list[Path],
        Option(help="Folder METHOD/density-DENSITY of a run that is done; repeat for more."),
    ],
    model: Annotated[str, Option(help="Name of the model.")],
) -> None:
    """Gather the runs: epochs, layers and the frontier as tables, results.json and table.tex."""
    arguments = dict(locals())
    import pandas as pd

    from paramscope.artifacts.atomic import atomic
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import read_record, write_record
    from paramscope.artifacts.tables import read_table, write_table
    from paramscope.compression.frontier import FRONTIER, frontier, of_runs
    from paramscope.compression.runs import run_of
    from paramscope.compression.schemas import EPOCHS, LAYERS
    from paramscope.compression.summary import latex, summary

    folders = {run_of(folder): folder for folder in run}
    evaluated = {key: read_record(folder / "evaluation.json") for key, folder in folders.items()}
    epochs = {key: read_table(folder / "epochs.parquet") for key, folder in folders.items()}
    layers = {
        key: read_table(folder / "pruned" / "layers.parquet") for key, folder in folders.items()
    }
    points, baseline = frontier(evaluated)
    summaries = {key: summary(rows, baseline) for key, rows in epochs.items()}
    made_by = provenance("cli.compression_results", arguments)
    with atomic(output) as partial:
        partial.mkdir()
        for name, tables, own in (("epochs", epochs, EPOCHS), ("layers", layers, LAYERS)):
            table, schema = of_runs(tables, own)
            write_table(partial / f"{name}.parquet", table, schema, made_by)
        write_table(partial / "frontier.parquet", points, FRONTIER, made_by)
        record = {
            "model": model,
            "dense": next(iter(evaluated.values()))["dense"],
            "runs": [
                {"method": method, "density": density}
                | {k: evaluated[method, density][k] for k in ("pruned", "finetuned", "shape")}
                for method, density in evaluated
            ],
        }
        write_record(partial / "results.json", record, made_by)
        (partial / "table.tex").write_text(latex(summaries), encoding="utf-8")
    told = points.sort_values(["density", "perplexity_finetuned"])
    with pd.option_context("display.float_format", "{:,.2f}".format):
        print(told[["density", "method", "perplexity_pruned", "perplexity_finetuned"]].to_string(
            index=False))  # fmt: skip
