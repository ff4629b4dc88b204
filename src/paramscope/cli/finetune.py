"""Stage `finetune`: what a pruned model kept, trained."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from paramscope.cli.options import (
    DeviceName,
    Dtype,
    DtypeName,
    Length,
    MemoryLimit,
    OutputFolder,
    Seed,
    Threads,
    TrainingBatch,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def finetune(
    pruned: Annotated[Path, Argument(help="Compact folder, from `paramscope prune`.")],
    output: OutputFolder,
    output_epochs: Annotated[Path, Option(help="Table of perplexity by epoch to write.")],
    text: Annotated[Path, Option(help="Documents to train on.")],
    validation: Annotated[Path, Option(help="Documents that choose the best epoch.")],
    evaluation: Annotated[Path, Option(help="Text that perplexity is told of.")],
    documents: Annotated[
        int, Option(min=0, help="Of the text, the first so many; 0: all of them.")
    ] = 0,
    epochs: Annotated[int, Option(help="Passes over the text at most.")] = 3,
    batch: TrainingBatch = 16,
    base_samples: Annotated[
        int, Option(help="Documents in all, which gives base_samples / batch steps.")
    ] = 10_000,
    base_learning_rate: Annotated[
        float, Option(help="Peak learning rate at a batch of one; it grows with its root.")
    ] = 5e-6,
    max_steps: Annotated[int, Option(min=0, help="Steps, in place of that; 0: by it.")] = 0,
    learning_rate: Annotated[
        float, Option(min=0, help="Peak learning rate, in place of that; 0: by it.")
    ] = 0.0,
    warmup_share: Annotated[float, Option(help="Share of the steps that the rate rises.")] = 0.05,
    accumulation: Annotated[int, Option(help="Forwards a step; more where memory runs out.")] = 1,
    clip: Annotated[float, Option(help="Greatest norm of the masked gradient; 0: any.")] = 1.0,
    weight_decay: Annotated[float, Option(help="Of AdamW.")] = 0.0,
    patience: Annotated[
        int, Option(help="Epochs without a better one after which to stop; 0: never.")
    ] = 0,
    checkpoint_activations: Annotated[
        bool, Option("--checkpoint-activations", help="Keep blocks' inputs alone in a backward.")
    ] = False,
    distillation: Annotated[
        float, Option(help="Weight of the distance to --teacher's hidden states.")
    ] = 0.0,
    teacher: Annotated[Path | None, Option(help="Dense model folder to distil from.")] = None,
    save_every: Annotated[int, Option(min=1, help="Steps between two saves to go on from.")] = 50,
    output_tensorboard: Annotated[
        Path | None, Option("--tensorboard", help="Folder for TensorBoard.")
    ] = None,
    wandb: Annotated[str, Option(help="Project of Weights & Biases.")] = "",
    length: Length = 64,
    seed: Seed = 0,
    device: DeviceName = "auto",
    dtype: DtypeName = Dtype.float32,
    threads: Threads = 1,
    memory_gb: MemoryLimit = 0.0,
) -> None:
    """Finetune a pruned model; what is pruned stays 0, and the best epoch is kept.

    A run that is killed goes on where it last saved, to the same bits. Steps that method
    gradual has taken between its stages are taken off.
    """
    arguments = dict(locals())
    from paramscope.artifacts.atomic import atomic
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import read_record, write_record
    from paramscope.artifacts.tables import write_table
    from paramscope.cli.inputs import sequences_for, windows_for
    from paramscope.cli.microbatches import microbatch_of
    from paramscope.compression.compact import load_compact, save_compact
    from paramscope.compression.finetune import Judged
    from paramscope.compression.finetune import finetune as train
    from paramscope.compression.schedule import Schedule
    from paramscope.compression.schemas import EPOCHS
    from paramscope.compression.tracking import tracker
    from paramscope.devices import DTYPES, choose_device, describe_device
    from paramscope.errors import RequestError
    from paramscope.evaluation.perplexity import model_perplexity
    from paramscope.memory import halved, limit_memory
    from paramscope.models.folders import copy_tokenizer
    from paramscope.models.load import load_model

    place = choose_device(device, threads)
    limit_memory(memory_gb, place)
    spent = int(read_record(pruned / "pruned.json")["recovery_steps"])
    training = sequences_for(pruned, text, length, place)[: documents or None]
    steps = max_steps or max(1, base_samples // batch)
    steps = min(steps, epochs * -(-len(training) // batch))
    if spent >= steps:
        raise RequestError(
            f"{spent} steps were taken between the stages of pruning, and no more than {steps} "
            "are asked for in all; give more, or fewer recovery steps"
        )
    schedule = Schedule(
        epochs=epochs,
        batch=batch,
        base_learning_rate=base_learning_rate,
        base_samples=base_samples,
        learning_rate=learning_rate or None,
        max_steps=steps - spent,
        warmup_share=warmup_share,
        accumulation=accumulation,
        clip=clip,
        weight_decay=weight_decay,
        patience=patience,
        checkpoint_activations=checkpoint_activations,
        distillation=distillation,
    )
    size = microbatch_of(arguments, "batch", -(-batch // accumulation))
    judged = microbatch_of(arguments, "evaluation", batch)
    network, masks = load_compact(pruned, place, DTYPES[dtype])
    held_out = sequences_for(pruned, validation, length, place)
    told = windows_for(pruned, evaluation, length, place)

    def judge(model: "PreTrainedModel") -> Judged:
        return Judged(*(model_perplexity(model, one, judged) for one in (told, held_out)))

    state = output.with_name(f".{output.name}.state.pt")
    done = train(
        network,
        masks,
        training,
        judge,
        schedule,
        seed=seed,
        judged_by=(told, held_out),
        teacher=None if teacher is None else load_model(teacher, place, DTYPES[dtype]),
        state=state,
        save_every=save_every,
        on_step=tracker(output_tensorboard, wandb or None),
        microbatch=size,
    )
    made_by = provenance(
        "cli.finetune", arguments, device=describe_device(place), microbatch=halved(size, judged)
    )
    with atomic(output) as partial:
        partial.mkdir()
        save_compact(network, masks, partial)
        copy_tokenizer(pruned, partial)
        write_record(partial / "finetuned.json", {"best_epoch": done.best_epoch}, made_by)
    write_table(output_epochs, done.epochs, EPOCHS, made_by)
    state.unlink(missing_ok=True)
    first, best = done.epochs.iloc[0], done.epochs.iloc[done.best_epoch]
    print(
        f"perplexity {first.perplexity:,.2f} after pruning, {best.perplexity:,.2f} at the best "
        f"epoch, {done.best_epoch} of {len(done.epochs) - 1}; {output}"
    )
