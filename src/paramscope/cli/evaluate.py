"""Stage `evaluate`: a dense model beside what pruning and finetuning made of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    pass


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
        Path | None, Option(help="Held-out documents whose continuations are scored.")
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
    from paramscope.compression.compact import load_compact
    from paramscope.compression.runs import named
    from paramscope.corpus.sources import hub_files, local_documents
    from paramscope.devices import DTYPES, choose_device, describe_device
    from paramscope.evaluation.perplexity import perplexity
    from paramscope.models.load import load_model
    from paramscope.models.losses import token_log_probabilities
    from paramscope.models.sequences import load_tokenizer, windows

    place = choose_device(device, threads)
    encode = load_tokenizer(dense)
    texts = {"evaluation": read_table(evaluation, ["text"])["text"].tolist()}
    for name, value in named(text or []).items():
        texts[name] = [document.text for document in local_documents([Path(value)])]
    for name, value in named(hub or []).items():
        dataset, _, file = value.rpartition(":")
        paths = hub_files(dataset, [file])
        texts[name] = [document.text for document in local_documents(paths)]
    sets = {
        name: windows(encode, words, length, stride=length).to(place)
        for name, words in texts.items()
    }
    spoken = None if documents is None else sequences_for(dense, documents, length, place)
    record: dict[str, object] = {"tokens": {name: x.n_predicted for name, x in sets.items()}}
    for name, folder in (("dense", dense), ("pruned", pruned), ("finetuned", finetuned)):
        if name == "dense":
            network = load_model(folder, place, DTYPES[dtype])
        else:
            network, _ = load_compact(folder, place, DTYPES[dtype])
        found: dict[str, object] = {
            name: perplexity(token_log_probabilities(network, one, batch), one.lengths)
            for name, one in sets.items()
        }
        if spoken is not None:
            from paramscope.evaluation.generation import generate_scores

            found["generation"] = generate_scores(
                network,
                encode,
                spoken,
                prompt_tokens=prompt_tokens,
                new_tokens=new_tokens,
                batch_size=batch,
            )
        record[name] = found
    shape = read_record(pruned / "pruned.json")
    record["shape"] = {key: value for key, value in shape.items() if key != "provenance"}
    made_by = provenance("cli.evaluate", arguments, device=describe_device(place))
    write_record(output, record, made_by)
    for name in sets:
        told = [f"{stage} {record[stage][name]:,.2f}" for stage in ("dense", "pruned", "finetuned")]  # type: ignore[index]
        print(f"perplexity on {name}: {', '.join(told)}")
