"""Stage `units`: every unit with its features."""

from pathlib import Path
from typing import Annotated

from typer import Argument

from paramscope.cli.options import ModelFolder, Output


def units(
    model: ModelFolder,
    diagonal: Annotated[Path, Argument(help="Diagonal of the curvature, diagonal.pt.")],
    sparsity: Annotated[Path, Argument(help="Table of activation sparsity.")],
    eigenspace: Annotated[Path, Argument(help="Leading eigenpairs, eigenspace.pt.")],
    output: Output,
) -> None:
    """Gather what curvature, activations, eigenspace and weights say of each unit."""
    arguments = dict(locals())
    import torch

    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.tables import read_table, write_table
    from paramscope.artifacts.tensors import read_tensors
    from paramscope.geometry.features import UNITS
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
    )
    made_by = provenance("cli.units", arguments)
    write_table(output, table, UNITS, made_by)
    print(f"{len(table)} units of {table['n_parameters'].sum():,} parameters in {output}")
