"""Private finetuning against a loop written out, its chance, its restarts, and an audit of it."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import binom, chi2

from paramscope.artifacts.tensors import read_tensors
from paramscope.dpsgd import finetune as finetuning
from paramscope.dpsgd.accounting import auc_bound, epsilon_spent, noise_multiplier_for
from paramscope.dpsgd.finetune import finetune, poisson_batches
from paramscope.dpsgd.methods import Options
from paramscope.dpsgd.plan import Plan, training_history
from paramscope.errors import ArtifactError, RequestError
from paramscope.evaluation.roc import judge, resamples
from paramscope.models.load import Architecture, new_opt
from paramscope.models.losses import document_losses, token_log_probabilities
from paramscope.models.saved_state import part_of
from paramscope.models.sequences import padded
from tests.unit.conftest import make_tiny
from tests.unit.dpsgd_oracles import OURS, chosen, clipped_oracle, median_norm, unclipped
from tests.unit.killed_runs import after_kills

PLAN = Plan(0.4, 5, 1.0, 1.0, physical_batch=2, learning_rate=1e-2)
RARE = 1e-6  # of a test that holds: how often its interval would miss


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def test_it_is_the_loop_written_out(sequences, monkeypatch):
    """Batches as drawn, one of them empty; clipped sums by autograd; torch's AdamW by hand."""
    places = [[0, 2, 3, 5], [], [1], [0, 1, 2, 3, 4, 5], [4, 2]]
    monkeypatch.setattr(finetuning, "poisson_batches", lambda *_: iter(places))
    model, expected = make_tiny(), make_tiny()
    C = median_norm(model, sequences)
    plan = dataclasses.replace(PLAN, max_norm=C, noise_multiplier=0.0, weight_decay=0.1)
    seen = finetune(model, sequences, plan, seed=0)
    optimizer = torch.optim.AdamW(expected.parameters(), lr=1.0, weight_decay=0.1)
    rates = [1.0, 0.55 + 0.45 * np.cos(np.pi / 4), 0.55, 0.55 - 0.45 * np.cos(np.pi / 4), 0.1]
    clipped = []
    for drawn, rate in zip(places, rates, strict=True):
        sums, norms = [torch.zeros_like(p) for p in expected.parameters()], torch.zeros(0)
        if drawn:
            sums, norms, _ = clipped_oracle(expected, chosen(sequences, drawn), C)
        clipped.append(int((norms > C).sum()))
        for parameter, total in zip(expected.parameters(), sums, strict=True):
            parameter.grad = total / (0.4 * 6)
        optimizer.param_groups[0]["lr"] = 1e-2 * rate
        optimizer.step()
    assert seen.batch == [4, 0, 1, 6, 2]
    assert seen.clipped == clipped
    assert seen.dropped == [0] * 5
    for own, right in zip(model.parameters(), expected.parameters(), strict=True):
        # AdamW's first steps divide a gradient by its own size, so rounding by small ones shows
        torch.testing.assert_close(own, right, rtol=1e-6, atol=1e-9)


def first_mean(model, sequences, plan, tmp_path):
    """The noisy mean of the first step: ten times AdamW's first moment after it."""
    path = tmp_path / "state.pt"
    finetune(model, sequences, plan, seed=0, state=path)
    moments = part_of(read_tensors(path), "optimizer")
    path.unlink()
    flat = [moments[name].flatten() for name in sorted(moments) if name.endswith(".exp_avg")]
    return 10 * torch.cat(flat)


def test_a_step_has_the_noise_of_its_plan_once(sequences, tmp_path):
    """On all samples, in three microbatches: n = 1,552 draws, the interval is ±9% of σC/B."""
    quiet = Plan(1.0, 1, 0.01, 0.0, physical_batch=2)
    noisy = dataclasses.replace(quiet, noise_multiplier=3.0)
    mean = first_mean(make_tiny(), sequences, quiet, tmp_path)
    noise = first_mean(make_tiny(), sequences, noisy, tmp_path) - mean
    assert 0 < float(mean.norm()) <= 0.01 * (1 + 1e-9)
    squares = float((noise / (3.0 * 0.01 / 6)).square().sum())
    assert chi2.ppf(RARE / 2, len(noise)) < squares < chi2.isf(RARE / 2, len(noise))
    again = dataclasses.replace(noisy, noise_multiplier=4.0)  # shares no noise with the other
    other = first_mean(make_tiny(), sequences, again, tmp_path) - mean
    assert abs(np.corrcoef(noise, other)[0, 1]) < 5 / len(noise) ** 0.5


@pytest.mark.parametrize("method", OURS)
def test_how_it_is_run_changes_nothing(sequences, method):
    found = []
    for change in ({"physical_batch": 1}, {"physical_batch": 6}, {"method": "micro"}):
        if method == "per_layer":
            change = {"physical_batch": change.get("physical_batch", 3)}
        model = make_tiny()
        finetune(model, sequences, dataclasses.replace(PLAN, **{"method": method} | change), seed=0)
        found.append(weights(model))
    for right, *others in zip(*found, strict=True):
        for own in others:
            torch.testing.assert_close(own, right, rtol=1e-6, atol=1e-9)  # as above
    checkpointed = dataclasses.replace(PLAN, method=method, options=Options(checkpoint=True))
    model = make_tiny()
    finetune(model, sequences, checkpointed, seed=0)
    for own, right in zip(model.parameters(), found[0], strict=True):
        torch.testing.assert_close(own, right, rtol=1e-6, atol=1e-9)


def test_the_seed_decides_all(sequences):
    runs = {}
    for seed in (0, 0, 1):
        model = make_tiny()
        torch.rand(3)  # no global generator is at work
        seen = finetune(model, sequences, PLAN, seed=seed)
        runs.setdefault(seed, []).append((seen, weights(model)))
    (one, other), (third,) = runs[0], runs[1]
    assert one[0] == other[0]
    assert all(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one[1], third[1], strict=True))


def test_an_empty_batch_adds_noise_and_counts(sequences):
    """At a rate of 1 in 1,000 twelve steps on six samples are all empty, but for one seed in 14."""
    model = make_tiny()
    plan = Plan(0.001, 12, 1.0, 1.0, learning_rate=1e-2, constant_rate=True)
    states = [weights(model)]
    seen = finetune(model, sequences, plan, seed=0, on_step=lambda _: states.append(weights(model)))
    assert seen.batch == [0] * 12
    assert seen.clipped == seen.dropped == [0] * 12
    assert len(states) == 13
    for before, after in pairwise(states):
        assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    history = training_history(plan, 1e-3, "rdp")
    assert history["step"].tolist() == [12]
    assert history["epsilon"].tolist() == [epsilon_spent(1.0, 1e-3, 0.001, 12)]
    assert history["epsilon"][0] > epsilon_spent(1.0, 1e-3, 0.001, 11)


def test_the_history_follows_from_the_plan():
    plan = Plan(64 / 300, 38, 1.0, 1.7, learning_rate=1e-2)
    history = training_history(plan, 1e-3, "rdp")
    assert history["step"].tolist() == [5, 10, 15, 19, 24, 29, 33, 38]
    assert history["epoch"].tolist() == [step * (64 / 300) for step in history["step"]]
    assert history["learning_rate"].tolist() == [plan.rate(step) for step in history["step"]]
    told = [epsilon_spent(1.7, 1e-3, 64 / 300, step) for step in history["step"]]
    assert history["epsilon"].tolist() == told
    assert sorted(told) == told
    assert plan.rate(38) == pytest.approx(1e-3)
    assert dataclasses.replace(plan, constant_rate=True).rate(38) == 1e-2


def test_samples_are_drawn_by_themselves():
    """200 samples at a rate of 0.1 over 3,000 batches, against the binomial law."""
    n, rate, steps = 200, 0.1, 3000
    generator = torch.Generator().manual_seed(0)
    drawn = np.zeros((steps, n))
    for row, places in zip(drawn, poisson_batches(n, rate, steps, generator), strict=True):
        row[places] = 1
    sizes, variance = drawn.sum(1), n * rate * (1 - rate)
    # at 5 standard errors: of a mean, √(var / steps); of a variance, var √(2 / steps), as the
    # sizes are near to normal
    assert abs(sizes.mean() - n * rate) < 5 * (variance / steps) ** 0.5
    assert abs(sizes.var(ddof=1) / variance - 1) < 5 * (2 / steps) ** 0.5
    each = drawn.sum(0)
    assert (binom.ppf(RARE, steps, rate) <= each).all()
    assert (each <= binom.isf(RARE, steps, rate)).all()
    correlation = np.corrcoef(drawn.T)[np.triu_indices(n, 1)]
    assert np.abs(correlation).max() < 6 / steps**0.5  # of 19,900 pairs
    assert abs(np.corrcoef(sizes[:-1], sizes[1:])[0, 1]) < 5 / steps**0.5


@pytest.mark.parametrize("method", ["bk", "micro"])
def test_a_sample_that_is_not_finite_is_dropped_and_counted(sequences, method):
    """A finite weight whose sum over the width overflows, in place 2 alone."""
    ids = sequences.ids.clone()
    ids[ids == 23] = 22
    ids[2, 1] = 23
    model = make_tiny("opt", tied=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[23] = 1.7e308
    plan = dataclasses.replace(PLAN, sample_rate=1.0, noise_multiplier=0.01, method=method)
    seen = finetune(model, dataclasses.replace(sequences, ids=ids), plan, seed=0)
    assert seen.batch == [6] * 5
    assert seen.dropped == [1] * 5
    assert max(seen.clipped) <= 5


def test_weights_that_are_not_finite_end_it(sequences):
    model = make_tiny("opt", tied=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[23] = torch.nan
    with pytest.raises(RequestError, match="no longer finite after step 1; give a lower"):
        finetune(model, sequences, dataclasses.replace(PLAN, steps=1), seed=0)


@pytest.mark.parametrize("method", ["bk", "micro"])
@pytest.mark.parametrize(("killed_at", "goes_on_at"), [([1], 1), ([3], 3), ([5, 6], 7), ([9], 10)])
def test_a_killed_run_goes_on_bit_by_bit(sequences, tmp_path, method, killed_at, goes_on_at):
    """Saved at each second step and at the end, before the step is told."""
    plan = dataclasses.replace(PLAN, steps=9, method=method, weight_decay=0.01)
    whole = make_tiny()
    expected = finetune(whole, sequences, plan, seed=3)
    assert len(set(expected.batch)) > 2
    state = tmp_path / "state.pt"

    def train(on_step):
        model, given = make_tiny(), {"seed": 3, "state": state, "save_every": 2}
        return model, finetune(model, sequences, plan, **given, on_step=on_step)

    (model, seen), steps = after_kills(train, killed_at)
    assert steps == list(range(goes_on_at, 10))
    assert seen == expected
    for one, other in zip(whole.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_another_runs_state_is_refused(sequences, tmp_path):
    state = tmp_path / "state.pt"
    finetune(make_tiny(), sequences, PLAN, seed=0, state=state)
    for change in (
        {"plan": dataclasses.replace(PLAN, noise_multiplier=0.9)},
        {"plan": dataclasses.replace(PLAN, physical_batch=3)},
        {"seed": 1},
        {"text": sequences[:5]},
        {"model": make_tiny(seed=1)},
    ):
        asked = {"model": make_tiny(), "text": sequences, "plan": PLAN, "seed": 0, "state": state}
        with pytest.raises(ArtifactError, match="delete it to begin anew"):
            finetune(**asked | change)
    finetune(**asked)  # its own is taken up
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="not a readable Torch file"):
        finetune(**asked)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"sample_rate": 0.0}, "sample_rate is 0; give an expected batch above 0"),
        ({"sample_rate": 1.5}, "sample_rate is 1.5"),
        ({"steps": 0}, "steps is 0; give 1 or more"),
        ({"physical_batch": 0}, "physical_batch is 0; give 1 or more"),
        ({"learning_rate": 0.0}, "learning_rate is 0; give one above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"method": "vanilla"}, "method 'vanilla' does not finetune privately here; bk"),
        ({"method": "opacus_ghost"}, "method 'opacus_ghost' does not"),
        ({"max_norm": 0.0}, "max_norm is 0"),
        ({"noise_multiplier": -1.0}, "noise_multiplier is -1"),
        ({"options": Options(chunk_tokens=4), "method": "flash"}, "flash has not a chunked loss"),
    ],
)
def test_plans_that_cannot_be_are_refused(tiny_opt, sequences, wrong, told):
    before = weights(tiny_opt)
    with pytest.raises(RequestError, match=told):
        finetune(tiny_opt, sequences, dataclasses.replace(PLAN, **wrong), seed=0)
    assert all(torch.equal(a, b) for a, b in zip(before, tiny_opt.parameters(), strict=True))


CANARIES = 40  # members, and as many that are not


def audited_auc(plan, canaries):
    """How well the fall of the loss tells the canaries that a model was finetuned on."""
    sizes = Architecture(hidden=32, layers=1, heads=2, ffn=64, positions=16)
    model = new_opt(sizes, vocabulary=24, seed=0)

    def losses():
        return document_losses(token_log_probabilities(model, canaries, 80), canaries.lengths)

    before = losses()
    finetune(model, canaries[:CANARIES], plan, seed=0)
    fall = (before - losses()).numpy()
    drawn = resamples(CANARIES, CANARIES, 1000, seed=0)
    return judge(fall[:CANARIES], fall[CANARIES:], drawn).auc


def test_an_audit_stays_under_the_bound_and_tells_leaks(monkeypatch):
    """Random tokens that members share nothing by, learnt over 40 expected passes at ε = 0.5.

    The same attack on the same training without noise is above the bound, and so it is where
    noise is added and nothing clipped.
    """
    generator = torch.Generator().manual_seed(5)
    rows = torch.randint(4, 24, (2 * CANARIES, 12), generator=generator).tolist()
    canaries = padded(rows, [f"canary-{i}" for i in range(len(rows))])
    rate, steps, delta = 0.5, 80, 1e-2
    sigma = noise_multiplier_for(0.5, delta, rate, steps)
    plan = Plan(rate, steps, 1e-5, sigma, physical_batch=40, learning_rate=5e-3)
    bound = auc_bound(epsilon_spent(sigma, delta, rate, steps), delta)
    assert 0.6 < bound < 0.65
    assert audited_auc(plan, canaries).low < bound
    assert audited_auc(dataclasses.replace(plan, noise_multiplier=0.0), canaries).low > bound
    unclipped(monkeypatch)
    assert audited_auc(plan, canaries).low > bound
