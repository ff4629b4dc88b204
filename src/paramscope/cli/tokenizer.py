"""Stage `tokenizer`: a tokenizer of the model's own, or its checkpoint's."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from paramscope.cli.options import OutputFolder


def tokenizer(
    public: Annotated[Path, Argument(help="Documents to train on: the public split.")],
    output: OutputFolder,
    vocab: Annotated[int, Option(help="Entries of a byte-level BPE trained here.")] = 2048,
    checkpoint: Annotated[
        str | None, Option(help="Take this checkpoint's tokenizer instead: a folder or a hub id.")
    ] = None,
) -> None:
    """Train a byte-level BPE on the public split, or take a checkpoint's tokenizer."""
    arguments = dict(locals())
    from paramscope.artifacts.atomic import atomic
    from paramscope.artifacts.provenance import provenance
    from paramscope.artifacts.records import write_record
    from paramscope.artifacts.tables import read_table
    from paramscope.models.tokenizer import checkpoint_tokenizer, save_tokenizer, train_tokenizer

    if checkpoint is None:
        made = train_tokenizer(read_table(public, ["text"])["text"].tolist(), vocab)
    else:
        made = checkpoint_tokenizer(checkpoint)
    entries = made.get_vocab_size()
    with atomic(output) as folder:
        save_tokenizer(made, folder)
        made_by = provenance("cli.tokenizer", arguments)
        write_record(folder / "provenance.json", {"entries": entries}, made_by)
    print(f"a tokenizer of {entries} entries is in {output}")
