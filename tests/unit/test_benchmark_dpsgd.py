"""The DP-SGD benchmark: what it makes of its measurements, and that its oracle can fail."""

import torch

from paramscope.dpsgd import book_keeping
from tests.benchmarks.dpsgd import LEAN, goals, summary
from tests.benchmarks.dpsgd_job import Job, gradient_error


def run_of(own, plain, peak=0, error=None):
    return {"own_s": own, "plain_s": plain, "peak_bytes": peak, "plain_peak_bytes": 200,
            "gradient_error": error}  # fmt: skip


def test_steps_are_compared_one_by_one():
    """Ratios 1, 3, 2 and 8 of two processes; memory of the first, the worst of the errors."""
    runs = [run_of([1.0, 6.0], [1.0, 2.0], peak=150, error=1e-7),
            run_of([4.0, 8.0], [2.0, 1.0], peak=999, error=3e-7), run_of([], [])]  # fmt: skip
    assert summary(runs) == {
        "time": {"median": 2.5, "low": 1.75, "high": 4.25},
        "own_s": 5.0,
        "plain_s": 1.5,
        "memory": 0.75,
        "peak_bytes": 150,
        "gradient_error": 3e-7,
    }
    assert summary([run_of([3.0], [2.0], peak=100)])["gradient_error"] is None


def case_of(method, tokens, samples, time, memory, error=None):
    return {"method": method, "tokens": tokens, "samples": samples, "time": {"median": time},
            "memory": memory, "gradient_error": error}  # fmt: skip


def test_goals_are_of_bk_at_its_worst_and_of_the_leanest():
    cases = [
        case_of("bk", 256, 4, 1.25, 1.01, 1e-6),
        case_of("bk", 2048, 1, 1.06, 1.03, 2e-6),
        case_of("bk", 2048, 2, 9.0, 1.0, 1e-7),  # has no goal of time
        case_of("flash", 256, 4, 9.0, 9.0, 1.0),  # has none
        case_of(LEAN, 256, 4, 1.4, 0.46, 1.0),
    ]
    records = [goal.record() for goal in goals(cases)]
    assert [(r["reached"], r["limit"], r["met"]) for r in records] == [
        (1.25, 1.25, True),
        (1.06, 1.05, False),
        (1.03, 1.02, False),
        (2e-6, 2e-6, True),
        (0.46, 0.46, True),
        (1.4, 1.35, False),
    ]
    assert "T 2048, B 1" in records[1]["what"]
    assert goals([case_of("ghost", 256, 4, 1.0, 1.0)]) == []


def test_the_oracle_tells_a_clipped_sum_from_another(monkeypatch):
    """One of three samples is clipped: C is the median of their norms."""
    job = Job("bk", tokens=12, samples=3, hidden=32, layers=1, seed=3)  # its norms are 4% apart
    assert 0 < gradient_error(job) < 5e-6  # float32 against float64
    monkeypatch.setattr(book_keeping, "clip_factors", lambda squared, _: torch.ones_like(squared))
    assert gradient_error(job) > 1e-2
