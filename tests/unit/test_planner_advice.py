"""Verdicts, mends and largest batches, held to trying everything out; and the command."""

import json
from dataclasses import replace

import pytest
from transformers import OPTConfig

from paramscope.cli.plan import plan, recommended
from paramscope.errors import DeviceError, RequestError
from paramscope.planner.advice import CHUNK, Adviser
from paramscope.planner.estimate import estimate
from paramscope.planner.known_devices import Device, usable_bytes
from paramscope.planner.options import Options

CONFIG = OPTConfig(
    vocab_size=512, hidden_size=16, word_embed_proj_dim=16, num_hidden_layers=2,
    num_attention_heads=2, ffn_dim=32, max_position_embeddings=1024, dropout=0.0,
)  # fmt: skip
ASKED = Options(batch=4, length=64)


def of_size(usable, kind="cpu"):
    """A device with about so many usable bytes, at the least so many."""
    size = usable
    while usable_bytes(device := Device("test", kind, size, "", "")) < usable:
        size += max(1, (usable - usable_bytes(device)) // 2)
    return device


def peak(strategy, options=ASKED):
    """What a strategy takes, malloc's reserve with it."""
    found = estimate(CONFIG, strategy, options)
    return found.peak_bytes + sum(row["bytes"] or 0 for row in found.terms)


def test_what_just_fits_fits():
    need = peak("training")
    for process in (0, 5_000):
        device = of_size(need + process)
        assert usable_bytes(device) == need + process
        found = Adviser(CONFIG, device, process).verdict("training", ASKED)
        assert found.fits
        assert found.total_bytes == need + process
        assert not Adviser(CONFIG, device, process + 1).verdict("training", ASKED).fits


CHUNKS, BFLOAT16, CHECKPOINTING, LAYERWISE, ONE = CHANGES = {
    f"--chunk-tokens {CHUNK}": {"chunk_tokens": CHUNK},
    "--dtype bfloat16": {"dtype": "bfloat16"},
    "--checkpointing": {"checkpointing": True},
    "--graph layerwise": {"graph": "layerwise"},
    "--batch 1": {"batch": 1},
}


@pytest.mark.parametrize(
    ("strategy", "given", "words"),
    [
        ("dpsgd-bk", {"length": 1024}, [CHUNKS, BFLOAT16, CHECKPOINTING, ONE]),
        ("training", {}, [BFLOAT16, CHECKPOINTING, ONE]),
        ("training", {"dtype": "bfloat16"}, [CHECKPOINTING, ONE]),
        ("ggn", {}, [BFLOAT16, LAYERWISE, ONE]),
    ],
)
def test_the_first_change_that_does_is_taken(strategy, given, words):
    """A device that holds each change's own peak and no more is mended by it, or one before it."""
    asked = replace(ASKED, **given)
    peaks = [peak(strategy, replace(asked, **CHANGES[word])) for word in words]
    assert max(peaks) < peak(strategy, asked)  # each helps
    for own in peaks:
        mended = Adviser(CONFIG, of_size(own)).mend(strategy, asked)
        first = next(i for i, n_bytes in enumerate(peaks) if n_bytes <= own)
        assert mended.words == (words[first],)
        assert mended.verdict.total_bytes == peaks[first]


def test_changes_are_joined_where_one_is_not_enough():
    all_of_them = replace(ASKED, dtype="bfloat16", checkpointing=True, batch=1)
    least = peak("training", all_of_them)
    assert least < peak("training", replace(ASKED, batch=1, checkpointing=True))
    mended = Adviser(CONFIG, of_size(least)).mend("training", ASKED)
    assert mended.words == ("--dtype bfloat16", "--checkpointing", "--batch 1")
    assert mended.verdict.total_bytes == least
    # `of_size` may give a byte more than asked for.
    assert Adviser(CONFIG, of_size(least - 2)).mend("training", ASKED) is None
    assert Adviser(CONFIG, of_size(least)).mend("full_hessian", Options()) is None


@pytest.mark.parametrize("strategy", ["inference", "training", "dpsgd-bk"])
def test_the_largest_batch_is_that_of_trying_all(strategy):
    need = peak(strategy, replace(ASKED, batch=7))
    for spare in (-1, 0, 1):
        device = of_size(need)
        device = replace(device, memory_bytes=device.memory_bytes + 2 * spare)
        adviser = Adviser(CONFIG, device)
        tried = 0
        while adviser.verdict(strategy, replace(ASKED, batch=tried + 1)).fits:
            tried += 1
        assert adviser.largest_batch(strategy, ASKED) == tried > 0
    assert Adviser(CONFIG, of_size(1000)).largest_batch(strategy, ASKED) == 0


@pytest.fixture
def folder(tmp_path):
    CONFIG.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_the_command_tells_what_the_library_does(folder, capsys):
    plan(folder, device="a800", strategy=["training", "ggn"], batch=4, length=64, as_json=True)
    out, progress = capsys.readouterr()
    lines = [line for line in progress.splitlines() if line.startswith("planning")]
    assert lines == ["planning training", "planning ggn"]
    told = json.loads(out)
    assert told["recommended"]["training"]["strategy"] == "training"
    assert told["device"]["name"] == "a800"
    training, ggn = told["strategies"]
    expected = estimate(CONFIG, "training", ASKED, "cuda")
    assert training["estimate"]["peak_bytes"] == expected.peak_bytes
    assert training["total_bytes"] > expected.peak_bytes  # cuBLAS' workspace
    assert training["fits"]
    assert ggn["fits"]
    assert training["mend"] is None
    plan(folder, device="a800", strategy=["full_hessian", "training"], largest_batch=True)
    text = capsys.readouterr().out
    assert "for training: training (21.3 MB)" in text
    assert "largest batch" in text


def test_a_run_of_all_layers_is_told(tmp_path, capsys, monkeypatch):
    deep = OPTConfig.from_dict(CONFIG.to_dict() | {"num_hidden_layers": 6})
    deep.save_pretrained(tmp_path)
    asked = {"device": "a800", "strategy": ["training", "full_hessian"], "length": 32}
    plan(str(tmp_path), verify=True, **asked)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "a run of all layers agrees" in line] == [
        "training"
    ]
    wrong = replace(estimate(deep, "training", Options(length=32), "cuda"), peak_bytes=1)
    monkeypatch.setattr("paramscope.planner.estimate.estimate", lambda *a, **k: wrong)
    plan(str(tmp_path), verify=True, as_json=True, **asked)
    rows = json.loads(capsys.readouterr().out)["strategies"]
    assert [row["estimate"]["verified"] for row in rows] == [False, None]


def test_what_the_model_can_not_do_is_told_and_the_rest_planned(folder, capsys, monkeypatch):
    told = Adviser.verdict

    def verdict(self, strategy, options):
        if strategy == "ggn":
            raise RequestError("layer x: no such gradient")
        return told(self, strategy, options)

    monkeypatch.setattr(Adviser, "verdict", verdict)
    plan(folder, device="a800", length=64, as_json=True)
    record = json.loads(capsys.readouterr().out)
    assert record["refused"] == {"ggn": "layer x: no such gradient"}
    names = [row["strategy"] for row in record["strategies"]]
    assert "training" in names
    assert "ggn" not in names
    with pytest.raises(RequestError, match="no such gradient"):
        plan(folder, device="a800", length=64, strategy=["training", "ggn"])


def test_what_is_recommended_is_the_first_that_fits_else_that_is_mended():
    def row(strategy, fits, mend=None):
        return {
            "strategy": strategy,
            "fits": fits,
            "mend": mend,
            "total_bytes": 9,
            "mended_bytes": 5,
        }

    rows = [
        row("inference", False),
        row("ggn", False, ["--dtype bfloat16"]),
        row("hutchinson", True),
        row("prune-wanda", False, ["--batch 1"]),
        row("prune-magnitude", False, ["--batch 1"]),
        row("full_hessian", False),
    ]
    best = recommended(rows)
    assert best["evaluation"] is None
    assert best["curvature"]["strategy"] == "hutchinson"
    assert best["pruning"]["strategy"] == "prune-wanda"
    assert set(best) == {"evaluation", "curvature", "pruning"}


@pytest.mark.parametrize(
    ("wrong", "error", "told"),
    [
        ({"device": "a8000"}, DeviceError, "did you mean a800"),
        ({"strategy": ["trainig"]}, RequestError, "strategy 'trainig' is not known"),
        ({"dtype": "int8"}, RequestError, "dtype 'int8' is not known"),
        ({"batch": 0}, RequestError, "batch is 0"),
        ({"length": 100_000}, RequestError, "positions"),
        ({"model": "no/such-model"}, RequestError, "no/such-model"),
    ],
)
def test_wrong_requests_are_told(folder, wrong, error, told):
    asked = {"model": folder, "device": "a800", "strategy": ["training"]} | wrong
    with pytest.raises(error, match=told):
        plan(**asked)
