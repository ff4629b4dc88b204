"""Stage `base`: the model before it has seen a member."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from paramscope.cli.options import (
    DeviceName,
    Dtype,
    DtypeName,
    Length,
    OutputFolder,
    Seed,
    Threads,
    TrainingBatch,
)


def base(
    tokenizer: Annotated[Path, Argument(help="Folder with tokenizer.json.")],
    public: Annotated[Path, Argument(help="Documents to train on.")],
    member: Annotated[Path, Argument(help="Members, only to report their loss.")],
    nonmember: Annotated[Path, Argument(help="Non-members, only to report their loss.")],
    output: OutputFolder,
    checkpoint: Annotated[
        str | None, Option(help="Take this checkpoint as it is: a local folder or a hub id.")
    ] = None,
    hidden: Annotated[int, Option(help="Width of the residual stream.")] = 128,
    layers: Annotated[int, Option(help="Decoder layers.")] = 4,
    heads: Annotated[int, Option(help="Attention heads; divides hidden.")] = 4,
    ffn: Annotated[int, Option(help="Neurons of a layer's MLP.")] = 512,
    positions: Annotated[int, Option(help="Tokens that a sequence can have.")] = 128,
    epochs: Annotated[int, Option(help="Passes over the public split.")] = 3,
    batch: TrainingBatch = 16,
    learning_rate: Annotated[float, Option(help="Of AdamW, at its peak.")] = 2e-3,
    length: Length = 64,
    seed: Seed = 0,
    device: DeviceName = "auto",
    dtype: DtypeName = Dtype.float32,
    threads: Threads = 2,
) -> None:
    """Train an OPT model from scratch on the public split, or take a checkpoint.

    Writes a model folder, and training.parquet: losses of the public text, of the members and
    of the non-members over steps. The members train nothing here.
    """
    arguments = dict(locals())
    from paramscope.artifacts.digest import seed_of
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.tables import read_table
    from paramscope.cli.microbatches import microbatch_of
    from paramscope.devices import DTYPES, choose_device, describe_device
    from paramscope.memory import halved
    from paramscope.models.folders import save_model, sequences_of
    from paramscope.models.load import Architecture, load_model, new_opt
    from paramscope.models.sequences import load_tokenizer
    from paramscope.models.training import Schedule, membership_judge, train

    place = choose_device(device, threads)
    encode = load_tokenizer(tokenizer)
    texts = {
        path: sequences_of(encode, read_table(path, ["doc_id", "text"]), length).to(place)
        for path in (public, member, nonmember)
    }
    if checkpoint is None:
        sizes = Architecture(hidden, layers, heads, ffn, positions)
        model = new_opt(sizes, encode.get_vocab_size(), seed_of(seed, "initialisation"))
        model = model.to(place, DTYPES[dtype])
    else:
        model, epochs = load_model(checkpoint, place, DTYPES[dtype]), 0
    steps = -(-len(texts[public]) // batch) * epochs
    schedule = Schedule(epochs, batch, learning_rate, evaluate_every=max(1, steps // 12))
    size = microbatch_of(arguments)
    judged = microbatch_of(arguments, "evaluation", 2 * batch)
    judge = membership_judge(texts[member], texts[nonmember], batch_size=judged)
    history = train(model, texts[public], schedule, judge, seed_of(seed, "base"), size)
    made_by = provenance(
        "cli.base", arguments, device=describe_device(place), microbatch=halved(size, judged)
    )
    save_model(model, tokenizer, history, output, made_by)
    last = history.iloc[-1]
    print(
        f"base of {model.num_parameters():,} parameters in {output}: loss of members "
        f"{last.member_loss:.3f}, of non-members {last.nonmember_loss:.3f} nats a token"
    )
