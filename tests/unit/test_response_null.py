"""The null band, the ranges of noise, and predictions, against what was put in."""

import math

import numpy as np
import pandas as pd
import pytest

from paramscope.errors import RequestError
from paramscope.response.null import FEWEST, null_band, null_p
from paramscope.response.prediction import predictions
from paramscope.response.ranges import HIGH, LOW, WITHIN, Range, scales, search
from paramscope.response.responses import merge
from paramscope.response.separation import ISO_LOG_PPL
from paramscope.response.statistics import statistics
from tests.unit.response_sweeps import noisy_sweep, sweep


def test_each_draws_score_is_the_log_ratio_of_its_own_means():
    draws = np.arange(40) % 20
    func = 1.0 + 0.01 * draws
    sens = func * 2.0 ** (draws - 9.5)
    found, notes = null_band(sens, func, draws)
    np.testing.assert_allclose(found.values, np.arange(20) - 9.5, rtol=1e-12)
    # 2.5% and 97.5% of 0..19, which numpy's quantile interpolates.
    assert found.low == pytest.approx(19 * 0.025 - 9.5)
    assert found.high == pytest.approx(9.5 - 19 * 0.025)
    assert notes == []


def test_draws_without_a_score_are_told_and_few_give_no_band():
    draws = np.arange(FEWEST)
    sens = np.where(draws == 3, -1.0, 2.0)
    found, notes = null_band(sens, np.ones(FEWEST), draws)
    assert (len(found.values), found.undefined) == (FEWEST - 1, 1)
    assert math.isnan(found.low)
    assert notes == [f"1 of {FEWEST} draws have no S", f"no band from 19 draws, it takes {FEWEST}"]


def test_p_counts_what_is_as_far_from_the_middle():
    values = list(range(-9, 10))  # 19 of them, median 0
    assert null_p(20.0, values) == pytest.approx(1 / 20)
    assert null_p(8.5, values) == pytest.approx(3 / 20)  # −9 and 9, and itself
    assert null_p(0.0, values) == 1
    assert math.isnan(null_p(math.nan, values))
    assert math.isnan(null_p(1.0, []))


def test_p_among_equals_is_uniform():
    """One of 20 alike is the farthest from their middle in a twentieth of studies."""
    generator = np.random.default_rng(0)
    studies = generator.standard_normal((2000, 20))
    p = np.array([null_p(row[0], row[1:].tolist()) for row in studies])
    # 4 deviations of a binomial of 2,000 and 1/20 (the middle of the other 19 moves a little).
    assert np.mean(p <= 0.05) == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 2000))


@pytest.mark.parametrize("power", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("strength", [1e-4, 0.1, 50.0])
def test_the_search_finds_all_three_marks(power, strength):
    looked = []

    def rise(sigma):
        looked.append(sigma)
        return strength * sigma**power

    found = search(rise, start=0.5, cost=4)
    if strength * (0.5 * 64) ** power < HIGH:  # farther than is looked
        assert not found.reached
        return
    assert found.reached
    assert found.evaluations == 4 * len(set(looked))
    for sigma, aim in zip(
        (found.sigma_low, found.sigma_iso, found.sigma_high), (LOW, ISO_LOG_PPL, HIGH), strict=True
    ):
        assert 1 / WITHIN <= strength * sigma**power / aim <= WITHIN
    grid = found.grid(4)
    assert grid == sorted(grid)
    assert grid[0] == pytest.approx(found.sigma_low, rel=0.01)


def test_a_class_that_nothing_disturbs_is_not_reached():
    found = search(lambda sigma: 0.0, start=0.5)
    assert not found.reached
    assert found.sigma_high <= 64 * 0.5


def test_a_first_fall_of_perplexity_does_not_end_the_search():
    """Small noise may help: the rise is negative there."""
    found = search(lambda sigma: 0.2 * sigma**2 - 0.02 * sigma, start=0.05)
    assert found.reached
    assert 0.2 * found.sigma_low**2 - 0.02 * found.sigma_low == pytest.approx(LOW, rel=WITHIN - 1)


def test_scales_are_common_or_each_classs_own():
    own = {
        "noise": "relative",
        "classes": {"W_func": vars(Range(1, 2, 3, True, 4)) | {"sigmas": [1.0, 2.0]}},
    }
    assert scales(["a", "b"], [2.0, 1.0], None, "relative") == {"a": [1.0, 2.0], "b": [1.0, 2.0]}
    assert scales(["W_func", "W_sens"], None, own, "relative") == {"W_func": [1.0, 2.0]}
    assert scales(["W_func"], None, own, "relative", iso=True) == {"W_func": [2]}
    with pytest.raises(RequestError, match="give --sigma, or --ranges"):
        scales(["a"], None, None, "relative")
    with pytest.raises(RequestError, match="of relative noise, not of absolute"):
        scales(["W_func"], None, own, "absolute")


def test_classes_in_ranges_of_their_own_are_compared_at_equal_perplexity():
    """The same trajectories measured over other σ give the same S."""
    common = noisy_sweep()
    rows = []
    for label, factor in (("W_func", 1.0), ("W_sens", 1.5), ("W_both", 0.75)):
        a = common[(common["class"] == label) & (common["sigma"] == 1) & (common["sign"] == 1)]
        scaled = {label: a["delta_log_ppl"].tolist()}, {label: a["delta_auc"].tolist()}
        rows.append(sweep(*scaled, sigmas=[factor * s for s in (0.25, 0.5, 1.0, 2.0)]))
    own = statistics(merge([pd.concat(rows)]), "curvature", seed=0)
    first = statistics(merge([common]), "curvature", seed=0)
    assert own.sigmas["W_sens"] == [0.375, 0.75, 1.5, 3.0]
    for kind in ("gap", "auc"):
        assert own.separation[kind].value == pytest.approx(first.separation[kind].value)
        for label in common["class"].unique():
            assert own.classes[label].slopes["delta_auc"].mean == pytest.approx(
                first.classes[label].slopes["delta_auc"].mean
            )


def test_of_a_single_scale_the_ratio_is_taken_on_either_side_of_the_mark():
    from paramscope.response.separation import eta

    log_ppl = np.array([[0.03], [0.08], [-0.01]])
    response = np.array([[-0.003], [-0.016], [-0.001]])
    np.testing.assert_allclose(eta(log_ppl, response), [0.1, 0.2, np.nan])


def random_sweep(n_draws=20, per_draw=2, seed=0):
    """Classes that mean nothing: W_func and W_sens alike but for luck, a draw or so a seed."""
    generator = np.random.default_rng(seed)
    n = n_draws * per_draw
    scatter = {label: 1 + 0.1 * generator.standard_normal((2, n)) for label in ("W_func", "W_sens")}
    return sweep(
        {label: 0.1 * s[0] for label, s in scatter.items()},
        {label: -0.02 * s[1] for label, s in scatter.items()},
        draws=[i % n_draws for i in range(n)],
    )


def test_a_rule_is_set_against_the_random_rules_draws():
    random = statistics(merge([random_sweep()]), "random", seed=0)
    assert random.null is not None
    assert len(random.null["gap"].values) == 20
    assert random.null["gap"].low < 0 < random.null["gap"].high
    found = statistics(merge([noisy_sweep()]), "curvature", 0, random.record())
    score = found.separation["gap"]  # S is 3, far outside
    assert score.value == pytest.approx(3.0, abs=0.5)
    assert (score.null_low, score.null_high) == (random.null["gap"].low, random.null["gap"].high)
    assert score.p_null == pytest.approx(1 / 21)
    assert found.null is None


def test_predictions_are_read_at_the_smallest_scale():
    found = predictions(noisy_sweep())
    one = found["W_sens"]
    assert one.sigma == 0.25
    # The sweep's Δlog PPL is a σ², and so is its prediction.
    assert one.ratio == pytest.approx(1.0)
    assert one.predicted == pytest.approx(one.measured)
    assert one.predicted_se == pytest.approx(0.1 * one.predicted)
    assert 0 < one.measured_se < one.measured
    without = noisy_sweep().assign(predicted_delta_log_ppl=np.nan)
    assert predictions(without) == {}
