"""Stage `eigenspace`: the Hessian's leading eigenpairs."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from paramscope.cli.options import (
    BatchSize,
    DeviceName,
    Dtype,
    DtypeName,
    Length,
    ModelFolder,
    Output,
    Seed,
    Threads,
)

if TYPE_CHECKING:
    from torch import Tensor

    from paramscope.artifacts.provenance import Provenance
    from paramscope.curvature.lanczos import LanczosState
    from paramscope.memory import Microbatch


class Basis(StrEnum):
    """Where Lanczos' basis is held."""

    device = "device"
    cpu = "cpu"


SAVE_EVERY = 5  # products between two saves of the basis
# What of its provenance a saved basis must share with the run that takes it up.
IDENTITY = ("parameters", "inputs", "code", "versions", "device")


def eigenspace(
    model: ModelFolder,
    calibration: Annotated[Path, Argument(help="Documents that the Hessian is taken over.")],
    output: Output,
    k: Annotated[int, Option(help="Eigenpairs, of largest magnitude.")] = 10,
    sequences: Annotated[int, Option(help="Documents, the first of the split.")] = 32,
    batch: BatchSize = 16,
    length: Length = 64,
    seed: Seed = 0,
    device: DeviceName = "auto",
    dtype: DtypeName = Dtype.float32,
    threads: Threads = 2,
    basis: Annotated[
        Basis, Option(help="Where the basis is, 2k + 10 vectors of the model's size.")
    ] = Basis.device,
) -> None:
    """Find the Hessian's leading eigenpairs by Lanczos, with their residuals.

    Writes `values` and `residuals`, [k], and the eigenvectors in the parameters' own shapes.
    On the way the basis is saved beside the output every few products; a run that was stopped
    goes on from there, to the same result, where nothing that it hangs on has changed.
    """
    arguments = dict(locals())
    from dataclasses import replace

    import torch

    from paramscope.artifacts.digest import seed_of
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.tensors import write_tensors
    from paramscope.cli.inputs import model_and_text
    from paramscope.cli.microbatches import microbatch_of
    from paramscope.curvature.lanczos import LanczosState, lanczos
    from paramscope.curvature.products import HessianProduct
    from paramscope.devices import DTYPES, describe_device
    from paramscope.memory import halved

    network, text, place = model_and_text(
        model,
        calibration,
        documents=sequences,
        length=length,
        device=device,
        dtype=dtype,
        threads=threads,
    )
    size = microbatch_of(arguments)
    product = HessianProduct(network, text, size)
    generator = torch.Generator().manual_seed(seed_of(seed, "eigenspace"))
    start = torch.randn(product.size, generator=generator).to(place)
    start = start.to(torch.promote_types(start.dtype, DTYPES[dtype]))
    made_by = provenance("cli.eigenspace", arguments, device=describe_device(place))
    partial = output.with_name(f"{output.stem}.partial.pt")

    def save(state: LanczosState) -> None:
        if len(state.alphas) % SAVE_EVERY == 0:
            by = replace(made_by, microbatch=halved(size))
            write_tensors(partial, _to_content(state), by)

    pairs = lanczos(
        product,
        start,
        k,
        basis_device=torch.device("cpu") if basis is Basis.cpu else None,
        checkpoint=save,
        resume=_saved(partial, made_by, size),
    )
    content = {f"vector/{name}": value for name, value in product.shaped(pairs.vectors).items()}
    write_tensors(
        output,
        {"values": pairs.values, "residuals": pairs.residuals, **content},
        replace(made_by, microbatch=halved(size)),
    )
    partial.unlink(missing_ok=True)
    shown = ", ".join(f"{value:.3g}" for value in pairs.values.tolist())
    print(f"eigenvalues {shown} in {output}; largest residual {float(pairs.residuals.max()):.2g}")


def _to_content(state: "LanczosState") -> "dict[str, Tensor | int]":
    """A Lanczos state as the flat content of a Torch file.

    The basis is not copied. On the CPU torch writes the whole storage of a view, so the file
    is as large as the full basis from the start.
    """
    import torch

    numbers = {"alphas": state.alphas, "betas": state.betas}
    tensors = {name: torch.tensor(x, dtype=torch.float64) for name, x in numbers.items()}
    return {"basis": state.basis, **tensors}


def _saved(partial: Path, made_by: "Provenance", size: "Microbatch") -> "LanczosState | None":
    """The state in the file `partial`, if the same work with the same code left it.

    Its sequences a forward are taken over, too.
    """
    from paramscope.artifacts.tensors import read_tensors, read_tensors_provenance
    from paramscope.curvature.lanczos import LanczosState
    from paramscope.errors import ArtifactError

    if not partial.is_file():
        return None
    try:
        described = read_tensors_provenance(partial)
        content = read_tensors(partial)
    except ArtifactError as error:
        print(f"starting anew: {error}")
        return None
    present = json.loads(made_by.to_json(""))
    changed = [name for name in IDENTITY if described.get(name) != present[name]]
    if changed:
        print(f"starting anew: {partial} is of a run with other {', '.join(changed)}")
        return None
    alphas = tuple(content["alphas"].tolist())
    size.lower(described.get("microbatch", {}).get(size.name, {}).get("taken"))
    print(f"going on after {len(alphas)} products, from {partial}")
    return LanczosState(alphas, tuple(content["betas"].tolist()), content["basis"])
