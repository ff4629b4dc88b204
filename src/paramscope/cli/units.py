"""Stage `units`: every unit with its features."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from paramscope.cli.options import ModelFolder, Output


class Granularity(StrEnum):
    """What a unit is."""

    row = "row"
    tensor = "tensor"
    neuron = "neuron"


def units(
    model: ModelFolder,
    diagonal: Annotated[Path, Argument(help="Diagonal of the curvature, diagonal.pt.")],
    sparsity: Annotated[Path, Argument(help="Table of activation sparsity.")],
    eigenspace: Annotated[Path, Argument(help="Leading eigenpairs, eigenspace.pt.")],
    output: Output,
    membership: Annotated[
        Path | None,
        Option(help="Table of membership-features; without it gate, loss_gap, contrast are null."),
    ] = None,
    granularity: Annotated[
        Granularity, Option(help="A unit is an output row, a tensor, or an MLP's neuron.")
    ] = Granularity.row,
) -> None:
    """Gather what curvature, activations, eigenspace, weights and members say of each unit."""
    arguments = dict(locals())
    import torch

    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.tables import read_table, write_table
    from paramscope.artifacts.tensors import read_tensors
    from paramscope.geometry.features import UNITS
    from paramscope.geometry.membership import MEMBERSHIP
    from paramscope.geometry.units import units_table
    from paramscope.models.load import load_model

    curvature = read_tensors(diagonal)
    prefix = "standard_error/"
    table = units_table(
        load_model(model, torch.device("cpu")),
        {name: value for name, value in curvature.items() if not name.startswith(prefix)},
        {n.removeprefix(prefix): v for n, v in curvature.items() if n.startswith(prefix)},
        read_table(sparsity, ["unit", "sparsity"]),
        {n.removeprefix("vector/"): v for n, v in read_tensors(eigenspace).items()},
        None if membership is None else read_table(membership, MEMBERSHIP.names),
        granularity.value,
    )
    made_by = provenance("cli.units", arguments)
    write_table(output, table, UNITS, made_by)
    parameters = table["n_parameters"].sum()
    print(f"{len(table)} units ({granularity.value}) of {parameters:,} parameters in {output}")
