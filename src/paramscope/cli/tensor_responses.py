"""Stage `tensor_responses`: noise in each weight on its own, beside what curvature foretold."""

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


def tensor_responses(
    model: ModelFolder,
    diagonal: Annotated[Path, Argument(help="Curvature that sets the scales, diagonal.pt.")],
    member: Annotated[Path, Argument(help="Documents that the model was finetuned on.")],
    nonmember: Annotated[Path, Argument(help="Documents that it never saw.")],
    evaluation: Annotated[Path, Argument(help="Text for perplexity.")],
    output: Output,
    probe: Annotated[
        int, Option(min=0, help="First documents of each split, which do not judge.")
    ] = 60,
    seeds: Annotated[int, Option(help="Noise seeds, each as +z and -z.")] = 4,
    batch: BatchSize = 16,
    length: Length = 64,
    seed: Seed = 0,
    device: DeviceName = "auto",
    dtype: DtypeName = Dtype.float32,
    threads: Threads = 2,
) -> None:
    """Put noise in one weight at a time, where log perplexity should rise by .01.

    Writes a row a weight: measured changes with their errors over noise seeds, and the
    change that curvature foretold.
    """
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.tables import write_table
    from paramscope.artifacts.tensors import read_tensors
    from paramscope.cli.judging import judge_of
    from paramscope.cli.microbatches import microbatch_of
    from paramscope.devices import DTYPES, choose_device, describe_device
    from paramscope.memory import halved
    from paramscope.models.load import load_model
    from paramscope.response.noise import NoiseSource
    from paramscope.response.sweep import curvature_of, sweep
    from paramscope.response.tensors import (
        CLOSE,
        TENSOR_RESPONSES,
        TensorClasses,
        foresight,
        foretold_scales,
        tensor_table,
    )

    place = choose_device(device, threads)
    size = microbatch_of(arguments)
    judge = judge_of(
        model,
        (member, nonmember, evaluation),
        probe=probe,
        length=length,
        batch=size,
        bootstrap=2,
        seed=seed,
        device=place,
    )
    network = load_model(model, place, DTYPES[dtype])
    curvature = curvature_of(read_tensors(diagonal))
    classes = TensorClasses(network)
    responses = sweep(
        network,
        judge,
        classes,
        sigmas=foretold_scales(classes, NoiseSource(network, seed, 0), curvature),
        seeds=range(seeds),
        seed=seed,
        curvature=curvature,
    )
    table = tensor_table(responses)
    made_by = provenance(
        "cli.tensor_responses", arguments, device=describe_device(place), microbatch=halved(size)
    )
    write_table(output, table, TENSOR_RESPONSES, made_by)
    found = foresight(table)
    print(
        f"{found.n} weights in {output}: predicted within {CLOSE:.0%} of measured in "
        f"{found.close:.0%} of them, median ratio {found.median_ratio:.2f}"
    )
