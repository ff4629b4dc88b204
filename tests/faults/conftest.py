"""A small model folder, text for it, and ways to spoil both."""

import pytest
import torch

from paramscope.artifacts.provenance import provenance
from paramscope.artifacts.tables import write_table
from paramscope.corpus.splits import DOCUMENTS
from paramscope.models.load import Architecture, new_opt
from paramscope.models.tokenizer import save_tokenizer, train_tokenizer

TEXT = [f"the {a} {b} sat on the {c}" for a in ("red", "old") for b in ("cat", "dog", "fox")
        for c in ("mat", "log", "hill", "step")]  # fmt: skip


def write_text(path, texts):
    import pandas as pd

    rows = pd.DataFrame({"doc_id": [f"d{i}" for i in range(len(texts))], "text": list(texts)})
    write_table(
        path, rows.astype({"doc_id": str, "text": str}), DOCUMENTS, provenance("cli.corpus", {})
    )
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder of 16 positions, and a text for it."""
    folder = tmp_path_factory.mktemp("model")
    save_tokenizer(train_tokenizer(TEXT, 290), folder)
    sizes = Architecture(hidden=16, layers=2, heads=2, ffn=32, positions=16)
    new_opt(sizes, 290, seed=0).save_pretrained(folder)
    return folder


def broken(folder, tmp_path, change):
    """A copy of the folder after `change` to its model."""
    from transformers import AutoModelForCausalLM

    copy = tmp_path / "broken"
    save_tokenizer(train_tokenizer(TEXT, 290), copy)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        change(model)
    model.save_pretrained(copy)
    return copy
