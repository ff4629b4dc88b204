"""Slopes, tests and the record, against brute force, numpy, and the textbook's formulas."""

import json
import math
import warnings
from itertools import product

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import typer
from typer.testing import CliRunner

from paramscope.artifacts.provenance import provenance
from paramscope.artifacts.records import read_record
from paramscope.artifacts.tables import write_table
from paramscope.cli.prm_responses import prm_responses
from paramscope.cli.prm_statistics import prm_statistics
from paramscope.response.comparisons import (
    Comparison,
    compare,
    effect_size,
    holm,
    manova,
    sign_flip_p,
    slopes,
)
from paramscope.response.responses import RESPONSE_NAMES, RESPONSES, merge, trajectories
from paramscope.response.statistics import statistics
from tests.unit.response_sweeps import CLASSES, SIGMAS, noisy_sweep, sweep


def brute_force_p(differences):
    """Two-sided sign-flip p over every pattern of signs."""
    signs = np.array(list(product([-1, 1], repeat=len(differences))))
    means = np.abs(signs @ differences)
    return np.mean(means >= np.abs(differences.sum()) * (1 - 1e-12))


def test_a_slope_is_least_squares_through_the_origin():
    generator = np.random.default_rng(0)
    sigmas, values = np.array(SIGMAS), generator.standard_normal((5, 4, 3))
    expected = [np.linalg.lstsq(sigmas[:, None] ** 2, rows, rcond=None)[0][0] for rows in values]
    np.testing.assert_allclose(slopes(sigmas, values), expected, rtol=1e-12)


@pytest.mark.parametrize("n", [2, 3, 8, 11])
def test_the_sign_flip_p_is_that_of_every_pattern(n):
    generator = np.random.default_rng(n)
    for shift in (0.0, 0.7):
        differences = generator.standard_normal(n) + shift
        assert sign_flip_p(differences, seed=0) == pytest.approx(
            brute_force_p(differences), abs=1e-12
        )


def test_the_least_p_is_two_in_two_to_the_n():
    for n in (2, 6, 8, 13):
        assert sign_flip_p(np.arange(1.0, n + 1), seed=0) == 2 / 2**n
    assert math.isnan(sign_flip_p(np.ones(1), seed=0))
    assert sign_flip_p(np.zeros(8), seed=0) == 1.0


def test_drawn_patterns_agree_with_all_of_them():
    differences = np.random.default_rng(3).standard_normal(14) + 0.4
    exact = brute_force_p(differences)
    # Four standard errors of a share among 10,000 draws, for each of the two tails.
    tolerance = 4 * 2 * math.sqrt(exact / 2 * (1 - exact / 2) / 10_000)
    assert sign_flip_p(differences, seed=0) == pytest.approx(exact, abs=tolerance)
    assert sign_flip_p(differences, seed=0) == sign_flip_p(differences, seed=0)


def test_the_effect_size_is_the_paired_t_over_root_n():
    first, second = np.random.default_rng(4).standard_normal((2, 9))
    t = scipy.stats.ttest_rel(first, second).statistic
    assert effect_size(first - second) == pytest.approx(t / 3)
    assert math.isnan(effect_size(np.ones(4)))


def test_holm_by_hand():
    p = [0.01, 0.04, math.nan, 0.03, 0.005]
    given = [Comparison("r", "a", "b", 0, 0, 0, 0, value, math.nan, 8) for value in p]
    found = [comparison.p_holm for comparison in holm(given)]
    # Sorted .005, .01, .03, .04, times 4, 3, 2, 1, never falling: .02, .03, .06, .06.
    assert found == pytest.approx([0.03, 0.06, math.nan, 0.06, 0.02], nan_ok=True)


def null_study(generator, n_seeds=8):
    """Two classes' Δ over σ, [2, seeds, sigmas]: no effect of class, rows that share a seed."""
    common = generator.standard_normal(n_seeds)
    own = generator.standard_normal((2, n_seeds))
    rows = 0.1 * generator.standard_normal((2, n_seeds, len(SIGMAS)))
    return (common + own)[:, :, None] * np.array(SIGMAS) ** 2 + rows


def test_shuffled_labels_are_found_to_differ_as_often_as_p_says():
    """Stored responses of classes that do differ, their labels shuffled within each seed."""
    generator = np.random.default_rng(7)
    measured = trajectories(merge([noisy_sweep(n_seeds=10)]))
    stored = np.stack([slopes(measured.sigmas[c], v) for c, v in measured.values.items()])
    honest = {"shuffled": [], "as they are": []}
    for _ in range(200):
        shuffled = generator.permuted(np.arange(3)[:, None].repeat(10, 1), axis=0)
        dealt = np.take_along_axis(stored, shuffled[:, :, None], axis=0)
        for name, classes in (("shuffled", dealt), ("as they are", stored)):
            difference = classes[0, :, 1] - classes[1, :, 1]  # ΔAUC, first class − second
            honest[name].append(sign_flip_p(difference, seed=0))
    rate = np.mean(np.array(honest["shuffled"]) < 0.05)
    assert rate == pytest.approx(0.05, abs=0.03)  # 2 deviations of a binomial of 200 and .05
    assert max(honest["as they are"]) < 0.05


def test_without_an_effect_the_test_errs_as_often_as_it_says():
    generator = np.random.default_rng(5)
    sigmas, n_studies = np.array(SIGMAS), 200
    honest, naive = [], []
    for _ in range(n_studies):
        first, second = null_study(generator)
        difference = slopes(sigmas, (first - second)[:, :, None])[:, 0]
        honest.append(sign_flip_p(difference, seed=0))
        scaled = ((first - second) / sigmas**2).ravel()  # each σ taken for a replicate
        naive.append(scipy.stats.ttest_1samp(scaled, 0).pvalue)
    # p is a multiple of 1/128 at n = 8, so p < .05 is p <= 6/128, the level that is attainable.
    low, high = scipy.stats.binom.interval(0.999, n_studies, 6 / 128)
    assert low <= sum(p < 0.05 for p in honest) <= high
    assert sum(p < 0.05 for p in naive) > 2 * high  # why rows of σ are not replicates
    assert np.mean(honest) == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / n_studies))


def comparisons_of(frame):
    measured = trajectories(frame)
    by_class = {label: slopes(measured.sigmas[label], v) for label, v in measured.values.items()}
    return compare(by_class, RESPONSE_NAMES, "test")[0]


def test_more_rows_of_sigma_are_no_more_evidence():
    frame = noisy_sweep()
    expected = [comparison.p for comparison in comparisons_of(frame)]
    more_sigmas = noisy_sweep(sigmas=(0.1, 0.25, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0))
    assert [c.p for c in comparisons_of(more_sigmas)] == expected
    assert [c.p for c in comparisons_of(pd.concat([frame] * 5))] == expected


def test_a_difference_is_paired_by_seed():
    """What the seeds share cancels: a spread 100 times the effect does not hide it."""
    common = 100 * np.random.default_rng(6).standard_normal(8)
    own = np.array([0.9, 1.0, 1.1, 1.2, 0.8, 1.0, 0.95, 1.05])
    (found,), _ = compare(
        {"W_func": (common + own)[:, None], "W_sens": common[:, None]}, ("delta_auc",), 0
    )
    assert found.difference == pytest.approx(own.mean())
    assert found.low < found.difference < found.high
    assert found.low > 0.8
    assert (found.p, found.p_holm, found.n) == (2 / 2**8, 2 / 2**8, 8)


def pillai_by_hand(groups):
    everything = np.concatenate(groups)
    means = [rows.mean(0) - everything.mean(0) for rows in groups]
    H = sum(len(r) * np.outer(m, m) for r, m in zip(groups, means, strict=True))
    E = sum((r - r.mean(0)).T @ (r - r.mean(0)) for r in groups)
    V = np.trace(H @ np.linalg.inv(H + E))
    p, q, v = everything.shape[1], len(groups) - 1, len(everything) - len(groups)
    s, m, n = min(p, q), (abs(p - q) - 1) / 2, (v - p - 1) / 2
    f = (2 * n + s + 1) / (2 * m + s + 1) * V / (s - V)
    df = s * (2 * m + s + 1), s * (2 * n + s + 1)
    return V, f, *df, scipy.stats.f.sf(f, *df)


@pytest.mark.parametrize("k", [2, 3])
def test_manova_is_the_textbooks_pillai(k):
    generator = np.random.default_rng(7)
    groups = [generator.normal([0.3 * i, 0.1 * i], 1, (8, 2)) for i in range(k)]
    scaled = {CLASSES[i]: rows * [1.0, 1e-7] for i, rows in enumerate(groups)}  # units are free
    found, notes = manova(scaled)
    assert not notes
    expected = pillai_by_hand(groups)
    assert (found.pillai, found.f, found.df_num, found.df_den, found.p) == pytest.approx(expected)


def test_manova_is_refused_where_it_means_nothing():
    generator = np.random.default_rng(8)
    rows = generator.standard_normal((8, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for by_class in (
            {"W_func": rows},
            {"W_func": rows, "W_sens": np.full((8, 2), np.nan)},
            {"W_func": rows[:1], "W_sens": rows[1:2]},
            {"W_func": rows * [1, 0], "W_sens": rows * [2, 0]},
            {"W_func": rows[:, [0, 0]], "W_sens": 2 * rows[:, [0, 0]]},
            {"W_func": np.ones((8, 2)), "W_sens": np.zeros((8, 2))},
        ):
            found, notes = manova(by_class)
            assert found is None
            assert len(notes) == 1


def test_the_record_tells_what_was_put_in():
    spread = np.linspace(0.9, 1.1, 8)
    frame = sweep(
        {"W_func": 0.2 * spread, "W_sens": 0.05 * spread, "W_both": 0.1 * spread},
        {"W_func": -0.02 * spread, "W_sens": -0.04 * spread, "W_both": 0.0 * spread},
        odd=0.01,
    )
    found = statistics(merge([frame]), "curvature", seed=0)
    assert found.n_seeds == 8
    assert found.sigmas == {label: list(SIGMAS) for label in CLASSES}
    assert found.classes["W_sens"].slopes["delta_loss_gap"].mean == pytest.approx(-0.12)
    assert found.classes["W_func"].slopes["delta_log_ppl"].mean == pytest.approx(0.2)
    assert found.classes["W_func"].n_parameters == 330
    # η of the AUC is .1 in W_func and .8 in W_sens, of the gap three times that: both S are 3.
    assert found.classes["W_sens"].efficiency["auc"].mean == pytest.approx(0.8)
    assert found.classes["W_sens"].efficiency["gap"].mean == pytest.approx(2.4)
    assert found.separation["auc"].value == pytest.approx(3.0)
    assert found.separation["gap"].value == pytest.approx(3.0)
    pair = next(c for c in found.comparisons if (c.response, c.second) == ("delta_auc", "W_sens"))
    assert (pair.first, pair.n) == ("W_func", 8)
    assert pair.difference == pytest.approx(0.02)
    assert len(found.comparisons) == 12
    assert pair.p_holm == pytest.approx(12 * 2 / 2**8)
    resolution = "8 seeds can't show p_holm below 0.094 over 12 comparisons"
    assert any(note.startswith(resolution) and "9 seeds could" in note for note in found.notes)


def test_order_of_rows_and_repetition_change_nothing():
    frame = noisy_sweep()
    first = statistics(merge([frame]), "curvature", seed=0)
    second = statistics(merge([frame.sample(frac=1, random_state=1)]), "curvature", seed=0)
    assert first == second
    other = statistics(merge([frame]), "curvature", seed=1)
    assert other.classes["W_func"].slopes != first.classes["W_func"].slopes
    assert [c.p for c in other.comparisons] == [c.p for c in first.comparisons]


def test_saturated_lone_and_broken_classes_end_in_notes_not_warnings():
    still = sweep({"W_both": np.zeros(8)}, {"W_both": np.zeros(8)})
    broken = noisy_sweep()
    lost = (broken["class"] == "W_func") & (broken["seed"] == 3) & (broken["sigma"] == 2)
    broken.loc[lost, ["ppl", "delta_log_ppl"]] = np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lone = statistics(merge([still]), "origin", seed=0)
        partly = statistics(merge([broken]), "curvature", seed=0)
    assert lone.comparisons == []
    assert lone.manova is None
    assert np.isnan(lone.separation["auc"].value)
    assert lone.classes["W_both"].slopes["delta_auc"].mean == 0.0
    assert np.isnan(lone.classes["W_both"].slopes["delta_auc"].low)
    assert "W_func, W_sens: no units, hence no responses" in lone.notes
    assert "no comparisons with fewer than two classes" in lone.notes
    assert "W_func, slope of delta_log_ppl: 1 of 8 seeds left out, not finite" in partly.notes
    by_pair = {(c.response, c.first, c.second): c.n for c in partly.comparisons}
    assert by_pair["delta_log_ppl", "W_func", "W_sens"] == 7
    assert by_pair["delta_auc", "W_func", "W_sens"] == 8


def test_what_weakens_a_sweep_is_said():
    frame = noisy_sweep(draws=[0, 1, 2, 3, 4, 0, 1, 2], energy={"W_both": 14.0})
    notes = statistics(merge([frame]), "random", seed=0).notes
    assert "8 seeds share 5 draws of the partition, so they are not quite independent" in notes
    assert any("W_both gets 2 times the noise energy of W_func" in note for note in notes)
    assert not any("iso-PPL before" in note for note in notes)
    coarse = statistics(merge([noisy_sweep(sigmas=(1.0, 2.0))]), "curvature", seed=0).notes
    assert any(note.startswith("W_func: 8 of 8 seeds pass the iso-PPL") for note in coarse)


RECORD = {
    "rule": None,
    "n_seeds": None,
    "noise": None,
    "sigmas": set(CLASSES),
    "iso_log_ppl": None,
    "baseline": {"ppl", "auc", "auc_min_k", "loss_gap"},
    "classes": set(CLASSES),
    "comparisons": None,
    "separation": {"gap", "auc"},
    "null": None,
    "prediction": set(CLASSES),
    "manova": {"pillai", "f", "df_num", "df_den", "p"},
    "notes": None,
    "provenance": None,
}


def test_the_commands_merge_shards_and_write_the_record(tmp_path):
    frame = noisy_sweep()
    shards = []
    for seed in range(8):
        shards += ["--shard", str(tmp_path / f"{seed}.parquet")]
        part = frame[frame["seed"] == seed]
        write_table(
            tmp_path / f"{seed}.parquet", part, RESPONSES, provenance("response.responses", {})
        )
    app = typer.Typer()
    app.command("prm-responses")(prm_responses)
    app.command("prm-statistics")(prm_statistics)
    table, record = tmp_path / "prm.parquet", tmp_path / "statistics.json"
    run = CliRunner().invoke(app, ["prm-responses", str(table), *shards])
    assert run.exit_code == 0, run.output
    options = ["--rule", "curvature", "--seed", "3"]
    run = CliRunner().invoke(app, ["prm-statistics", str(table), str(record), *options])
    assert run.exit_code == 0, run.output
    found = read_record(record)
    assert set(found) == set(RECORD)
    for key, names in RECORD.items():
        assert names is None or set(found[key]) == names
    one = found["classes"]["W_sens"]
    assert set(one) == {"n_units", "n_parameters", "slopes", "efficiency"}
    assert set(one["slopes"]) == set(RESPONSE_NAMES)
    assert set(one["slopes"]["delta_auc"]) == {"mean", "low", "high"}
    assert set(one["efficiency"]["gap"]) == {"mean", "low", "high", "n"}
    places = {"null_low", "null_high", "p_null"}
    assert set(found["separation"]["auc"]) == {"value", "low", "high", "n"} | places
    assert found["null"] is None
    assert set(found["comparisons"][0]) == set(Comparison.__annotations__)
    assert found["provenance"]["seed"] == 3
    expected = statistics(merge([frame]), "curvature", seed=3).record()
    del found["provenance"]
    for score in expected["separation"].values():
        score |= dict.fromkeys(places)  # no null was given: NaN, which a record has as null
    assert found == json.loads(json.dumps(expected))
