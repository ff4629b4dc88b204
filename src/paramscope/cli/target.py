"""Stage `target`: the base finetuned on the members, the model under study."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from paramscope.cli.options import (
    DeviceName,
    Dtype,
    DtypeName,
    Length,
    ModelFolder,
    OutputFolder,
    Seed,
    Threads,
    TrainingBatch,
)


def target(
    base: ModelFolder,
    member: Annotated[Path, Argument(help="Documents to finetune on.")],
    nonmember: Annotated[
        Path, Argument(help="Documents that are judged against, never trained on.")
    ],
    output: OutputFolder,
    max_epochs: Annotated[int, Option(help="Passes over the members at most.")] = 8,
    batch: TrainingBatch = 16,
    learning_rate: Annotated[float, Option(help="Of AdamW, at its peak.")] = 1e-3,
    target_auc: Annotated[
        float, Option(help="Stop when the loss attack's AUC is here; near 1 it is a dull measure.")
    ] = 0.8,
    length: Length = 64,
    seed: Seed = 0,
    device: DeviceName = "auto",
    dtype: DtypeName = Dtype.float32,
    threads: Threads = 2,
) -> None:
    """Finetune the base on the members until the loss attack tells them apart.

    Writes a model folder, and training.parquet: member and non-member loss over steps.
    """
    arguments = dict(locals())
    from paramscope.artifacts.digest import seed_of
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.tables import read_table
    from paramscope.cli.microbatches import microbatch_of
    from paramscope.devices import DTYPES, choose_device, describe_device
    from paramscope.memory import halved
    from paramscope.models.folders import save_model, sequences_of
    from paramscope.models.load import load_model
    from paramscope.models.sequences import load_tokenizer
    from paramscope.models.training import Schedule, membership_judge, train

    place = choose_device(device, threads)
    encode = load_tokenizer(base)
    members, nonmembers = (
        sequences_of(encode, read_table(path, ["doc_id", "text"]), length).to(place)
        for path in (member, nonmember)
    )
    model = load_model(base, place, DTYPES[dtype])
    steps_an_epoch = -(-len(members) // batch)
    schedule = Schedule(
        max_epochs, batch, learning_rate, max(1, steps_an_epoch // 4), target_auc=target_auc
    )
    size = microbatch_of(arguments)
    judged = microbatch_of(arguments, "evaluation", 2 * batch)
    judge = membership_judge(members, nonmembers, batch_size=judged)
    history = train(model, members, schedule, judge, seed_of(seed, "target"), size)
    made_by = provenance(
        "cli.target", arguments, device=describe_device(place), microbatch=halved(size, judged)
    )
    save_model(model, base, history, output, made_by)
    last = history.iloc[-1]
    reached = "reached" if last.auc >= target_auc else "NOT reached"
    print(
        f"target in {output} after {last.epoch:.2f} epochs: loss of members "
        f"{last.member_loss:.3f}, of non-members {last.nonmember_loss:.3f} nats a token; "
        f"AUC {last.auc:.3f}, {target_auc} {reached}"
    )
