"""Stage `removal`: directions of low curvature taken out, beside noise in all directions."""

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


def removal(
    model: ModelFolder,
    directions: Annotated[Path, Argument(help="Directions, from `paramscope directions`.")],
    member: Annotated[Path, Argument(help="Documents that the model was finetuned on.")],
    nonmember: Annotated[Path, Argument(help="Documents that it never saw.")],
    evaluation: Annotated[Path, Argument(help="Text for perplexity.")],
    output: Output,
    output_record: Annotated[Path, Option(help="Record of what each kind takes, to write.")],
    probe: Annotated[
        int, Option(min=0, help="First documents of each split, which do not judge.")
    ] = 60,
    draws: Annotated[int, Option(min=1, help="Random choices of directions.")] = 5,
    seeds: Annotated[int, Option(min=2, help="Seeds of the noise in all directions.")] = 5,
    bootstrap: Annotated[int, Option(min=40, help="Resamples behind an interval.")] = 200,
    batch: BatchSize = 16,
    length: Length = 64,
    seed: Seed = 0,
    device: DeviceName = "auto",
    dtype: DtypeName = Dtype.float32,
    threads: Threads = 1,
) -> None:
    """Take out the directions of lowest curvature, more and more of them.

    At +5% perplexity, what that takes of the membership signal is set beside what noise in all
    directions takes, and what taking out random directions does.
    """
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import write_record
    from paramscope.artifacts.tables import write_table
    from paramscope.artifacts.tensors import read_tensors
    from paramscope.cli.judging import judge_of
    from paramscope.cli.microbatches import microbatch_of
    from paramscope.devices import DTYPES, choose_device, describe_device
    from paramscope.geometry.directions import labelled_from_content
    from paramscope.memory import halved
    from paramscope.models.load import load_model
    from paramscope.response.removal import REMOVAL, compare, record, table
    from paramscope.response.removal import removal as measure

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
    )
    labelled = labelled_from_content(read_tensors(directions))
    baseline, steps = measure(
        load_model(model, place, DTYPES[dtype]),
        judge,
        {name: x.directions for name, x in labelled.items()},
        draws=draws,
        seeds=seeds,
        seed=seed,
    )
    found = compare(baseline, steps, seed)
    made_by = provenance(
        "cli.removal", arguments, device=describe_device(place), microbatch=halved(size)
    )
    write_table(output, table(baseline, steps), REMOVAL, made_by)
    write_record(output_record, record(found), made_by)
    for name, one in found.items():
        for kind, ratio in one.ratio.items():
            print(
                f"{name}, {kind}: {ratio:.2f} times what uniform noise takes at +5% perplexity "
                f"[{one.low[kind]:.2f}, {one.high[kind]:.2f}]"
            )
