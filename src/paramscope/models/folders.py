"""Model folders: weights, config, tokenizer, training history and provenance together."""

import shutil
from pathlib import Path

import pandas as pd
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from paramscope.artifacts.atomic import atomic
from paramscope.artifacts.provenance import Provenance
from paramscope.artifacts.records import write_record
from paramscope.artifacts.tables import write_table
from paramscope.models.sequences import Sequences, documents
from paramscope.models.training import TRAINING

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def save_model(
    model: PreTrainedModel,
    tokenizer: Path,
    history: pd.DataFrame,
    folder: Path,
    made_by: Provenance,
) -> None:
    """Write a folder that transformers loads, whole or not at all.

    `tokenizer` is the folder whose tokenizer goes along; `history` the rows of
    training.parquet.
    """
    with atomic(folder) as partial:
        model.save_pretrained(partial)
        copy_tokenizer(tokenizer, partial)
        write_table(partial / "training.parquet", history, TRAINING, made_by)
        sizes = {"parameters": model.num_parameters()}
        write_record(partial / "provenance.json", sizes, made_by)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy what one model folder has of a tokenizer into another, which is there."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def sequences_of(tokenizer: Tokenizer, split: pd.DataFrame, length: int) -> Sequences:
    """The documents of a split (columns doc_id, text), cut to `length` tokens."""
    return documents(tokenizer, split["text"].tolist(), split["doc_id"].tolist(), length)
