"""The stage as a command: what it writes, and what it leaves when the gate fails."""

import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from paramscope.artifacts.records import read_record
from paramscope.artifacts.tables import read_table, read_table_provenance
from paramscope.cli.corpus import corpus
from paramscope.corpus.splits import SPLITS
from paramscope.errors import RequestError

COUNTS = {"public": 30, "member": 20, "nonmember": 20, "calibration": 5, "evaluation": 10}
SIZES = [f"--{split}={n}" for split, n in COUNTS.items()]


@pytest.fixture
def text(tmp_path):
    generator = np.random.default_rng(0)
    words = np.array(["".join(w) for w in generator.choice(list("abcdefghij"), (200, 5))])
    documents = [" ".join(generator.choice(words, 60)) for _ in range(40)]
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": document}) for document in documents))
    return path


def run(*arguments):
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(corpus)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def local(text, output, *more):
    options = ["--source=local", f"--path={text}", "--chunk-characters=100", *SIZES, *more]
    return run(output, *options)


def test_writes_the_splits_and_the_gate(text, tmp_path):
    result = local(text, tmp_path / "out")
    assert result.exit_code == 0
    assert "blind gate passed" in result.output
    assert str(tmp_path / "out") in result.output.replace("\n", "")
    frames = {split: read_table(tmp_path / f"out/{split}.parquet") for split in SPLITS}
    assert {split: len(frame) for split, frame in frames.items()} == COUNTS
    gate = read_record(tmp_path / "out/gate.json")
    assert gate["passed"] is True
    assert [score["name"] for score in gate["scores"]] == ["zlib_length", "bag_of_words"]
    described = read_table_provenance(tmp_path / "out/member.parquet")
    assert described["notes"]["source_documents"] == 40
    assert list(described["inputs"]) == [str(text)]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        ["gate.json", *(f"{split}.parquet" for split in SPLITS)]
    )


def test_a_failed_gate_leaves_nothing_unless_allowed(text, tmp_path):
    output = tmp_path / "out"
    # a fair deal, whose p of .055 is small by chance
    options = ["--seed=7", "--alpha=0.5", "--deals=1"]
    with pytest.raises(RequestError, match="bag_of_words AUC") as raised:
        local(text, output, *options)
    assert "--allow-failed-gate" in str(raised.value)
    assert not output.exists()
    result = local(text, output, *options, "--allow-failed-gate")
    assert "blind gate FAILED" in result.output
    assert read_record(output / "gate.json")["passed"] is False
    assert len(read_table(output / "member.parquet")) == COUNTS["member"]


def test_a_deal_that_fails_by_chance_is_dealt_again_and_told(text, tmp_path):
    result = local(text, tmp_path / "out", "--seed=7", "--alpha=0.5", "--deals=9")
    gate = read_record(tmp_path / "out/gate.json")
    assert gate["passed"] is True
    assert 1 <= len(gate["failed_deals"]) < 9
    assert "bag_of_words AUC" in gate["failed_deals"][0]
    assert "a deal failed the blind gate" in result.output


def test_wrong_requests(text, tmp_path):
    with pytest.raises(RequestError, match="--source local"):
        run(tmp_path / "out", f"--path={text}")
    with pytest.raises(RequestError, match="are asked for"):
        local(text, tmp_path / "out", "--public=4000")
    assert not (tmp_path / "out").exists()
