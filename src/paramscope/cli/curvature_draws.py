"""Stage `curvature_draws`: one shard of draws of the curvature's diagonal."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from paramscope.cli.options import (
    BatchSize,
    CurvatureMethod,
    DeviceName,
    Dtype,
    DtypeName,
    Graph,
    GraphKind,
    Length,
    MemoryLimit,
    ModelFolder,
    Output,
    Probes,
    Seed,
    Threads,
)


def curvature_draws(
    model: ModelFolder,
    calibration: Annotated[Path, Argument(help="Documents that the curvature is taken over.")],
    output: Output,
    first: Annotated[int, Option(help="Number of the first draw.")] = 0,
    draws: Annotated[int, Option(help="Draws from there on.")] = 4,
    previous: Annotated[
        list[Path] | None, Option(help="Shard of earlier draws, for --tolerance; repeat it.")
    ] = None,
    tolerance: Annotated[
        float,
        Option(help="Draw nothing if the earlier shards' relative error is this small; 0: draw."),
    ] = 0.0,
    method: CurvatureMethod = "ggn",
    probes: Probes = 16,
    graph: GraphKind = Graph.whole,
    batch: BatchSize = 16,
    length: Length = 64,
    seed: Seed = 0,
    device: DeviceName = "auto",
    dtype: DtypeName = Dtype.float32,
    threads: Threads = 1,
    memory_gb: MemoryLimit = 0.0,
) -> None:
    """Draw the diagonal of the loss's curvature, for every parameter.

    Writes the draws' count, mean and spread. A draw hangs on the seed and its number alone.
    """
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.tensors import read_tensors, write_tensors
    from paramscope.cli.inputs import model_and_text
    from paramscope.cli.microbatches import microbatch_of
    from paramscope.curvature.methods import estimator
    from paramscope.curvature.moments import Moments, from_content, merge, moments, to_content
    from paramscope.devices import describe_device
    from paramscope.memory import halved

    chosen = estimator(method, graph=graph.value, probes=probes)
    if tolerance and previous:
        error = merge(from_content(read_tensors(path)) for path in previous).worst_error()
        if error <= tolerance:
            made_by = provenance("cli.curvature_draws", arguments, device="none")
            write_tensors(output, to_content(Moments(0, {}, {}, chosen.random)), made_by)
            print(f"no draws needed: the relative error is {error:.3g} already, in {output}")
            return
    network, sequences, place = model_and_text(
        model,
        calibration,
        length=length,
        device=device,
        dtype=dtype,
        threads=threads,
        memory_gb=memory_gb,
    )
    numbers = range(first, first + draws)
    size = microbatch_of(arguments)
    made = size.fit(lambda n: chosen.draw(network, sequences, numbers, seed=seed, batch_size=n))
    made_by = provenance(
        "cli.curvature_draws", arguments, device=describe_device(place), microbatch=halved(size)
    )
    write_tensors(output, to_content(moments(made, chosen.random)), made_by)
    print(f"draws {first} to {first + draws - 1} over {len(sequences)} sequences in {output}")
