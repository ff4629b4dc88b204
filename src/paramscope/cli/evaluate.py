"""Stage `evaluate`: a dense model beside what pruning and finetuning made of it."""

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
    Threads,
)

EVALUATION, GENERATION = "evaluation", "generation"  # keys of the record beside the texts' names


def evaluate(
    dense: ModelFolder,
    pruned: Annotated[Path, Argument(help="Compact folder, from `paramscope prune`.")],
    finetuned: Annotated[Path, Argument(help="Compact folder, from `paramscope finetune`.")],
    output: Output,
    evaluation: Annotated[Path, Option(help="Text for perplexity.")],
    text: Annotated[
        list[str] | None,
        Option(help="More text for perplexity, as NAME=FILE of .txt, .jsonl or .parquet."),
    ] = None,
    hub: Annotated[
        list[str] | None,
        Option(help="The same from a dataset on the hub, as NAME=DATASET:FILE."),
    ] = None,
    documents: Annotated[
        Path | None,
        Option(help="Documents that trained and chose nothing; their continuations are scored."),
    ] = None,
    prompt_tokens: Annotated[int, Option(help="Tokens of a document that are given.")] = 16,
    new_tokens: Annotated[int, Option(help="Tokens to go on for.")] = 16,
    batch: BatchSize = 16,
    length: Length = 64,
    device: DeviceName = "auto",
    dtype: DtypeName = Dtype.float32,
    threads: Threads = 1,
) -> None:
    """Measure perplexity of all three on every text; with --documents BLEU and ROUGE, too."""
    arguments = dict(locals())
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import read_record, write_record
    from paramscope.artifacts.tables import read_table
    from paramscope.cli.inputs import sequences_for
    from paramscope.cli.microbatches import microbatch_of
    from paramscope.compression.compact import load_compact
    from paramscope.compression.runs import named
    from paramscope.corpus.sources import hub_files, local_documents
    from paramscope.devices import DTYPES, choose_device, describe_device
    from paramscope.errors import RequestError
    from paramscope.evaluation.perplexity import model_perplexity
    from paramscope.memory import halved
    from paramscope.models.load import load_model
    from paramscope.models.sequences import load_tokenizer, windows

    place = choose_device(device, threads)
    encode = load_tokenizer(dense)
    files = {name: [Path(file)] for name, file in named(text or []).items()}
    for name, value in named(hub or []).items():
        dataset, _, file = value.rpartition(":")
        if name in files:
            raise RequestError(f"'{name}' is given by --text and by --hub; give each name once")
        files[name] = hub_files(dataset, [file])
    for name in (EVALUATION, GENERATION):
        if name in files:
            raise RequestError(
                f"'{name}' is what the record calls its own; name the text otherwise"
            )
    texts = {EVALUATION: read_table(evaluation, ["text"])["text"].tolist()}
    for name, paths in files.items():
        texts[name] = [document.text for document in local_documents(paths)]
    sets = {
        name: windows(encode, words, length, stride=length).to(place)
        for name, words in texts.items()
    }
    spoken = None if documents is None else sequences_for(dense, documents, length, place)
    size = microbatch_of(arguments)
    perplexities: dict[str, dict[str, float]] = {}
    generated: dict[str, dict[str, object]] = {}
    for stage, folder in (("dense", dense), ("pruned", pruned), ("finetuned", finetuned)):
        if stage == "dense":
            network = load_model(folder, place, DTYPES[dtype])
        else:
            network, _ = load_compact(folder, place, DTYPES[dtype])
        perplexities[stage] = {
            name: model_perplexity(network, one, size, f"{stage} on {name}")
            for name, one in sets.items()
        }
        generated[stage] = {}
        if spoken is not None:
            from paramscope.evaluation.generation import generate_scores

            generated[stage][GENERATION] = generate_scores(
                network,
                encode,
                spoken,
                prompt_tokens=prompt_tokens,
                new_tokens=new_tokens,
                batch_size=size,
            )
    shape = read_record(pruned / "pruned.json")
    record = {
        "tokens": {name: one.n_predicted for name, one in sets.items()},
        **{stage: found | generated[stage] for stage, found in perplexities.items()},
        "shape": {key: value for key, value in shape.items() if key != "provenance"},
    }
    made_by = provenance(
        "cli.evaluate", arguments, device=describe_device(place), microbatch=halved(size)
    )
    write_record(output, record, made_by)
    for name in sets:
        told = [f"{stage} {found[name]:,.2f}" for stage, found in perplexities.items()]
        print(f"perplexity on {name}: {', '.join(told)}")
