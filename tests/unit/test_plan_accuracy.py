"""Plans beside real runs: the profiler's count is exact, and an estimate that is off is found."""

import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from paramscope.artifacts.tables import read_table, read_table_provenance
from paramscope.cli import plan_accuracy as command
from paramscope.dpsgd.workloads import Workload, architecture
from paramscope.errors import DeviceError, RequestError
from paramscope.planner import accuracy, real_run
from paramscope.planner.accuracy import CASES, WORST, document, row, told, verdict_of
from paramscope.planner.models import parameters
from paramscope.planner.options import Options
from paramscope.planner.real_run import Case, Measured, profiled_peak, run_alone
from paramscope.planner.strategies import STRATEGIES, Strategy, check
from paramscope.planner.terms import MALLOC_SHARE
from paramscope.planner.traces import FEW

LAYERS = FEW[-1] + 1  # more than are run


def case(strategy, family="opt", **options):
    workload = Workload("tiny", family, 32, LAYERS, 2, 48, 150, 24, 2)
    return Case(strategy, workload, Options(batch=2, length=24, **options))


def profiled(one):
    return profiled_peak(architecture(one.workload), one.strategy, one.options)


def test_every_strategy_has_a_case():
    assert {one.strategy for one in CASES} == set(STRATEGIES)
    for one in CASES:
        check(one.strategy, one.options)
        assert one.workload.layers > FEW[-1]
        assert (one.workload.length, one.workload.batch) == (one.options.length, one.options.batch)
    assert {one.workload.family for one in CASES} == {"opt", "gpt2", "llama"}
    assert {one.options.dtype for one in CASES} >= {"float32", "bfloat16"}
    assert {one.options.optimizer for one in CASES} >= {"plain", "foreach", "fused"}
    assert {one.options.checkpointing for one in CASES} == {True, False}
    assert any(one.options.chunk_tokens for one in CASES)


def took(monkeypatch, work):
    """What the profiler tells of `work` on a model; less the model and its text, whole."""
    one = case("stub")
    monkeypatch.setattr(real_run, "STRATEGIES", {"stub": Strategy("stub", lambda *_: work())})
    text = 8 * (2 * 24 + 2)
    return profiled(one) - 4 * parameters(architecture(one.workload)) - text


def test_the_profiler_counts_what_is_held_at_once(monkeypatch):
    def work():
        first = torch.empty(30_000)
        del first
        second = torch.empty(20_000)
        third = torch.empty(15_000, dtype=torch.bfloat16)
        return second, third

    rests = took(monkeypatch, lambda: None)  # buffers, and what the text takes while it is made
    assert 0 <= rests < 2_000
    assert took(monkeypatch, work) == pytest.approx(30_000 * 4, abs=2_000)
    assert took(monkeypatch, lambda: [torch.empty(n) for n in (10_000, 25_000)]) == pytest.approx(
        35_000 * 4, abs=2_000
    )


def test_numpys_memory_counts_while_a_tensor_has_it(monkeypatch):
    def one_by_one():
        for _ in range(3):
            view = torch.from_numpy(np.zeros(200_000, np.int8))[:10]
            del view

    def together():
        return [torch.from_numpy(np.zeros(200_000, np.int8))[:10] for _ in range(3)]

    assert took(monkeypatch, one_by_one) == pytest.approx(200_000, abs=2_000)
    assert took(monkeypatch, together) == pytest.approx(600_000, abs=2_000)
    assert torch.from_numpy.__name__ == "from_numpy"


def test_making_the_model_does_not_count(monkeypatch):
    made = real_run.new_model

    def dear(*given):
        torch.empty(10**6)
        return made(*given)

    monkeypatch.setattr(real_run, "new_model", dear)
    assert took(monkeypatch, lambda: None) < 2_000


SMALL = [
    case("inference"),
    case("training", "gpt2", optimizer="foreach"),
    case("masked_finetune", density=0.1),
    case("dpsgd-bk", "llama", chunk_tokens=10),
    case("hutchinson"),
    case("prune-wanda", "llama"),
]


@pytest.mark.parametrize("one", SMALL, ids=lambda one: one.strategy)
def test_an_estimate_that_is_off_is_found(one):
    """True estimates are within the goal; a hundredth more, and one without a part, are not."""
    verdict = verdict_of(one, process_bytes=0)
    measured = Measured(profiled(one), 0)

    def error(changed):
        return row(one, replace(verdict, estimate=changed), measured, 1)["error"]

    true = verdict.estimate
    assert true.how == "extrapolated"
    assert abs(error(true)) <= WORST
    assert error(replace(true, peak_bytes=round(1.01 * true.peak_bytes))) > WORST
    parts = [size for size in true.breakdown.values() if size > 0.02 * true.peak_bytes]
    assert len(parts) >= 2
    for size in parts:
        assert error(replace(true, peak_bytes=true.peak_bytes - size)) < -WORST


def test_a_process_of_its_own_counts_the_same():
    one = case("training")
    threads = torch.get_num_threads()
    found = run_alone(one, threads)
    assert found.peak_bytes == profiled(one)
    assert found.rss_bytes > 10**8 + found.peak_bytes  # torch alone is more


def test_a_process_that_fails_is_told(monkeypatch, tmp_path):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho early >&2\necho 'MemoryError: no room' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(DeviceError, match="real run of gradient failed: MemoryError: no room"):
        run_alone(case("gradient"), 1)


def test_rows_and_words():
    """A fit is false above the total over what the margin of a tenth leaves."""
    one = case("gradient", dtype="bfloat16", checkpointing=True)
    verdict = verdict_of(one, process_bytes=10**6)
    live = verdict.estimate.peak_bytes
    total = live + round(MALLOC_SHARE * live) + 10**6
    rows = [
        row(one, verdict, Measured(verdict.estimate.peak_bytes * 2, rss), 2)
        for rss in (int(total / 0.9), int(total / 0.9) + 2)
    ]
    assert [each["false_fit"] for each in rows] == [False, True]
    assert rows[0]["total_bytes"] == total
    assert rows[0]["error"] == -0.5
    assert rows[0]["options"] == "--checkpointing"
    assert rows[0]["parameters"] == parameters(architecture(one.workload))
    text = document(pd.DataFrame(rows), "cpu, 2 threads")
    assert "2 cases of 1 strategies on cpu, 2 threads" in text
    assert "at most 50.000% (gradient, opt), median 50.000%" in text
    assert "False fits: 1" in text
    assert (
        text.count(f"| gradient | opt {LAYERS} × 32, 0.0 M | bfloat16 | 2 × 24 | `--checkpointing`")
        == 2
    )


def test_options_are_told_as_typed():
    assert told(Options(dtype="bfloat16", batch=7, length=9, optimizer="plain")) == ""
    asked = Options(chunk_tokens=5, optimizer="fused", density=0.25, graph="layerwise", draws=2)
    assert told(asked) == (
        "--chunk-tokens 5 --optimizer fused --draws 2 --graph layerwise --density 0.25"
    )


def test_the_command_writes_table_and_document(monkeypatch, tmp_path, capsys):
    cases = SMALL[0], SMALL[5]
    # Now: what is run beside an estimate in one process would be run by the estimate's rules.
    peaks = {one.strategy: profiled(one) for one in cases}

    def alone(one, threads):
        return Measured(peaks[one.strategy], threads * 10**9)

    monkeypatch.setattr(accuracy, "CASES", cases)
    monkeypatch.setattr(real_run, "run_alone", alone)
    command.plan_accuracy(tmp_path, threads=1)
    rows = read_table(tmp_path / "accuracy.parquet")
    assert rows["strategy"].tolist() == ["inference", "prune-wanda"]
    assert (rows["error"].abs() <= WORST).all()
    assert (rows["rss_bytes"] == 10**9).all()
    assert (rows["total_bytes"] > rows["predicted_bytes"] + 10**8).all()  # Python, and torch
    assert read_table_provenance(tmp_path / "accuracy.parquet")["device"] == "cpu, 1 threads"
    assert "made by:" in (tmp_path / "accuracy.md").read_text()
    assert "2/2 prune-wanda tiny: predicted" in capsys.readouterr().out
    with pytest.raises(RequestError, match="no case of gradient; there are some of inference, pru"):
        command.plan_accuracy(tmp_path, strategy=["gradient"])
