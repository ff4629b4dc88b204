"""The compression benchmark on a micro model, and its references against plainer ones."""

import copy
import json
from dataclasses import replace
from importlib.metadata import version

import pandas as pd
import pytest
import torch
import typer
from typer.testing import CliRunner

from paramscope.artifacts.provenance import provenance
from paramscope.artifacts.records import read_record
from paramscope.artifacts.tables import write_table
from paramscope.compression.layers import prunable, weight_of
from paramscope.compression.methods import Options, prune
from paramscope.corpus.splits import DOCUMENTS
from paramscope.models.load import Architecture, new_opt
from paramscope.models.sequences import Sequences
from paramscope.models.tokenizer import save_tokenizer, train_tokenizer
from tests.benchmarks import compression_cases
from tests.benchmarks.compression import compression
from tests.benchmarks.compression_goals import flow_summary, goals
from tests.benchmarks.compression_job import Job
from tests.benchmarks.compression_oracle import brain_surgeon, second_moments
from tests.benchmarks.compression_published import published
from tests.benchmarks.goals import Goal

TEXT = [f"the {a} {b} sat on the {c}" for a in ("red", "old") for b in ("cat", "dog", "fox")
        for c in ("mat", "log", "hill", "step")]  # fmt: skip


def micro(hidden=16, ffn=32):
    """An OPT of two blocks with weights far from their initialisation."""
    shape = Architecture(hidden=hidden, layers=2, heads=2, ffn=ffn, positions=32)
    model = new_opt(shape, 290, seed=0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder `model` and a calibration file `text.parquet`."""
    folder = tmp_path_factory.mktemp("benchmark")
    micro().save_pretrained(folder / "model")
    save_tokenizer(train_tokenizer(TEXT, 290), folder / "model")
    text = pd.DataFrame({"doc_id": [f"doc-{i}" for i in range(len(TEXT))], "text": TEXT})
    write_table(folder / "text.parquet", text, DOCUMENTS, provenance("cli.corpus", {}))
    return folder


@pytest.fixture
def measured(folder, tmp_path):
    """A function of a case: what a process of it would find."""
    job = Job(
        "", str(folder / "model"), str(folder / "text.parquet"), str(tmp_path / "result.json"),
        layers=2, sequences=24, tokens=16, batch=4, threads=1, rounds=1,
    )  # fmt: skip

    def measure(case, **changes):
        compression_cases.measure(replace(job, case=case, **changes))
        return json.loads((tmp_path / "result.json").read_text())

    return measure


def inputs(n=300, d=24):
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(n, d, generator=generator, dtype=torch.float64)
    X = X @ torch.randn(d, d, generator=generator, dtype=torch.float64)
    X[:, 5] = 0
    return X


def test_the_float64_solution_solves_for_the_weights_that_are_left():
    X = inputs()
    H = 2 / len(X) * X.T @ X
    W = torch.randn(20, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    new, keep = brain_surgeon(W, H, 0.4, blocksize=7)
    assert int(keep.sum()) == round(0.4 * 20 * 24)
    assert not keep[:, 5].any()
    assert (new[~keep] == 0).all()
    # With its mask known, a row's j-th weight is pruned by its best answer on all after it.
    mean = H.diagonal()[H.diagonal() > 0].mean()
    H = H + 0.01 * mean * torch.eye(24, dtype=H.dtype)
    H[5, 5] += mean
    for row in range(20):
        w = W[row].clone()
        for j in (~keep[row]).nonzero().flatten().tolist():
            rest = slice(j + 1, None)
            w[rest] += torch.linalg.solve(H[rest, rest], H[rest, j] * w[j])
            w[j] = 0
        torch.testing.assert_close(new[row], w, rtol=1e-8, atol=1e-10)


def test_second_moments_leave_padding_out():
    model = micro()
    ids = torch.arange(2, 26).view(2, 12)
    text = Sequences(ids, torch.tensor([12, 5]), ("a", "b"))
    seen = []
    layer = model.model.decoder.layers[1].fc1
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(input_ids=ids)
    handle.remove()
    whole = seen[0].view(2, 12, -1)  # causal: a pad changes nothing before it
    x = torch.cat([whole[0], whole[1, :5]]).double()
    # float32 forwards of other shapes
    torch.testing.assert_close(second_moments(model, layer, text), 2 / 17 * x.T @ x, rtol=1e-4,
                               atol=1e-5)  # fmt: skip


def test_the_published_flow_prunes_as_ours_does_in_its_order():
    model = micro(hidden=32, ffn=160)
    ids = torch.randint(290, (20, 32), generator=torch.Generator().manual_seed(3))
    text = Sequences(ids, torch.full((20,), 32), tuple(map(str, range(20))))
    ours, theirs = copy.deepcopy(model), copy.deepcopy(model)
    prune(ours, text, method="sparsegpt", density=0.3, options=Options(within_block=False))
    published(theirs, text, 0.3)
    expected = prunable(ours)
    for name, layer in prunable(theirs).items():
        got, wanted = weight_of(layer), weight_of(expected[name])
        # One weight a block of columns is kept less: its row moves, and all that follows a bit.
        assert 0 <= int(wanted.count_nonzero() - got.count_nonzero()) <= 2, name
        assert ((got == 0) == (wanted == 0)).double().mean() > 0.99, name
        if "layers.0.self_attn" in name and "out_proj" not in name:
            same = torch.isclose(got, wanted, rtol=1e-3, atol=1e-4).all(1)
            assert same.sum() >= len(same) - 1, name


def test_layers_are_compared_with_the_float64_solution(measured, monkeypatch):
    found = measured("accuracy")
    assert [row["density"] for row in found["layers"]] == [0.5] * 12 + [0.1] * 12
    assert all(row["loss"] > 1e-3 for row in found["layers"])
    assert 0 < found["worst_deviation"] < 1e-3  # float32 against float64
    assert found["worst_agreement"] > 0.99
    monkeypatch.setattr("tests.benchmarks.compression_oracle.DAMPING", 0.05)
    assert measured("accuracy")["worst_deviation"] > 1e-3  # another solution is told apart


def test_steps_are_the_same_and_their_state_is_counted(measured):
    for width, scopes in ((0, ["pruned", "all"]), (16, ["pruned"])):
        rows = measured("steps", hidden=width)["rows"]
        assert [row["scope"] for row in rows] == scopes
        assert all(row["identical"] for row in rows)
        pruned = rows[0]
        weights = 2 * (4 * 16 * 16 + 2 * 16 * (64 if width else 32))
        assert pruned["values"] == weights
        assert pruned["dense_state_bytes"] == 8 * weights + 4 * 12  # with a step a tensor
        assert pruned["state_ratio"] == pytest.approx(0.1, abs=2e-3)
        for row in rows:
            assert set(row["step_ratio"]) == {"for_loop", "foreach", "fused"}
            assert all(ratio["median"] > 0 for ratio in row["step_ratio"].values())


def test_a_checkpoint_is_measured_in_its_file(measured):
    found = measured("checkpoint")
    assert found["loads_exactly"]
    weights = 2 * (4 * 256 + 2 * 512)
    assert found["dense_bytes"] == 2 * weights
    assert found["compact_bytes"] == weights / 8 + 2 * found["density"] * weights
    assert found["file_bytes"] > found["compact_bytes"]


@pytest.mark.parametrize("width", [0, 16])
def test_flows_are_timed_and_their_memory_is_counted(measured, width):
    runs = [measured("flow", hidden=width, contender=c) for c in ("published", "paramscope")]
    buffer = 4 * 16 * runs[0]["tokens"]
    for run, buffers in zip(runs, (2, 1), strict=True):
        assert run["wall_s"] > 0
        assert run["tracked_peak_bytes"] > buffers * buffer
        assert run["density"] == pytest.approx(0.1, abs=0.01)  # a weight a block less, of 256
    assert [run["batch"] for run in runs] == [1, 4]
    # They keep other weights by a few, and take a block's inputs before or after it is pruned.
    assert runs[0]["loss_after"] == pytest.approx(runs[1]["loss_after"], rel=0.05)


def run_of(contender, turn, wall, batch=1, peak=0):
    return {"contender": contender, "turn": turn, "batch": batch, "wall_s": wall, "cpu_s": 1.0,
            "rss_growth_bytes": 100, "tracked_peak_bytes": peak, "weights_bytes": 50}  # fmt: skip


def test_turns_are_compared_one_by_one():
    runs = [run_of("published", 0, 2.0, peak=150), run_of("paramscope", 0, 1.0, peak=50)]
    runs += [run_of("published", 1, 8.0), run_of("paramscope", 1, 6.0)]
    runs += [run_of("published", 2, 1.0), run_of("paramscope", 2, 3.0)]
    runs += [run_of("paramscope", 0, 4.0, batch=16, peak=300)]
    found = flow_summary(runs)
    assert found["batch 1"]["wall_ratio"] == {"median": 0.75, "low": 0.625, "high": 1.875}
    assert found["batch 1"]["tracked_peak_ratio"] == pytest.approx(1 / 3)
    assert found["batch 1"]["tracked_peak_with_weights_ratio"] == 0.5
    assert found["batch 16"]["wall_ratio"]["median"] == 2
    listed = goals({"flow": [{"subject": "a model", "ratios": found}]})
    assert [goal["met"] for goal in listed] == [True, True, False, False, False, False]
    assert Goal("agreement", "a model", 0.99, 0.98, at_least=True).record()["met"] is False


def test_the_command_writes_what_was_reached(folder, tmp_path):
    app = typer.Typer()
    app.command()(compression)
    common = [str(tmp_path / "out.json"), "--model", str(folder / "model")]
    common += ["--calibration", str(folder / "text.parquet"), "--threads", "1"]
    unknown = CliRunner().invoke(app, [*common, "--case", "guess"])
    assert unknown.exit_code == 2
    assert "no case guess" in unknown.output
    done = CliRunner().invoke(app, [*common, "--case", "checkpoint"])
    assert done.exit_code == 0, done.output
    record = read_record(tmp_path / "out.json")
    [goal] = record["goals"]
    [found] = record["checkpoint"]
    assert goal["reached"] == found["ratio"]
    assert goal["met"] == (goal["reached"] <= 0.1625)
    assert record["provenance"]["versions"]["torch"] == version("torch")
    assert {"date", "commit", "device", "rounds", "density"} <= record.keys()
