"""What several stages begin with: a device, a model on it, and a text."""

from pathlib import Path
from typing import TYPE_CHECKING

from paramscope.cli.options import Dtype

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from paramscope.models.sequences import Sequences


def model_and_text(
    folder: Path,
    split: Path,
    *,
    length: int,
    device: str,
    dtype: Dtype,
    threads: int,
    documents: int | None = None,
    memory_gb: float = 0.0,
) -> "tuple[PreTrainedModel, Sequences, torch.device]":
    """The model of a folder, the (first) documents of a split for it, and where both are.

    Raises:
        RequestError: a folder, split, device, length or limit of memory that will not do.
    """
    from paramscope.artifacts.tables import read_table
    from paramscope.devices import DTYPES, choose_device
    from paramscope.memory import limit_memory
    from paramscope.models.folders import sequences_of
    from paramscope.models.load import load_model
    from paramscope.models.sequences import load_tokenizer

    place = choose_device(device, threads)
    limit_memory(memory_gb, place)
    text = read_table(split, ["doc_id", "text"])[:documents]
    sequences = sequences_of(load_tokenizer(folder), text, length).to(place)
    return load_model(folder, place, DTYPES[dtype]), sequences, place


def sequences_for(folder: Path, split: Path, length: int, device: "torch.device") -> "Sequences":
    """The documents of a split, by the tokenizer of a folder's model, on `device`."""
    from paramscope.artifacts.tables import read_table
    from paramscope.models.folders import sequences_of
    from paramscope.models.sequences import load_tokenizer

    text = read_table(split, ["doc_id", "text"])
    return sequences_of(load_tokenizer(folder), text, length).to(device)


def windows_for(folder: Path, split: Path, length: int, device: "torch.device") -> "Sequences":
    """A split as one text in windows side by side, by the tokenizer of a folder's model."""
    from paramscope.artifacts.tables import read_table
    from paramscope.models.sequences import load_tokenizer, windows

    text = read_table(split, ["text"])["text"].tolist()
    return windows(load_tokenizer(folder), text, length, stride=length).to(device)
