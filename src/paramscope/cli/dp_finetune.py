"""Stage `dp_finetune`: the base finetuned on the members by DP-SGD."""

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
)


def dp_finetune(
    base: ModelFolder,
    member: Annotated[Path, Argument(help="Documents to finetune on; the base has seen none.")],
    output: OutputFolder,
    output_private: Annotated[
        Path | None,
        Option(help="Record of what the samples showed, not for release; OUTPUT.private.json."),
    ] = None,
    epsilon: Annotated[float, Option(help="Privacy budget that the whole run may spend.")] = 3.0,
    delta: Annotated[
        float, Option(min=0, help="Chance that the budget does not hold; 0: documents^-1.1.")
    ] = 0.0,
    noise_multiplier: Annotated[
        float, Option(min=0, help="Noise a step by --max-norm, in place of --epsilon; 0: by it.")
    ] = 0.0,
    accountant: Annotated[str, Option(help="rdp, or prv, which is tighter and slower.")] = "rdp",
    epochs: Annotated[
        int, Option(min=1, help="Times that each document is expected to be drawn.")
    ] = 8,
    batch: Annotated[
        int, Option(min=1, help="Documents that a step is expected to have; chance draws them.")
    ] = 64,
    physical_batch: Annotated[
        int,
        Option(help="Documents a forward at most, halved where memory runs out; changes speed."),
    ] = 8,
    max_norm: Annotated[
        float, Option(help="Norm that each document's gradient is clipped to.")
    ] = 1.0,
    learning_rate: Annotated[float, Option(help="Of AdamW, at its peak.")] = 1e-3,
    constant_rate: Annotated[
        bool, Option("--constant-rate", help="No warm-up, and no cosine to a tenth.")
    ] = False,
    weight_decay: Annotated[float, Option(help="Of AdamW.")] = 0.0,
    method: Annotated[
        str, Option(help="How gradients are clipped: bk, flash, ghost, per_layer or micro.")
    ] = "bk",
    chunk_tokens: Annotated[
        int, Option(help="Tokens whose logits exist at a time, of bk, per_layer, micro; 0: all.")
    ] = 0,
    checkpoint: Annotated[
        bool, Option("--checkpoint", help="Keep blocks' inputs alone in a backward.")
    ] = False,
    save_every: Annotated[int, Option(min=1, help="Steps between two saves to go on from.")] = 50,
    length: Length = 64,
    seed: Seed = 0,
    device: DeviceName = "auto",
    dtype: DtypeName = Dtype.float32,
    threads: Threads = 2,
) -> None:
    """Finetune the base on the members so that its weights are (epsilon, delta)-private.

    Writes a model folder with privacy.json (budget, noise, sampling) and training.parquet (step,
    epoch, learning rate, epsilon so far); nothing in the two is computed from a document's text,
    and the number of documents is taken as public. A run that is killed goes on where it last
    saved, to the same bits.

    Not for release: the record OUTPUT.private.json, which holds each step's batch size, clipped
    and dropped samples, and whether memory ran out; and, of the folder's provenance, the seed,
    which the noise follows from, and the digest of the members.
    """
    arguments = dict(locals())
    from dataclasses import asdict, replace

    from paramscope.artifacts.atomic import atomic
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import write_record
    from paramscope.artifacts.tables import write_table
    from paramscope.cli.inputs import model_and_text
    from paramscope.cli.microbatches import microbatch_of
    from paramscope.devices import describe_device
    from paramscope.dpsgd.accounting import epsilon_spent, noise_multiplier_for
    from paramscope.dpsgd.finetune import finetune
    from paramscope.dpsgd.methods import Options
    from paramscope.dpsgd.plan import PRIVATE_TRAINING, Plan, training_history
    from paramscope.errors import RequestError
    from paramscope.memory import halved
    from paramscope.models.folders import copy_tokenizer

    model, members, place = model_and_text(
        base, member, length=length, device=device, dtype=dtype, threads=threads
    )
    n = len(members)
    if batch > n:
        raise RequestError(f"a batch of {batch} is expected of {n} documents; give {n} or fewer")
    delta = delta or n**-1.1
    sample_rate, steps = batch / n, -(-epochs * n // batch)
    sigma = noise_multiplier or noise_multiplier_for(epsilon, delta, sample_rate, steps, accountant)
    spent = epsilon_spent(sigma, delta, sample_rate, steps, accountant)
    plan = Plan(
        sample_rate=sample_rate,
        steps=steps,
        max_norm=max_norm,
        noise_multiplier=sigma,
        method=method,
        options=Options(chunk_tokens, checkpoint),
        physical_batch=physical_batch,
        learning_rate=learning_rate,
        constant_rate=constant_rate,
        weight_decay=weight_decay,
    )
    history = training_history(plan, delta, accountant)
    state = output.with_name(f".{output.name}.state.pt")
    size = microbatch_of(arguments, "physical_batch")
    seen = finetune(
        model, members, plan, seed=seed, state=state, save_every=save_every, microbatch=size
    )
    made_by = provenance("cli.dp_finetune", arguments, device=describe_device(place))
    budget = {
        "epsilon_asked": None if noise_multiplier else epsilon,
        "epsilon_spent": spent,
        "delta": delta,
        "noise_multiplier": sigma,
        "max_norm": max_norm,
        "n": n,
        "expected_batch": batch,
        "sample_rate": sample_rate,
        "steps": steps,
        "accountant": accountant,
        "method": method,
        "sampling": "Poisson",
        "neighbours": "with and without one document",
    }
    beside = output_private or output.with_name(f"{output.name}.private.json")
    drawn = sum(seen.batch)
    clipped = [c for c in seen.clipped if c is not None]
    private = {
        "private": True,
        "dropped": sum(seen.dropped),
        "mean_batch": drawn / steps,
        "clipped_share": sum(clipped) / drawn if drawn and len(clipped) == steps else None,
        "by_step": asdict(seen),
    }
    # Here alone: what memory sufficed for hangs on which documents chance drew.
    write_record(beside, private, replace(made_by, microbatch=halved(size)))
    with atomic(output) as partial:
        model.save_pretrained(partial)
        copy_tokenizer(base, partial)
        write_table(partial / "training.parquet", history, PRIVATE_TRAINING, made_by)
        write_record(partial / "privacy.json", budget, made_by)
        write_record(partial / "provenance.json", {"parameters": model.num_parameters()}, made_by)
    state.unlink(missing_ok=True)
    print(
        f"private model in {output}: epsilon {spent:.3f} spent at delta {delta:.3g} "
        f"({accountant}) over {steps} steps, sigma {sigma:.4g}, of {n} documents each drawn at a "
        f"rate of {sample_rate:.3g}"
    )
