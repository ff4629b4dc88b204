"""Stage `partition`: a class for every unit."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from paramscope.cli.options import Output, Seed


def partition(
    units: Annotated[Path, Argument(help="Table of units with their features.")],
    output: Output,
    rule: Annotated[
        str,
        Option(
            help="origin, origin_quantile, curvature, contrast, gate, loss_gap, or a control: "
            "random, random_tensor."
        ),
    ] = "curvature",
    like: Annotated[Path | None, Option(help="Partition whose labels a control permutes.")] = None,
    draws: Annotated[int, Option(help="Draws of a control, 5 or more.")] = 20,
    seed: Seed = 0,
) -> None:
    """Give every unit a class, W_func, W_sens or W_both, by a rule on its features."""
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.tables import read_table, read_table_provenance, write_table
    from paramscope.geometry.partition import PARTITION, counts, label_units

    inputs = [units] if like is None else [units, like]
    synthetic = any(bool(read_table_provenance(path)["synthetic"]) for path in inputs)
    made_by = provenance("cli.partition", arguments, synthetic=synthetic)
    reference = None if like is None else read_table(like, PARTITION.names)
    labelled = label_units(read_table(units), rule, like=reference, draws=draws, seed=seed)
    write_table(output, labelled, PARTITION, made_by)
    found = ", ".join(f"{label} {n}" for label, n in counts(labelled).items())
    print(f"{found} by rule {rule} in {output}")
