"""Stage `shadow`: one shadow model of the attack LiRA."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from paramscope.cli.options import (
    DeviceName,
    Dtype,
    DtypeName,
    Length,
    ModelFolder,
    Output,
    Seed,
    Threads,
    TrainingBatch,
)


def shadow(
    base: ModelFolder,
    member: Annotated[Path, Argument(help="Documents that the target was finetuned on.")],
    nonmember: Annotated[Path, Argument(help="Documents that it never saw.")],
    output: Output,
    number: Annotated[int, Option(min=0, help="Which of the shadow models this is.")],
    count: Annotated[
        int, Option(min=1, help="How many there are; of an even number, each document is in half.")
    ],
    max_epochs: Annotated[int, Option(help="Passes over its half at most.")] = 8,
    batch: TrainingBatch = 16,
    learning_rate: Annotated[float, Option(help="Of AdamW, at its peak.")] = 1e-3,
    target_auc: Annotated[
        float,
        Option(help="Stop when the loss attack tells its half this well, like the target."),
    ] = 0.8,
    length: Length = 64,
    seed: Seed = 0,
    device: DeviceName = "auto",
    dtype: DtypeName = Dtype.float32,
    threads: Threads = 1,
) -> None:
    """Finetune the base on a random half of members and non-members together.

    Writes whether it was trained on a document, the loss in nats a token, and the confidence
    (logit of the geometric mean probability of a token). The model itself is not kept.
    """
    arguments = dict(locals())
    import pandas as pd
    import torch

    from paramscope.artifacts.digest import seed_of
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.tables import read_table, write_table
    from paramscope.cli.microbatches import microbatch_of
    from paramscope.devices import DTYPES, choose_device, describe_device
    from paramscope.errors import RequestError
    from paramscope.evaluation.lira import SHADOW, confidence, trained_half
    from paramscope.memory import halved
    from paramscope.models.folders import sequences_of
    from paramscope.models.load import load_model
    from paramscope.models.losses import document_losses, token_statistics
    from paramscope.models.sequences import load_tokenizer
    from paramscope.models.training import Schedule, membership_judge, train

    if number >= count:
        raise RequestError(f"shadow model {number} of {count}: numbers go from 0 to {count - 1}")
    place = choose_device(device, threads)
    encode = load_tokenizer(base)
    splits = [read_table(path, ["doc_id", "text"]) for path in (member, nonmember)]
    documents = pd.concat(splits, ignore_index=True)
    trained_on = trained_half(documents["doc_id"].tolist(), number, seed)
    halves = (trained_on, ~trained_on)
    inside, outside = (
        sequences_of(encode, documents[part], length).to(place)
        for part in (trained_on, ~trained_on)
    )
    model = load_model(base, place, DTYPES[dtype])
    steps_an_epoch = -(-len(inside) // batch)
    schedule = Schedule(
        max_epochs, batch, learning_rate, max(1, steps_an_epoch // 4), target_auc=target_auc
    )
    torch.manual_seed(seed_of(seed, "shadow", number, "dropout"))
    size = microbatch_of(arguments)
    judged = microbatch_of(arguments, "evaluation", 2 * batch)
    judge = membership_judge(inside, outside, batch_size=judged)
    history = train(model, inside, schedule, judge, seed_of(seed, "shadow", number), size)
    texts = sequences_of(encode, documents, length).to(place)
    statistics = token_statistics(model, texts, judged, moments=False)
    losses = document_losses(statistics.log_probs, texts.lengths).cpu().numpy()
    table = pd.DataFrame(
        {
            "doc_id": documents["doc_id"],
            "trained_on": trained_on,
            "loss": losses,
            "confidence": confidence(losses),
        }
    )
    made_by = provenance(
        "cli.shadow", arguments, device=describe_device(place), microbatch=halved(size, judged)
    )
    write_table(output, table, SHADOW, made_by)
    last = history.iloc[-1]
    print(
        f"shadow model {number} of {count} in {output} after {last.epoch:.2f} epochs on "
        f"{len(inside)} of {len(documents)} documents: AUC {last.auc:.3f}"
    )
