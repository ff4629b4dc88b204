"""Stage `membership_features`: what probe members and non-members say of each unit."""

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


def membership_features(
    model: ModelFolder,
    member: Annotated[Path, Argument(help="Documents that the model was finetuned on.")],
    nonmember: Annotated[Path, Argument(help="Documents that it has never seen.")],
    output: Output,
    probe: Annotated[
        int, Option(help="The first documents of each split; partitions are judged on the others.")
    ] = 60,
    draws: Annotated[int, Option(help="Draws of the Hessian's trace; 2 give it an error.")] = 4,
    batch: BatchSize = 16,
    length: Length = 64,
    seed: Seed = 0,
    device: DeviceName = "auto",
    dtype: DtypeName = Dtype.float32,
    threads: Threads = 1,
) -> None:
    """Measure what holds up the loss gap: every unit's gate, loss-gap gradient and contrast.

    Units are rows, tensors and, where the MLPs are known, neurons. Only probe documents are
    read.
    """
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.tables import read_table, write_table
    from paramscope.cli.microbatches import microbatch_of
    from paramscope.corpus.splits import probes
    from paramscope.devices import DTYPES, choose_device, describe_device
    from paramscope.errors import RequestError
    from paramscope.geometry.membership import MEMBERSHIP, membership_table
    from paramscope.memory import halved
    from paramscope.models.folders import sequences_of
    from paramscope.models.load import load_model
    from paramscope.models.sequences import load_tokenizer

    if draws < 1:
        raise RequestError(f"{draws} draws: take 1 or more")
    place = choose_device(device, threads)
    encode = load_tokenizer(model)
    members, nonmembers = (
        sequences_of(encode, probes(read_table(path, ["doc_id", "text"]), probe), length).to(place)
        for path in (member, nonmember)
    )
    network = load_model(model, place, DTYPES[dtype])
    size = microbatch_of(arguments)
    table = size.fit(
        lambda n: membership_table(
            network, members, nonmembers, draws=draws, seed=seed, batch_size=n
        )
    )
    made_by = provenance(
        "cli.membership_features", arguments, device=describe_device(place), microbatch=halved(size)
    )
    write_table(output, table, MEMBERSHIP, made_by)
    found = ", ".join(f"{n} {kind}s" for kind, n in table["granularity"].value_counts().items())
    print(f"gates, loss gaps and contrasts of {found} by {probe} documents a side in {output}")
