"""Stage `prm`: one shard of the sweep of noise over classes."""

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
    Noise,
    NoiseKind,
    Output,
    Seed,
    Threads,
)


def prm(
    model: ModelFolder,
    partition: Annotated[
        Path, Argument(help="Classes: a table of units, or a .pt file of directions.")
    ],
    member: Annotated[Path, Argument(help="Documents that the model was finetuned on.")],
    nonmember: Annotated[Path, Argument(help="Documents that it never saw.")],
    evaluation: Annotated[Path, Argument(help="Text for perplexity.")],
    output: Output,
    sigma: Annotated[
        list[float] | None, Option(help="Noise scale, the same for all classes; repeat it.")
    ] = None,
    ranges: Annotated[
        Path | None, Option(help="Record of each class's own scales, in place of --sigma.")
    ] = None,
    iso: Annotated[
        bool,
        Option(
            "--iso",
            help="Of --ranges, the scale at +5% perplexity alone; draws of a control are "
            "levelled to it by --diagonal.",
        ),
    ] = False,
    only: Annotated[list[str] | None, Option(help="Class to disturb; all unless told.")] = None,
    noise: NoiseKind = Noise.relative,
    diagonal: Annotated[
        Path | None, Option(help="Curvature that foretells the change of log perplexity.")
    ] = None,
    probe: Annotated[
        int, Option(min=0, help="First documents of each split, which do not judge.")
    ] = 60,
    first: Annotated[int, Option(help="Number of the first noise seed.")] = 0,
    seeds: Annotated[int, Option(help="Noise seeds from there on.")] = 5,
    min_k: Annotated[float, Option(help="Percent of tokens in the Min-K% attack.")] = 20,
    bootstrap: Annotated[int, Option(help="Resamples a standard error.")] = 200,
    batch: BatchSize = 16,
    length: Length = 64,
    seed: Seed = 0,
    device: DeviceName = "auto",
    dtype: DtypeName = Dtype.float32,
    threads: Threads = 1,
) -> None:
    """Put noise in each class and measure perplexity and membership inference.

    Each noise seed is used as +z and −z; classes and scales share it.
    """
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import read_record
    from paramscope.artifacts.tables import write_table
    from paramscope.artifacts.tensors import read_tensors
    from paramscope.cli.judging import judge_of
    from paramscope.cli.microbatches import microbatch_of
    from paramscope.devices import DTYPES, choose_device, describe_device
    from paramscope.memory import halved
    from paramscope.models.load import load_model
    from paramscope.response.classes import read_classes
    from paramscope.response.ranges import scales
    from paramscope.response.responses import RESPONSES
    from paramscope.response.sweep import curvature_of, sweep

    given = None if ranges is None else read_record(ranges)
    place = choose_device(device, threads)
    size = microbatch_of(arguments)
    judge = judge_of(
        model,
        (member, nonmember, evaluation),
        probe=probe,
        length=length,
        batch=size,
        bootstrap=bootstrap,
        seed=seed,
        device=place,
        min_k=min_k,
    )
    network = load_model(model, place, DTYPES[dtype])
    classes = read_classes(partition, network)
    responses = sweep(
        network,
        judge,
        classes,
        sigmas=scales(only or classes.labels, sigma, given, noise, iso),
        seeds=range(first, first + seeds),
        seed=seed,
        kind=noise.value,
        curvature=None if diagonal is None else curvature_of(read_tensors(diagonal)),
        level=iso,
    )
    made_by = provenance(
        "cli.prm", arguments, device=describe_device(place), microbatch=halved(size)
    )
    write_table(output, responses, RESPONSES, made_by)
    print(f"{len(responses)} responses to noise seeds {first} to {first + seeds - 1} in {output}")
