"""Stage `eigenspace`: the Hessian's leading eigenpairs."""

from pathlib import Path
from typing import Annotated

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
) -> None:
    """Find the Hessian's leading eigenpairs by Lanczos, with their residuals.

    Writes `values` and `residuals`, [k], and the eigenvectors in the parameters' own shapes.
    """
    arguments = dict(locals())
    import torch

    from paramscope.artifacts.digest import seed_of
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.tensors import write_tensors
    from paramscope.cli.inputs import model_and_text
    from paramscope.curvature.lanczos import lanczos
    from paramscope.curvature.products import HessianProduct
    from paramscope.devices import DTYPES, describe_device

    network, text, place = model_and_text(
        model,
        calibration,
        documents=sequences,
        length=length,
        device=device,
        dtype=dtype,
        threads=threads,
    )
    product = HessianProduct(network, text, batch)
    generator = torch.Generator().manual_seed(seed_of(seed, "eigenspace"))
    start = torch.randn(product.size, generator=generator).to(place)
    start = start.to(torch.promote_types(start.dtype, DTYPES[dtype]))
    pairs = lanczos(product, start, k)
    made_by = provenance("cli.eigenspace", arguments, device=describe_device(place))
    content = {f"vector/{name}": value for name, value in product.shaped(pairs.vectors).items()}
    write_tensors(
        output, {"values": pairs.values, "residuals": pairs.residuals, **content}, made_by
    )
    shown = ", ".join(f"{value:.3g}" for value in pairs.values.tolist())
    print(f"eigenvalues {shown} in {output}; largest residual {float(pairs.residuals.max()):.2g}")
