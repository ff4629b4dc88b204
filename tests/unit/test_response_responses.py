"""Merging shards: the same whole from any parts, and nothing but the whole."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramscope.artifacts.provenance import provenance
from paramscope.artifacts.tables import read_table, write_table
from paramscope.errors import ArtifactError
from paramscope.response.responses import (
    RESPONSE_NAMES,
    RESPONSES,
    baseline,
    merge,
    trajectories,
)
from tests.unit.response_sweeps import noisy_sweep, sweep

WHOLE = noisy_sweep(n_seeds=3)


@settings(deadline=None, max_examples=30)
@given(st.randoms(use_true_random=False), st.integers(1, 7))
def test_the_merge_does_not_depend_on_the_sharding(random, n_shards):
    rows = list(range(len(WHOLE)))
    random.shuffle(rows)
    shards = [WHOLE.iloc[rows[start::n_shards]] for start in range(n_shards)]
    pd.testing.assert_frame_equal(merge(shards), merge([WHOLE]))


def test_order_is_by_class_sigma_seed_and_sign():
    merged = merge([WHOLE.sample(frac=1, random_state=0)])
    assert list(merged["class"].unique()) == ["W_func", "W_sens", "W_both"]
    one_class = merged.loc[merged["class"] == "W_sens", ["sigma", "seed", "sign"]]
    keys = list(one_class.itertuples(index=False, name=None))
    assert keys == sorted(keys)
    assert len(merged) == len(WHOLE)


def test_a_hole_is_refused_and_named():
    hole = (WHOLE["class"] == "W_sens") & (WHOLE["sigma"] == 0.5) & (WHOLE["seed"] == 1)
    one = hole & (WHOLE["sign"] == 1)
    with pytest.raises(ArtifactError, match=r"1 of 24 .* class W_sens, σ 0.5, seed 1, sign \+1"):
        merge([WHOLE[~one]])
    with pytest.raises(ArtifactError, match="2 of 24"):
        merge([WHOLE[~hole]])


def test_a_seed_that_no_class_has_is_a_hole():
    with pytest.raises(ArtifactError, match="seed 1"):
        merge([WHOLE[WHOLE["seed"] != 1]])


def test_a_class_without_units_has_no_rows_and_is_no_hole():
    rest = WHOLE[WHOLE["class"] != "W_both"]
    assert set(merge([rest, WHOLE.iloc[:0]])["class"]) == {"W_func", "W_sens"}


def test_a_measurement_made_twice_is_refused():
    with pytest.raises(ArtifactError, match=r"class W_func, σ 0.25, seed 0, sign -1 .* twice"):
        merge([WHOLE, WHOLE.iloc[:1]])


def test_nothing_an_unknown_class_and_mixtures_are_refused():
    with pytest.raises(ArtifactError, match="no class of the partition has units"):
        merge([WHOLE.iloc[:0]])
    with pytest.raises(ArtifactError, match="unknown class 'W_none'"):
        merge([WHOLE.assign(**{"class": "W_none"})])
    two_draws = WHOLE.assign(draw=(WHOLE["class"] == "W_sens").astype(int))
    with pytest.raises(ArtifactError, match="several draws"):
        merge([two_draws])
    other_model = WHOLE.assign(ppl=WHOLE["ppl"].where(WHOLE["seed"] < 2, 1.1 * WHOLE["ppl"]))
    with pytest.raises(ArtifactError, match="run from 20 to 22"):
        merge([other_model])


def test_the_baseline_is_what_the_rows_imply():
    expected = {"ppl": 20.0, "auc": 0.8, "auc_min_k": 0.7, "loss_gap": 0.5}
    assert baseline(WHOLE) == pytest.approx(expected, rel=1e-12)  # rounding of exp and log


def test_the_mean_of_both_signs_cancels_odd_orders():
    even, odd = (sweep({"W_func": [0.2, 0.3]}, {"W_func": [-0.1, 0.4]}, odd=o) for o in (0, 0.5))
    assert odd["delta_auc"].iloc[0] != even["delta_auc"].iloc[0]
    found = trajectories(odd)
    np.testing.assert_allclose(
        found.values["W_func"], trajectories(even).values["W_func"], atol=1e-15
    )
    np.testing.assert_allclose(
        found.of("W_func", "delta_loss_gap")[1], 1.2 * found.sigmas["W_func"] ** 2, rtol=1e-12
    )
    assert found.values["W_func"].shape == (2, 4, len(RESPONSE_NAMES))


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_sign_that_broke_down_is_not_replaced_by_the_other(broken):
    frame = sweep({"W_func": [0.2, 0.3]}, {"W_func": [-0.1, 0.4]})
    frame.loc[(frame["seed"] == 1) & (frame["sigma"] == 2) & (frame["sign"] == 1), "auc"] = broken
    frame.loc[frame["auc"].isna() | np.isinf(frame["auc"]), "delta_auc"] = broken
    found = trajectories(merge([frame])).of("W_func", "delta_auc")
    assert np.isnan(found[1, 3])
    assert np.isfinite(np.delete(found.ravel(), 7)).all()


def test_sigma_zero_is_no_point_of_a_trajectory():
    with_zero = sweep({"W_func": [0.2]}, {"W_func": [0.1]}, sigmas=(0, 1))
    assert trajectories(with_zero).sigmas["W_func"].tolist() == [1.0]
    with pytest.raises(ArtifactError, match="no σ above 0"):
        trajectories(with_zero[with_zero["sigma"] == 0])


def test_the_schema_holds_a_sweep_with_a_breakdown(tmp_path):
    frame = merge([WHOLE]).astype({"seed": "int32", "sign": "int8", "draw": "int16"})
    frame.loc[0, ["ppl", "delta_log_ppl"]] = np.nan
    write_table(tmp_path / "r.parquet", frame, RESPONSES, provenance("response.responses", {}))
    read = read_table(tmp_path / "r.parquet")
    assert np.isnan(read.loc[0, "ppl"])
    np.testing.assert_array_equal(read["delta_auc"], frame["delta_auc"])
