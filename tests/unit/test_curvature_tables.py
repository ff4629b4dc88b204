"""Spot check, summary and the study's record against pandas and scipy by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from paramscope.curvature.moments import from_content, moments, to_content
from paramscope.curvature.spotcheck import quality, stratified
from paramscope.curvature.summary import summarize
from paramscope.response.results import response_rows, stages_record
from tests.unit.response_sweeps import noisy_sweep


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = {name: torch.rand(n, generator=generator) for name, n in (("a", 40), ("b", 3), ("c", 9))}
    made["c"][:6] = 0
    return made


def test_sampled_entries_are_spread_over_tensors_and_never_zero():
    estimate = tensors()
    entries = stratified(estimate, 15, seed=0)
    assert len(set(entries)) == 15
    by_tensor = pd.Series([name for name, _ in entries]).value_counts()
    assert by_tensor.to_dict() == {"a": 9, "b": 3, "c": 3}  # b and c give all they have
    assert all(estimate[name][i] != 0 for name, i in entries)
    assert stratified(estimate, 15, seed=0) == entries
    assert stratified(estimate, 15, seed=1) != entries
    assert len(stratified(estimate, 1000, seed=0)) == 46


def test_quality_is_what_the_columns_say():
    rng = np.random.default_rng(0)
    ggn = rng.gamma(2.0, size=500)
    error = 0.1 * ggn
    checked = pd.DataFrame(
        {"exact_ggn": ggn, "exact_hessian": ggn * 1.25, "standard_error": error,
         "estimate": ggn + error * rng.standard_normal(500)}
    )  # fmt: skip
    found = quality(checked)
    assert found["spearman_ggn"] == spearmanr(checked["estimate"], ggn).statistic
    # |N(0, .1)| has the median .0674; of 500 its error is about .004.
    assert found["median_relative_error_ggn"] == pytest.approx(0.0674, abs=0.012)
    assert found["z_deviation"] == pytest.approx(1, abs=0.1)
    assert found["r_gap"] == pytest.approx(0.2)


def test_summary_and_content():
    draws = [tensors(seed) for seed in range(4)]
    draws[0]["b"][0] = -50.0
    merged = moments(draws)
    again = from_content(to_content(merged))
    assert again.count == 4
    assert all(torch.equal(again.squares[name], merged.squares[name]) for name in "abc")
    table = summarize(merged.mean, merged.standard_error(), merged.count).set_index("tensor")
    stacked = torch.stack([draw["b"] for draw in draws]).double().numpy()
    row = table.loc["b"]
    assert row["mean"] == pytest.approx(stacked.mean(), rel=1e-6)
    assert row["se_mean"] == pytest.approx((stacked.std(0, ddof=1) / 2).mean(), rel=1e-5)
    assert row["fraction_negative"] == pytest.approx(1 / 3)
    assert table.loc["c", "fraction_zero"] == pytest.approx(6 / 9)
    assert torch.isnan(moments(draws[:1]).standard_error()["a"]).all()


def test_rows_of_the_study_are_means_over_signs():
    responses = noisy_sweep()
    rows = response_rows({"curvature": responses})
    assert list(rows.columns[:4]) == ["rule", "class", "sigma", "seed"]
    assert len(rows) == len(responses) / 2
    one = rows.iloc[5]
    both = responses[
        (responses["class"] == one["class"]) & (responses["sigma"] == one["sigma"])
        & (responses["seed"] == one["seed"])
    ]  # fmt: skip
    assert len(both) == 2
    assert one["delta_auc"] == pytest.approx(both["delta_auc"].mean())
    assert one["ppl"] == pytest.approx(np.exp(np.log(both["ppl"]).mean()))
    assert response_rows({}).empty


def test_stages_are_summed_over_their_jobs():
    rows = pd.DataFrame({"s": [1.0, 2.5], "max_rss": [300.0, 200.0]})
    assert stages_record({"prm": rows}) == {
        "prm": {"jobs": 2, "wall_s": 3.5, "peak_rss_mib": 300.0}
    }
