"""Dealing documents at random to the splits of the study."""

import hashlib
from collections.abc import Mapping, Sequence

import pandas as pd
import pyarrow as pa

from paramscope.artifacts.digest import seed_of
from paramscope.errors import RequestError

FEWEST_JUDGES = 10
SPLITS = ("member", "nonmember", "calibration", "evaluation", "public")
DOCUMENTS = pa.schema(
    [pa.field("doc_id", pa.string(), nullable=False), pa.field("text", pa.string(), nullable=False)]
)


def deal(texts: Sequence[str], counts: Mapping[str, int], seed: int) -> dict[str, pd.DataFrame]:
    """Deal texts at random to the five splits, `counts` documents each.

    A text's place in the deal is a hash of the run's seed and of the text itself: the deal
    is the same on every machine and in whatever order the texts come. Each table has the
    columns of `DOCUMENTS`, in the order dealt, so its first rows are a random sample of it.
    A text given twice is dealt once.

    Raises:
        RequestError: fewer texts than asked for.
    """
    named = {document_id(text): text for text in texts}
    asked = sum(counts[split] for split in SPLITS)
    if asked > len(named):
        parts = " + ".join(f"{split} {counts[split]}" for split in SPLITS)
        raise RequestError(
            f"{len(named)} documents are left after cleaning, {asked} are asked for ({parts}):\n"
            "ask for fewer, give more text, or make chunk_characters smaller"
        )
    order = sorted(named, key=lambda doc_id: seed_of(seed, "splits", doc_id))
    dealt: dict[str, pd.DataFrame] = {}
    for split in SPLITS:
        taken, order = order[: counts[split]], order[counts[split] :]
        rows = [(doc_id, named[doc_id]) for doc_id in taken]
        dealt[split] = pd.DataFrame(rows, columns=DOCUMENTS.names)
    return dealt


def document_id(text: str) -> str:
    """The first 16 hex digits of the text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def probes(split: pd.DataFrame, n: int) -> pd.DataFrame:
    """The first `n` documents of a split of members or non-members: they shape partitions.

    Splits are in random order, so these are a random sample. None of them is among `judges`.

    Raises:
        RequestError: fewer than two, or too many for `FEWEST_JUDGES` to be left.
    """
    if n < 2:
        raise RequestError(f"{n} probe documents: take 2 or more")
    _check_judges(split, n)
    return split.iloc[:n]


def judges(split: pd.DataFrame, n: int) -> pd.DataFrame:
    """The documents of a split after its first `n`, its probes: partitions are judged on them.

    Raises:
        RequestError: fewer than none as probes, or too many for `FEWEST_JUDGES` to be left.
    """
    if n < 0:
        raise RequestError(f"{n} probe documents: take 0 or more")
    _check_judges(split, n)
    return split.iloc[n:]


def _check_judges(split: pd.DataFrame, n: int) -> None:
    left = len(split) - n
    if left < FEWEST_JUDGES:
        raise RequestError(
            f"{n} of {len(split)} documents as probes leave {max(left, 0)} to judge on, fewer than "
            f"{FEWEST_JUDGES}: take fewer probes, or deal more members and non-members"
        )
