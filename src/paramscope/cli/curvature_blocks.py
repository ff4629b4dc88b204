"""Stage `curvature_blocks`: diagonal blocks of the Gauss-Newton matrix, one a chosen unit."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from paramscope.cli.options import (
    BatchSize,
    DeviceName,
    Dtype,
    DtypeName,
    Graph,
    GraphKind,
    Length,
    MemoryLimit,
    ModelFolder,
    Output,
    Seed,
    Threads,
)


def curvature_blocks(
    model: ModelFolder,
    calibration: Annotated[Path, Argument(help="Documents that the curvature is taken over.")],
    output: Output,
    unit: Annotated[
        list[str] | None, Option(help="Unit: a row of a linear layer, LAYER.weight:ROW; repeat it.")
    ] = None,
    draws: Annotated[int, Option(help="Draws, those of `curvature-draws`.")] = 16,
    graph: GraphKind = Graph.whole,
    batch: BatchSize = 16,
    length: Length = 64,
    seed: Seed = 0,
    device: DeviceName = "auto",
    dtype: DtypeName = Dtype.float32,
    threads: Threads = 1,
    memory_gb: MemoryLimit = 0.0,
) -> None:
    """Estimate the Gauss-Newton block of each chosen unit: all pairs of its parameters.

    Writes a block a unit, [size, size] with the bias last, and its standard error.
    """
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.tensors import write_tensors
    from paramscope.cli.inputs import model_and_text
    from paramscope.cli.microbatches import microbatch_of
    from paramscope.curvature.block import block_bytes, ggn_blocks, rows_of
    from paramscope.curvature.moments import moments
    from paramscope.devices import describe_device
    from paramscope.memory import halved

    network, sequences, place = model_and_text(
        model,
        calibration,
        length=length,
        device=device,
        dtype=dtype,
        threads=threads,
        memory_gb=memory_gb,
    )
    rows = rows_of(network, unit or [])
    side = max(row.size for row in rows)
    room = block_bytes(rows, draws) / 1e6
    print(f"{len(rows)} blocks of up to {side} x {side}, {draws} draws: {room:,.1f} MB", flush=True)
    numbers = range(draws)
    size = microbatch_of(arguments)
    made = size.fit(
        lambda n: ggn_blocks(
            network, sequences, rows, numbers, seed=seed, batch_size=n, graph=graph.value
        )
    )
    blocks = moments(made)
    errors = {f"standard_error/{name}": value for name, value in blocks.standard_error().items()}
    made_by = provenance(
        "cli.curvature_blocks", arguments, device=describe_device(place), microbatch=halved(size)
    )
    content = {f"block/{name}": value for name, value in blocks.mean.items()}
    write_tensors(output, {**content, **errors}, made_by)
    print(f"{len(rows)} blocks in {output}")
