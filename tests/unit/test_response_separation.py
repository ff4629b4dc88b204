"""η and S: analytic trajectories whose answer is known, and numpy's interpolation."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramscope.response.intervals import interval, mean_interval
from paramscope.response.separation import (
    ISO_LOG_PPL,
    efficiency,
    eta,
    separation,
    within_first_step,
)

SIGMAS = np.array([0.25, 0.5, 1.0, 2.0])


def line(slope, efficiency_of_class):
    """Trajectories [seeds, sigmas] that lie on Δresponse = −η·Δlog PPL."""
    log_ppl = np.outer(slope, SIGMAS**2)
    return log_ppl, -efficiency_of_class * log_ppl


@given(st.floats(0.02, 5), st.floats(0.01, 100), st.floats(0.01, 100))
def test_s_is_exact_on_straight_trajectories(slope, eta_sens, eta_func):
    slopes = slope * np.array([1.0, 1.1, 1.3])
    sens, func = eta(*line(slopes, eta_sens)), eta(*line(2 * slopes, eta_func))
    # A crossing interpolated on a line is on that line, but for rounding.
    np.testing.assert_allclose(sens, eta_sens, rtol=1e-12)
    found, _ = separation(sens, func, seed=0)
    assert found.value == pytest.approx(math.log2(eta_sens / eta_func), abs=1e-11)
    assert found.n == 3


def test_eta_is_numpys_interpolation_on_rising_trajectories():
    generator = np.random.default_rng(0)
    log_ppl = np.cumsum(generator.uniform(0.001, 0.02, (50, 6)), axis=1)
    response = generator.standard_normal((50, 6))
    expected = [
        -np.interp(ISO_LOG_PPL, np.r_[0, x], np.r_[0, y], right=np.nan) / ISO_LOG_PPL
        for x, y in zip(log_ppl, response, strict=True)
    ]
    assert np.isnan(expected).any()
    assert np.isfinite(expected).any()
    np.testing.assert_allclose(eta(log_ppl, response), expected, rtol=1e-12)


def test_the_first_crossing_counts():
    log_ppl = np.array([[0.1, 0.0, 0.1, 0.2]])
    response = np.array([[-0.2, -5.0, -9.0, -9.0]])
    assert eta(log_ppl, response, iso_log_ppl=0.05)[0] == pytest.approx(2.0)
    assert within_first_step(log_ppl, iso_log_ppl=0.05) == 1
    assert within_first_step(log_ppl, iso_log_ppl=0.15) == 0


def test_nothing_is_extrapolated_nor_read_across_a_breakdown():
    almost = np.array([[0.01, 0.02, 0.03, 0.048]])
    assert np.isnan(eta(almost, almost)).all()
    falling = -almost
    assert np.isnan(eta(falling, almost)).all()
    broken = np.array([[0.01, np.nan, 0.1, 0.2]])
    assert np.isnan(eta(broken, almost)).all()
    assert np.isnan(eta(np.array([[0.01, 0.1, 0.2, 0.3]]), broken)).all()


def test_seeds_that_never_cross_are_counted_out():
    found, notes = efficiency(np.array([1.0, np.nan, 2.0, 3.0, 6.0]), seed=0)
    assert (found.mean, found.n) == (3.0, 4)
    assert found.low < 3.0 < found.high
    assert notes[0].startswith("1 of 5 seeds never reach")
    found, notes = efficiency(np.full(4, np.nan), seed=0)
    assert found.n == 0
    assert np.isnan([found.mean, found.low, found.high]).all()


def test_s_pairs_seeds_and_needs_positive_efficiencies():
    sens, func = np.array([4.0, 4.0, np.nan, 4.0]), np.array([1.0, 1.0, 1.0, np.nan])
    found, notes = separation(sens, func, seed=0)
    assert (found.value, found.n) == (2.0, 2)
    assert np.isnan([found.low, found.high]).all()
    assert "no interval from 2 seeds" in notes[0]

    found, notes = separation(np.array([1.0, 2.0, 3.0]), np.array([-1.0, -1.0, 0.5]), seed=0)
    assert np.isnan(found.value)
    assert found.n == 3
    assert notes == ["undefined, the mean η is not positive in W_func (-0.5)"]

    found, notes = separation(np.full(3, np.nan), np.ones(3), seed=0)
    assert (found.n, np.isnan(found.value)) == (0, True)
    assert notes == ["no seed reaches the iso-PPL in both"]


def test_s_of_the_classes_swapped_is_minus_s():
    generator = np.random.default_rng(1)
    sens, func = generator.uniform(2, 4, 8), generator.uniform(0.5, 2, 8)
    there, _ = separation(sens, func, seed=5)
    back, _ = separation(func, sens, seed=5)
    # The same resamples, mirrored; the ends are read between two of 9,999 sorted values.
    assert (back.value, back.low, back.high) == pytest.approx(
        (-there.value, -there.high, -there.low), abs=1e-3
    )
    assert there.low < there.value < there.high


def test_resamples_without_a_ratio_count_against_both_ends():
    sens = np.array([1.0, 2.0, 3.0, 2.5, 1.5, 2.0, 2.2, 1.8])
    func = np.array([1.0, -1.2, 1.0, 0.8, 1.2, -0.5, 0.3, 0.2])  # mean .35, often below 0
    found, notes = separation(sens, func, seed=0)
    assert found.value == pytest.approx(math.log2(2.0 / 0.35))
    assert np.isnan(found.high)  # open: where η_func nears 0, S has no bound
    assert "undefined in" in notes[0]
    assert "open where an end is null" in notes[0]


def test_an_interval_holds_the_mean_and_repeats_with_its_seed():
    values = np.random.default_rng(2).standard_normal(8)
    bounds = mean_interval(values, seed=1)
    assert bounds.low < values.mean() < bounds.high
    assert mean_interval(values, seed=1) == bounds
    assert mean_interval(values, seed=2) != bounds
    scaled = mean_interval(4 * values, seed=1)  # a power of two, which rounds nothing
    assert (scaled.low, scaled.high) == pytest.approx((4 * bounds.low, 4 * bounds.high))


def test_degenerate_values_give_a_note_and_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for values in (np.zeros(8), np.full(8, 0.1), 0.1 + 1e-17 * np.arange(8)):
            bounds = mean_interval(values, seed=0)
            assert np.isnan([bounds.low, bounds.high]).all()
            assert bounds.note == "no interval, the 8 seeds agree to rounding"
        assert mean_interval(np.array([1.0, 2.0]), seed=0).note.startswith("no interval from 2")
        undefined = interval([np.arange(4.0)], lambda x, axis: np.mean(x, axis=axis) * np.nan, 0)
        assert np.isnan([undefined.low, undefined.high]).all()
