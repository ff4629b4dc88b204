"""Stage `prune`: the linear layers of a model, down to a density."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from paramscope.cli.options import (
    BatchSize,
    DeviceName,
    Dtype,
    DtypeName,
    Length,
    MemoryLimit,
    ModelFolder,
    OutputFolder,
    Seed,
    Threads,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from paramscope.compression.gradual import Recover
    from paramscope.compression.methods import Pruned
    from paramscope.memory import Microbatch
    from paramscope.models.sequences import Sequences


def prune(
    model: ModelFolder,
    output: OutputFolder,
    calibration: Annotated[Path, Option(help="Documents whose hidden states layers go by.")],
    method: Annotated[
        str, Option(help="magnitude, wanda, sparsegpt, gradual or admm.")
    ] = "sparsegpt",
    density: Annotated[float, Option(help="Share of each layer's weights to keep.")] = 0.5,
    pattern: Annotated[
        str, Option(help="unstructured; or 2:4, two of every four inputs.")
    ] = "unstructured",
    blocksize: Annotated[int, Option(help="Columns a threshold of SparseGPT.")] = 128,
    damping: Annotated[
        float, Option(help="Added to the diagonal of the inputs' moments, as a share of its mean.")
    ] = 0.01,
    samples: Annotated[
        int, Option(min=0, help="Calibration documents, drawn anew each stage; 0: all of them.")
    ] = 0,
    text: Annotated[
        Path | None, Option(help="Documents to finetune on between the stages of gradual.")
    ] = None,
    documents: Annotated[
        int, Option(min=0, help="Of that text, the first so many; 0: all of them.")
    ] = 0,
    recovery_steps: Annotated[
        int, Option(min=0, help="Steps of that finetuning, between two stages.")
    ] = 0,
    learning_rate: Annotated[float, Option(help="Its peak.")] = 5e-4,
    training_batch: Annotated[int, Option(help="Documents a step of it.")] = 16,
    batch: BatchSize = 16,
    length: Length = 64,
    seed: Seed = 0,
    device: DeviceName = "auto",
    dtype: DtypeName = Dtype.float32,
    threads: Threads = 1,
    memory_gb: MemoryLimit = 0.0,
) -> None:
    """Prune every linear layer inside the blocks, one after the other.

    Writes a compact model folder: bit masks and kept values (`paramscope expand` makes a plain
    one of it), and layers.parquet: what was asked of each weight and what it got.
    """
    arguments = dict(locals())
    from dataclasses import replace

    from paramscope.artifacts.atomic import atomic
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import write_record
    from paramscope.artifacts.tables import write_table
    from paramscope.cli.inputs import sequences_for
    from paramscope.cli.microbatches import microbatch_of
    from paramscope.compression.compact import compact_sizes, save_compact
    from paramscope.compression.gradual import stages
    from paramscope.compression.layers import density_of, overall_zeros
    from paramscope.compression.methods import METHODS, Options
    from paramscope.compression.methods import prune as prune_layers
    from paramscope.compression.schemas import LAYERS
    from paramscope.devices import DTYPES, choose_device, describe_device
    from paramscope.errors import RequestError
    from paramscope.memory import halved, limit_memory
    from paramscope.models.folders import copy_tokenizer
    from paramscope.models.load import load_model

    place = choose_device(device, threads)
    limit_memory(memory_gb, place)
    sequences = sequences_for(model, calibration, length, place)
    loaded = [load_model(model, place, DTYPES[dtype])]
    options = replace(Options(), blocksize=blocksize, damping=damping, samples=samples or None)
    by_stages = method in METHODS and METHODS[method].by_stages
    spent = recovery_steps * (len(stages(density)) - 1) if by_stages else 0
    if spent and text is None:
        raise RequestError("method gradual finetunes between its stages; give --text to do it on")
    size = microbatch_of(arguments)
    trained, judged = (
        microbatch_of(arguments, name, training_batch) for name in ("training_batch", "evaluation")
    )
    training = None
    if spent and text is not None:
        training = sequences_for(model, text, length, place)[: documents or None]

    def pruned(n: int) -> "tuple[PreTrainedModel, Pruned]":
        """The model, pruned; an attempt that ran out of memory has left none."""
        network = loaded.pop() if loaded else load_model(model, place, DTYPES[dtype])
        recover = None
        if training is not None:
            recover = _recovery(
                training, sequences, recovery_steps, learning_rate, trained, judged, seed
            )
        return network, prune_layers(
            network,
            sequences,
            method=method,
            density=density,
            pattern=pattern,
            options=options,
            batch_size=n,
            seed=seed,
            recover=recover,
        )

    network, done = size.fit(pruned)
    sizes = compact_sizes(network, done.masks)
    record = {
        "method": method,
        "pattern": pattern,
        "density_asked": density,
        "density": density_of(done.masks),
        "overall_zeros": overall_zeros(network, done.masks),
        "recovery_steps": spent,
        **sizes,
    }
    made_by = provenance(
        "cli.prune",
        arguments,
        device=describe_device(place),
        microbatch=halved(size, trained, judged),
    )
    with atomic(output) as partial:
        partial.mkdir()
        save_compact(network, done.masks, partial)
        copy_tokenizer(model, partial)
        write_table(partial / "layers.parquet", done.layers, LAYERS, made_by)
        write_record(partial / "pruned.json", record, made_by)
    print(
        f"{len(done.masks)} weights pruned by {method} to density {density_of(done.masks):.4f}, "
        f"{overall_zeros(network, done.masks):.1%} zeros in all; stored in "
        f"{sizes['masked_compact_bytes'] / sizes['masked_dense_bytes']:.4f} of their dense size"
    )


def _recovery(
    training: "Sequences",
    judged: "Sequences",
    steps: int,
    learning_rate: float,
    batch: "Microbatch",
    judged_at: "Microbatch",
    seed: int,
) -> "Recover":
    """A short finetuning after a stage, `batch.asked` documents a step."""
    from itertools import count

    from paramscope.artifacts.digest import seed_of
    from paramscope.compression.finetune import Judged, finetune
    from paramscope.compression.schedule import Schedule
    from paramscope.evaluation.perplexity import model_perplexity

    schedule = Schedule(
        epochs=-(-steps * batch.asked // len(training)),
        batch=batch.asked,
        learning_rate=learning_rate,
        max_steps=steps,
    )
    stage = count()

    def evaluate(network: "PreTrainedModel") -> Judged:
        found = model_perplexity(network, judged, judged_at)
        return Judged(found, found)

    def recover(network: "PreTrainedModel", masks: "dict[str, Tensor]") -> None:
        finetune(
            network,
            masks,
            training,
            evaluate,
            schedule,
            seed=seed_of(seed, "recovery", next(stage)),
            microbatch=batch,
        )

    return recover
