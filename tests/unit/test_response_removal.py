"""Directions taken out beside noise in all of them: what is taken, and η's ratios."""

import math

import numpy as np
import pytest
import torch

from paramscope.names import SENS
from paramscope.response.directions import DirectionSet
from paramscope.response.ranges import HIGH
from paramscope.response.removal import (
    LEVELS,
    REMOVAL,
    Step,
    _taken,
    compare,
    record,
    removal,
    table,
)
from paramscope.response.separation import ISO_LOG_PPL
from paramscope.response.sweep import Outcome
from tests.unit.conftest import make_tiny
from tests.unit.response_sweeps import random_judge
from tests.unit.test_directions import random_directions, state

RESAMPLES = 40


def outcome(log_ppl, gap, auc, spread=None):
    """An outcome whose resamples are its values, or spread about them."""
    off = torch.zeros(RESAMPLES) if spread is None else spread
    return Outcome(log_ppl, auc, auc, gap, *(off + value for value in (log_ppl, auc, gap)))


def made(kind, draw, rate, gap_rate, signs=(0,), spread=None):
    """Steps along which the gap falls by gap_rate for each nat of log perplexity."""
    return [
        Step(kind, draw, level, sign, 10,
             outcome(2 + rise, 0.5 - gap_rate * rise, 0.8 - 0.1 * gap_rate * rise, spread))
        for level, rise in ((0.1, rate * 0.03), (0.2, rate * 0.2))
        for sign in signs
    ]  # fmt: skip


def test_ratios_of_known_trajectories_are_exact():
    """η is the rate at which the gap falls, whatever each kind's own scale is."""
    steps = made("low_curvature", 0, 0.7, 3.0)
    for draw, rate in enumerate((0.5, 0.7)):
        steps += made("random", draw, 2.0, rate)
        steps += made("uniform_noise", draw, 1.0, 1.5, signs=(-1, 1))
    found = compare(outcome(2, 0.5, 0.8), steps, seed=0)
    gap, auc = found["gap"], found["auc"]
    assert gap.eta == pytest.approx({"low_curvature": 3.0, "random": 0.6, "uniform_noise": 1.5})
    assert auc.eta["low_curvature"] == pytest.approx(0.3)
    assert gap.ratio == pytest.approx({"low_curvature": 2.0, "random": 0.4})
    # documents say the same in every resample, so the interval holds the draws' spread alone
    assert gap.low["low_curvature"] == pytest.approx(2.0)
    assert gap.low["random"] == pytest.approx(0.5 / 1.5)
    assert gap.high["random"] == pytest.approx(0.7 / 1.5)
    assert record(found)["gap"]["n"] == {"low_curvature": 1, "random": 2, "uniform_noise": 2}


def test_the_interval_holds_what_documents_leave_open():
    """The gap's change is resampled with the documents, paired with the unchanged model's."""
    generator = torch.Generator().manual_seed(0)
    factor = 1 + 0.2 * torch.randn(RESAMPLES, generator=generator)
    steps = made("uniform_noise", 0, 1.0, 1.0, (-1, 1)) + made(
        "uniform_noise", 1, 1.0, 1.0, (-1, 1)
    )
    low = made("low_curvature", 0, 1.0, 2.0)
    for step in low:
        fall = (0.5 - step.outcome.loss_gap) * factor
        step.outcome.loss_gap_resampled.copy_(0.5 - fall)
    found = compare(outcome(2, 0.5, 0.8), steps + low, seed=0)["gap"]
    assert found.ratio["low_curvature"] == pytest.approx(2.0)
    ends = np.quantile(2 * factor.numpy(), [0.025, 0.975])
    assert [found.low["low_curvature"], found.high["low_curvature"]] == pytest.approx(
        ends, rel=1e-6
    )


def test_a_kind_that_never_costs_five_percent_has_no_eta():
    steps = made("low_curvature", 0, 0.1, 3.0) + made("uniform_noise", 0, 1.0, 1.5, (-1, 1))
    found = compare(outcome(2, 0.5, 0.8), steps, seed=0)["gap"]
    assert found.n["low_curvature"] == 0
    assert math.isnan(found.ratio["low_curvature"])
    assert math.isnan(found.low["low_curvature"])


@pytest.mark.parametrize("kind", ["opt", "gpt2", "llama"])
def test_what_is_taken_out_grows_and_holds_its_share(kind):
    model = make_tiny(kind, tied=kind != "llama").float()
    directions = random_directions(model)
    for which in ("low_curvature", "random"):
        before = None
        for level in LEVELS:
            out = DirectionSet(model, _taken(directions, which, level, 1, 0), SENS)
            for name, mask in out.masks.items():
                h = directions[name.removesuffix(".weight")].curvature
                if which == "random":
                    assert int(mask.sum()) == round(level * h.numel())
                    continue
                share = float(h[mask].sum() / h.sum())
                greatest = float(h[mask].max() / h.sum()) if mask.any() else 0
                assert share <= level + 1e-9  # and one more direction would be more than it
                assert share > level - float(h[~mask].min() / h.sum()) - 1e-9
                assert greatest <= float(h[~mask].min() / h.sum())
            if before is not None:
                assert all((before[name] <= mask).all() for name, mask in out.masks.items())
            before = out.masks


def test_all_three_kinds_are_measured_and_leave_no_trace():
    model, judge = make_tiny().float(), random_judge()
    kept = state(model)
    baseline, steps = removal(model, judge, random_directions(model), draws=2, seeds=2, seed=3)
    assert all(torch.equal(kept[name], value) for name, value in state(model).items())
    assert baseline.log_ppl == judge(model).log_ppl
    by_kind = {k: [s for s in steps if s.kind == k] for k in ("low_curvature", "random")}
    for kind, draws in (("low_curvature", 1), ("random", 2)):
        assert {s.draw for s in by_kind[kind]} == set(range(draws))
        rises = [s.outcome.log_ppl - baseline.log_ppl for s in by_kind[kind] if s.draw == 0]
        assert all(rise < HIGH for rise in rises[:-1])
        assert len(rises) == len(LEVELS) or rises[-1] >= HIGH
    noise = [s for s in steps if s.kind == "uniform_noise"]
    assert len(noise) == 2 * 2 * 4
    assert {s.sign for s in noise} == {-1, 1}
    assert len({s.outcome.log_ppl for s in noise}) == len(noise)
    rows = table(baseline, steps)
    assert list(rows.columns) == REMOVAL.names
    first = steps[0].outcome
    assert rows["delta_loss_gap"][0] == pytest.approx(first.loss_gap - baseline.loss_gap)
    assert ISO_LOG_PPL < HIGH
