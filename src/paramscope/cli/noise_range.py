"""Stage `noise_range`: each class's own scales of noise."""

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


def noise_range(
    model: ModelFolder,
    partition: Annotated[
        Path,
        Argument(help="Classes: a table of units, its first draw, or a .pt file of directions."),
    ],
    evaluation: Annotated[Path, Argument(help="Text for perplexity.")],
    output: Output,
    points: Annotated[int, Option(help="Scales a class, from low to high in equal ratios.")] = 4,
    seeds: Annotated[int, Option(help="Noise seeds that a mean is taken over.")] = 2,
    noise: NoiseKind = Noise.relative,
    batch: BatchSize = 16,
    length: Length = 64,
    seed: Seed = 0,
    device: DeviceName = "auto",
    dtype: DtypeName = Dtype.float32,
    threads: Threads = 1,
) -> None:
    """Find where noise in each class is hardly felt, costs 5% perplexity, and is plainly felt.

    Log perplexity rises by .01, log 1.05 and .3 there. Noise seeds are the sweep's own first.
    """
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import write_record
    from paramscope.cli.inputs import windows_for
    from paramscope.cli.microbatches import microbatch_of
    from paramscope.devices import DTYPES, choose_device, describe_device
    from paramscope.evaluation.perplexity import model_log_perplexity
    from paramscope.memory import halved
    from paramscope.models.load import load_model
    from paramscope.response.classes import read_classes
    from paramscope.response.ranges import find_ranges, record

    place = choose_device(device, threads)
    text = windows_for(model, evaluation, length, place)
    network = load_model(model, place, DTYPES[dtype])
    size = microbatch_of(arguments)
    found = find_ranges(
        network,
        lambda perturbed: model_log_perplexity(perturbed, text, size),
        read_classes(partition, network),
        kind=noise.value,
        seeds=range(seeds),
        seed=seed,
    )
    made_by = provenance(
        "cli.noise_range", arguments, device=describe_device(place), microbatch=halved(size)
    )
    write_record(output, {"noise": noise.value, "classes": record(found, points)}, made_by)
    for label, scale in found.items():
        told = "" if scale.reached else ", as far as was looked"
        print(
            f"{label}: {scale.sigma_low:.3g} to {scale.sigma_high:.3g}, {scale.sigma_iso:.3g} at "
            f"+5% perplexity{told}"
        )
