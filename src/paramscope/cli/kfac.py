"""Stage `kfac`: Kronecker factors of the curvature, a pair a linear layer."""

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


def kfac(
    model: ModelFolder,
    calibration: Annotated[Path, Argument(help="Documents that the curvature is taken over.")],
    output: Output,
    draws: Annotated[int, Option(help="Draws of the output's factor.", min=1)] = 4,
    corrected: Annotated[
        bool,
        Option(
            "--corrected",
            help="Measure the curvature along the factors' directions in a second pass (EKFAC).",
        ),
    ] = False,
    graph: GraphKind = Graph.whole,
    batch: BatchSize = 16,
    length: Length = 64,
    seed: Seed = 0,
    device: DeviceName = "auto",
    dtype: DtypeName = Dtype.float32,
    threads: Threads = 1,
    memory_gb: MemoryLimit = 0.0,
) -> None:
    """Fit Kronecker factors to the curvature of each linear layer inside the blocks.

    Writes A/LAYER [d, d] and S/LAYER [p, p], whose product is the layer's Gauss-Newton block,
    and the tokens that they are of; with --corrected the directions and their curvature, too.
    """
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.tensors import write_tensors
    from paramscope.cli.inputs import model_and_text
    from paramscope.cli.microbatches import microbatch_of
    from paramscope.curvature import kfac as fit
    from paramscope.devices import describe_device
    from paramscope.geometry.directions import to_content
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
    layers = len(fit.factored_layers(network))
    room = fit.factor_bytes(network) / 1e6
    print(f"factors of {layers} layers, {draws} draws: {room:,.1f} MB", flush=True)
    size = microbatch_of(arguments)
    factors = size.fit(
        lambda n: fit.kfac_factors(
            network, sequences, range(draws), seed=seed, batch_size=n, graph=graph.value
        )
    )
    content = {f"A/{name}": x.A for name, x in factors.items()}
    content |= {f"S/{name}": x.S for name, x in factors.items()}
    if corrected:
        directions = {name: fit.eigen(x) for name, x in factors.items()}
        others = range(draws, 2 * draws)
        content |= to_content(
            size.fit(
                lambda n: fit.corrected(
                    network,
                    sequences,
                    directions,
                    others,
                    seed=seed,
                    batch_size=n,
                    graph=graph.value,
                )
            )
        )
    made_by = provenance(
        "cli.kfac", arguments, device=describe_device(place), microbatch=halved(size)
    )
    write_tensors(output, {**content, "tokens": sequences.n_predicted}, made_by)
    print(f"factors of {layers} layers over {sequences.n_predicted} tokens in {output}")
