"""The curvature benchmark, run once on a micro model; its extrapolations by simulation."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from paramscope.artifacts.provenance import provenance
from paramscope.artifacts.tables import read_table, write_table
from paramscope.corpus.splits import DOCUMENTS
from paramscope.models.load import Architecture, new_opt
from paramscope.models.tokenizer import save_tokenizer, train_tokenizer

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CONTENDERS = ("ggn", "curvlinops_hutchinson", "sampled_ggn", "double_backward")
TEXT = [f"the {a} {b} sat on the {c}" for a in ("red", "old") for b in ("cat", "dog", "fox")
        for c in ("mat", "log", "hill", "step")]  # fmt: skip


@pytest.fixture
def accuracy(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("accuracy")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The benchmark's tables on four sentences and a model of some 20,000 parameters."""
    pytest.importorskip("curvlinops")
    folder = tmp_path_factory.mktemp("benchmark")
    model = new_opt(Architecture(hidden=16, layers=2, heads=2, ffn=32, positions=32), 290, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder / "model")
    save_tokenizer(train_tokenizer(TEXT, 290), folder / "model")
    text = pd.DataFrame({"doc_id": [f"doc-{i}" for i in range(4)], "text": TEXT[::6]})
    write_table(folder / "text.parquet", text, DOCUMENTS, provenance("cli.corpus", {}))
    outputs = [folder / name for name in ("table.parquet", "summary.parquet", "table.md")]
    command = [sys.executable, BENCHMARKS / "curvature.py", folder / "model"]
    command += [folder / "text.parquet", outputs[0], "--output-summary", outputs[1]]
    command += ["--output-table", outputs[2], "--sequences", "4", "--length", "16"]
    command += ["--batch", "3", "--entries", "60", "--repeats", "1", "--largest-budget", "4"]
    for name in CONTENDERS:
        command += ["--contender", name]
    subprocess.run(list(map(str, command)), check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    return outputs


def test_the_tables_have_their_schemas(measured, accuracy):
    table, summary, markdown = measured
    assert pq.read_schema(table).remove_metadata().equals(accuracy.TABLE)
    assert pq.read_schema(summary).remove_metadata().equals(accuracy.SUMMARY)
    rows, few = read_table(table), read_table(summary)
    assert tuple(rows["contender"].unique()) == tuple(few["contender"]) == CONTENDERS
    assert rows.groupby("contender")["budget"].apply(list).to_dict() == {
        "ggn": [1, 2, 4], "sampled_ggn": [1, 2, 4],
        "curvlinops_hutchinson": [1, 4], "double_backward": [4],
    }  # fmt: skip
    assert len(markdown.read_text().splitlines()) == 2 + len(CONTENDERS)


def test_costs_and_memory_are_measured(measured):
    rows, summary = read_table(measured[0]), read_table(measured[1])
    assert (rows["gradients"] > 0).all()
    assert np.allclose(rows["gradients"], rows["cpu_s"] / rows["gradient_cpu_s"])
    weights = 4 * torch.tensor(290 * 16).item()  # those of the embedding alone
    assert (rows["gradient_peak_tracked_bytes"] > 2 * weights).all()  # and its gradient
    assert (rows["peak_tracked_bytes"] > 2 * weights).all()
    assert (rows["peak_rss_bytes"] > rows["peak_tracked_bytes"]).all()
    assert summary["peak_ratio_tracked"].between(0.5, 50).all()


def test_contenders_find_what_they_are_of(measured):
    rows = read_table(measured[0]).set_index(["contender", "budget"])
    exact = rows.loc[("double_backward", 4)]
    assert exact["rmse"] < 1e-3  # float32 against float64
    assert exact["n_entries"] == 4
    for name in ("ggn", "sampled_ggn"):
        # noise of about √(2 / (4 sequences × 4 draws)) = .35, on entries over many decades
        assert rows.loc[(name, 4), "spearman_ggn"] > 0.8
        assert rows.loc[(name, 4), "rmse"] < 1.0
    probed = rows.loc["curvlinops_hutchinson"]["rmse"]
    assert probed[4] < probed[1]
    assert probed[4] > rows.loc[("ggn", 4), "rmse"]


def test_an_unknown_contender_is_a_wrong_request(tmp_path):
    command = [sys.executable, BENCHMARKS / "curvature.py", tmp_path, tmp_path, tmp_path / "o"]
    command += ["--output-summary", tmp_path / "s", "--contender", "guess"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no contender guess" in done.stderr


def simulated(accuracy, budgets, name="hutchinson", rate=0.5, repeats=6):
    """Runs of a mean of draws whose variance is known, and the reference that they answer for."""
    rng = np.random.default_rng(3)
    truth = np.exp(2 * rng.standard_normal(400))
    deviation = 20 * np.sqrt(truth)
    reference = accuracy.Reference(ggn=1.01 * truth, hessian=truth)

    def estimate(budget):
        return truth + deviation * rng.standard_normal(400) / budget**rate

    runs = [
        {"contender": name, "of": "hessian", "unit": "probe", "budget": budget, "repeat": repeat,
         "gradients": 1.0 + 2.0 * budget, "positions": list(range(400)),
         "values": estimate(budget).tolist()}
        for budget in budgets for repeat in range(repeats)
    ]  # fmt: skip
    return accuracy.scored(pd.DataFrame(runs), reference), reference, estimate


@pytest.mark.parametrize(("name", "rate"), [("hutchinson", 0.5), ("curvlinops_xdiag", 1.0)])
def test_budgets_beyond_the_measured_are_foreseen(accuracy, name, rate):
    runs, reference, estimate = simulated(accuracy, (1, 4, 16), name, rate)
    budget, extrapolated = accuracy.budget_to_spearman(runs, reference, 10**6, 0.98)
    assert extrapolated
    there = np.mean([accuracy.spearman(estimate(budget), reference.hessian) for _ in range(20)])
    # 18 runs tell each entry's variance to a third; seen: within .002
    assert there == pytest.approx(0.98, abs=0.006)
    far = [accuracy.relative_error(estimate(500), reference.hessian) for _ in range(50)]
    error = np.median(far)
    budget, extrapolated = accuracy.budget_to_error(runs, error, 10**6)
    assert extrapolated
    assert budget == pytest.approx(500, rel=0.2)  # of 18 errors, each ±15% or so, doubled


def test_a_budget_that_was_measured_is_not_extrapolated(accuracy):
    runs, reference, _ = simulated(accuracy, (1, 4, 10**5, 10**6))
    assert accuracy.budget_to_spearman(runs, reference, 10**6, 0.98) == (10**5, False)
    assert accuracy.budget_to_spearman(runs, reference, 10**6, 0.05) == (1, False)
    entries = runs.assign(unit="entry")
    assert accuracy.budget_to_spearman(entries, reference, 10**6, 0.98) == (10**6, True)


def test_a_goal_beyond_the_limit_is_never_reached(accuracy):
    runs, reference, _ = simulated(accuracy, (1, 4))
    other = np.random.default_rng(0).permutation(reference.hessian)
    apart = accuracy.Reference(reference.hessian, other)
    runs = runs.assign(of="ggn", spearman_hessian=0.0)
    assert accuracy.budget_to_spearman(runs, apart, 10**6, 0.98) == (None, True)


def test_costs_follow_their_line(accuracy):
    runs, _, _ = simulated(accuracy, (1, 4, 16))
    cost = accuracy.cost_of(runs)
    assert cost.slope == pytest.approx(2)
    assert cost(100) == pytest.approx(201)
    assert cost(4) == 9.0
