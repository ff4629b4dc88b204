"""Stage `curvature_draws`: one shard of draws of the Gauss-Newton diagonal."""

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


def curvature_draws(
    model: ModelFolder,
    calibration: Annotated[Path, Argument(help="Documents that the curvature is taken over.")],
    output: Output,
    first: Annotated[int, Option(help="Number of the first draw.")] = 0,
    draws: Annotated[int, Option(help="Draws from there on.")] = 4,
    method: Annotated[str, Option(help="ggn: random draws, squared by sequence.")] = "ggn",
    batch: BatchSize = 16,
    length: Length = 64,
    seed: Seed = 0,
    device: DeviceName = "auto",
    dtype: DtypeName = Dtype.float32,
    threads: Threads = 1,
) -> None:
    """Draw the diagonal of the generalised Gauss-Newton matrix, for every parameter.

    Writes the draws' count, mean and spread. A draw hangs on the seed and its number alone.
    """
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.tensors import write_tensors
    from paramscope.cli.inputs import model_and_text
    from paramscope.curvature.ggn import ggn_draws
    from paramscope.curvature.moments import moments, to_content
    from paramscope.devices import describe_device
    from paramscope.errors import RequestError

    if method != "ggn":
        raise RequestError(f"no curvature method '{method}'; known is ggn")
    network, sequences, place = model_and_text(
        model, calibration, length=length, device=device, dtype=dtype, threads=threads
    )
    made = ggn_draws(network, sequences, range(first, first + draws), seed=seed, batch_size=batch)
    made_by = provenance("cli.curvature_draws", arguments, device=describe_device(place))
    write_tensors(output, to_content(moments(made)), made_by)
    print(f"draws {first} to {first + draws - 1} over {len(sequences)} sequences in {output}")
