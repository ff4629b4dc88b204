"""Sources against what Python itself says; chunks, near-duplicates and deals by their laws."""

import hashlib
import json
import pydoc_data.topics
import textwrap
from inspect import getdoc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from paramscope.corpus.chunks import cut, is_prose
from paramscope.corpus.deduplicate import without_near_duplicates
from paramscope.corpus.sources import (
    Document,
    describe,
    hub_files,
    local_documents,
    stdlib_documents,
)
from paramscope.corpus.splits import DOCUMENTS, SPLITS, deal
from paramscope.errors import RequestError

WIKITEXT = """
 = First article = \n \n One . \n \n = = Heading = = \n \n Two . \n \n = Second article = \n
 Three with k = \n = 1 henry and C = \n of capacity . \n"""


@pytest.fixture(scope="module")
def stdlib():
    return stdlib_documents()


# --- sources -------------------------------------------------------------------------------


def test_stdlib_is_what_the_modules_say_when_imported(stdlib):
    texts = {document.text for document in stdlib}
    assert set(pydoc_data.topics.topics.values()) <= texts
    documented = [textwrap.wrap, textwrap.dedent, textwrap.TextWrapper, json.dumps, json]
    for documentation in map(getdoc, documented):
        assert documentation in texts
    origins = [document.origin for document in stdlib]
    assert len(set(origins)) == len(origins)
    assert not any("/test" in origin or "site-packages" in origin for origin in origins)


def test_stdlib_parses_and_never_runs(tmp_path):
    long = "A docstring that is long enough to be kept. " * 3
    (tmp_path / "pydoc_data").mkdir()
    (tmp_path / "pydoc_data/topics.py").write_text("topics = {'assert': 'The statement.'}")
    (tmp_path / "b.py").write_text(f"raise SystemExit\nif True:\n  def f():\n    '''{long}'''")
    (tmp_path / "a.py").write_text(f"'''{long}'''\nclass Short:\n  'Too short.'")
    (tmp_path / "broken.py").write_text("def {{ template }}")
    (tmp_path / "surrogate.py").write_text(f"'{long}\\ud800'")
    (tmp_path / "test").mkdir()
    (tmp_path / "test/test_a.py").write_text(f"'''{long}'''")
    found = stdlib_documents(tmp_path)
    assert [d.origin for d in found] == ["pydoc_data/topics.py:assert", "a.py:1", "b.py:3"]
    assert stdlib_documents(tmp_path) == found


@pytest.mark.parametrize("topics", [None, "topics = f(", "topics = 3", "topics = {'a': 'b'}"])
def test_an_installation_without_sources_is_refused(tmp_path, topics):
    if topics:
        (tmp_path / "pydoc_data").mkdir()
        (tmp_path / "pydoc_data/topics.py").write_text(topics)
    with pytest.raises(RequestError, match="--source local"):
        stdlib_documents(tmp_path)


def texts_of(path):
    return [document.text.split() for document in local_documents([path])]


def test_wikitext_gives_articles_and_not_formulas(tmp_path):
    (tmp_path / "wiki.raw").write_text(WIKITEXT)
    first, second = texts_of(tmp_path / "wiki.raw")
    assert first[:4] == ["=", "First", "article", "="]
    assert first[-1] == "."
    assert "Two" in first
    assert "henry" in second
    assert [*first, *second] == WIKITEXT.split()


def test_other_plain_text_gives_paragraphs(tmp_path):
    (tmp_path / "a.TXT").write_bytes("\ufeffOne\r\ntwo\r\n \r\nthree\n\n\n\nfour\n".encode())
    assert texts_of(tmp_path / "a.TXT") == [["One", "two"], ["three"], ["four"]]


def test_rows_of_jsonl_and_parquet_are_documents(tmp_path):
    rows = ["One two.", "Dreißig\u2028Zeilen", "three\n\nfour"]
    lines = "\n\n".join(json.dumps({"text": row, "id": 1}, ensure_ascii=False) for row in rows)
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    pd.DataFrame({"text": [*rows, " "], "n": 1}).to_parquet(tmp_path / "a.parquet")
    found = local_documents([tmp_path / "a.jsonl", tmp_path / "a.parquet"])
    assert [document.text for document in found] == rows * 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "no such file"),
        ("empty.txt", b" \n \n", "holds no text"),
        ("latin.txt", "über".encode("latin1"), "not UTF-8 at byte 0"),
        ("image.png", b"x", "can't tell what it holds"),
        ("bad.jsonl", b'{"text": "a"}\n{', "line 2 is not JSON"),
        ("field.jsonl", b'{"body": "a"}', "line 1 lacks the field"),
        ("list.jsonl", b"[1]", "line 1 lacks the field"),
        ("number.jsonl", b'{"text": 1}', "line 1: the field text is not a text"),
        ("surrogate.jsonl", b'{"text": "\\ud800"}', "line 1: the field text is not a text"),
        ("bad.parquet", b"not parquet", "not a readable Parquet file"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RequestError, match=message) as raised:
        local_documents([tmp_path / name])
    assert name in str(raised.value)


def test_a_parquet_file_without_the_column_or_with_a_gap_is_named(tmp_path):
    pd.DataFrame({"body": ["a"]}).to_parquet(tmp_path / "column.parquet")
    with pytest.raises(RequestError, match=r"column\.parquet: has no column text \(but body\)"):
        local_documents([tmp_path / "column.parquet"])
    pd.DataFrame({"text": ["a", None]}).to_parquet(tmp_path / "gap.parquet")
    with pytest.raises(RequestError, match="row 1"):
        local_documents([tmp_path / "gap.parquet"])
    with pytest.raises(RequestError, match="--path"):
        local_documents([])


def test_the_source_digest_is_of_every_text():
    documents = [Document("a", "one"), Document("b", "two")]
    described = describe(documents)
    assert described["source_sha256"] == hashlib.sha256(b"one\0two\0").hexdigest()
    assert described["source_characters"] == 6
    assert describe([Document("a", "onetwo")])["source_sha256"] != described["source_sha256"]


def test_files_of_a_local_dataset_are_those_named_in_their_order(tmp_path):
    names = ["b.txt", "deep/a.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"what {name} says")
    files = hub_files(str(tmp_path), names)
    assert files == [tmp_path / name for name in names]
    assert [d.text for d in local_documents(files)] == [f"what {name} says" for name in names]
    with pytest.raises(RequestError, match=r"c\.txt: no such file"):
        local_documents(hub_files(str(tmp_path), ["c.txt"]))


def test_files_on_the_hub_are_the_datasets_as_stored_here(tmp_path, monkeypatch):
    """Laid out as the hub's own client keeps them, and read without the network."""
    own = tmp_path / "datasets--nobody--words"
    (own / "refs").mkdir(parents=True)
    (own / "refs/main").write_text("0" * 40)
    (own / "snapshots" / ("0" * 40) / "raw").mkdir(parents=True)
    stored = own / "snapshots" / ("0" * 40) / "raw/train.txt"
    stored.write_text("of the hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    [file] = hub_files("nobody/words", ["raw/train.txt"])
    assert file.samefile(stored)
    for other in ("nobody/others", "no body/words"):  # not stored here, and no name of a dataset
        with pytest.raises(RequestError, match=f"dataset '{other}': .*; give a local") as told:
            hub_files(other, ["raw/train.txt"])
        assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("dataset", "files"), [("", ["a.txt"]), ("nobody/words", []), ("nobody/words", ["a.txt", ""])]
)
def test_a_hub_without_a_dataset_or_a_file_is_refused(dataset, files):
    with pytest.raises(RequestError, match="needs a dataset and its files"):
        hub_files(dataset, files)


# --- chunks --------------------------------------------------------------------------------

any_text = st.text(st.sampled_from("abü \n\t漢."), max_size=400)


@settings(deadline=None, max_examples=200)
@given(any_text, st.integers(1, 40))
def test_chunks_are_verbatim_in_order_and_of_the_length_asked(text, n):
    rest = text
    for chunk in cut(text, n):
        assert n / 2 <= len(chunk) <= n
        assert chunk == chunk.strip()
        assert chunk in rest
        rest = rest[rest.index(chunk) + len(chunk) :]


@settings(deadline=None)
@given(st.lists(st.text("xyz", min_size=1, max_size=10), max_size=60), st.integers(20, 60))
def test_only_a_tail_is_lost_and_no_word_is_broken(words, n):
    text = "\n".join(words)
    kept = " ".join(cut(text, n)).split()
    assert kept == words[: len(kept)]
    assert len("\n".join(words[len(kept) :])) < n / 2


def test_a_chunk_is_as_full_as_can_be():
    assert cut("aaa bbb ccc ddd eee", 7) == ["aaa bbb", "ccc ddd"]
    assert cut("aaa bbb ccc ddd eee", 6) == ["aaa", "bbb", "ccc", "ddd", "eee"]
    assert cut("漢" * 25, 10) == ["漢" * 10, "漢" * 10, "漢" * 5]


def test_prose_and_tables():
    assert is_prose("The statement asserts: 1 + 1 == 2.")
    assert is_prose("Теорема доказана.")
    assert not is_prose("+-----+-----+\n| a | 10 |\n+-----+-----+")
    assert not is_prose(" \n")


# --- near-duplicates -----------------------------------------------------------------------


def runs(text, n):
    words = text.lower().split()
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))} if words else set()


@settings(deadline=None, max_examples=200)
@given(st.lists(st.lists(st.sampled_from("aAbc"), max_size=9).map(" ".join), max_size=12))
def test_near_duplicates_by_brute_force(texts):
    expected: list[str] = []
    for text in texts:
        if runs(text, 3) and not any(runs(text, 3) & runs(kept, 3) for kept in expected):
            expected.append(text)
    assert without_near_duplicates(texts, gram_words=3) == expected


def test_the_first_of_a_group_stays_whatever_case_and_punctuation():
    first = "one two three four five six seven eight nine ten eleven twelve thirteen"
    shifted = "Zero: one, two; three four five six\nseven eight nine ten eleven (twelve)!"
    eleven = "one two three four five six seven eight nine ten eleven and then another end"
    assert without_near_duplicates([first, shifted, eleven, first]) == [first, eleven]


def test_the_stdlib_corpus_is_large_enough_for_the_default_splits(stdlib):
    chunks = [chunk for document in stdlib for chunk in cut(document.text, 280) if is_prose(chunk)]
    texts = without_near_duplicates(chunks)
    assert len(texts) >= 4000 + 240 + 240 + 128 + 96
    assert len(set(texts)) == len(texts)


# --- splits --------------------------------------------------------------------------------

COUNTS = {"public": 9, "member": 5, "nonmember": 4, "calibration": 3, "evaluation": 2}
TEXTS = [f"text {i}" for i in range(30)]


def test_splits_are_disjoint_of_the_size_asked_and_independent_of_order():
    dealt = deal(TEXTS, COUNTS, seed=0)
    assert {split: len(frame) for split, frame in dealt.items()} == COUNTS
    together = pd.concat(dealt.values())
    assert set(together["text"]) < set(TEXTS)
    assert together["doc_id"].is_unique
    assert together["text"].is_unique
    assert list(together.columns) == DOCUMENTS.names
    again = deal(TEXTS[::-1] + TEXTS[:3], COUNTS, seed=0)
    for split in SPLITS:
        pd.testing.assert_frame_equal(dealt[split], again[split])
    assert set(deal(TEXTS, COUNTS, seed=1)["member"]["text"]) != set(dealt["member"]["text"])


def test_more_public_text_moves_no_other_document():
    fewer, more = deal(TEXTS, COUNTS, seed=0), deal(TEXTS, COUNTS | {"public": 16}, seed=0)
    for split in SPLITS[:-1]:
        pd.testing.assert_frame_equal(fewer[split], more[split])


def test_every_text_is_as_likely_in_every_split():
    n = 600
    seen = np.zeros((len(SPLITS), len(TEXTS)))
    for seed in range(n):
        for row, frame in zip(seen, deal(TEXTS, COUNTS, seed).values(), strict=True):
            row[[TEXTS.index(text) for text in frame["text"]]] += 1
    for row in seen:  # five tests: .001 each keeps a false alarm at .5%, and the seeds are fixed
        assert chisquare(row).pvalue > 0.001


def test_too_few_documents_says_how_many():
    with pytest.raises(RequestError, match=r"30 documents .* 44 are asked .*\n.*chunk_characters"):
        deal(TEXTS, COUNTS | {"public": 30}, seed=0)
