"""Oracles: tables labelled by hand, ranks by scipy, invariances, and the null of the control."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import percentileofscore

from paramscope.errors import RequestError
from paramscope.geometry.features import percentile
from paramscope.geometry.partition import LABELS, PARTITION, RULES, counts, label_units


def made(rows=(13, 8, 3), seed=0):
    """Units of three tensors with distinct curvature."""
    rng = np.random.default_rng(seed)
    units = [(f"{t}:{r}", t, r) for t, n in zip("abc", rows, strict=True) for r in range(n)]
    frame = pd.DataFrame(units, columns=["unit", "tensor", "row"])
    frame["curvature_mean"] = rng.lognormal(size=len(frame))
    frame["alignment"] = rng.uniform(size=len(frame))
    frame["sparsity"] = rng.uniform(size=len(frame))
    return frame


def labels(units, rule, **options):
    return label_units(units, rule, **options).set_index("unit")["label"]


def test_origin_on_a_table_labelled_by_hand():
    table = [  # alignment, sparsity; the thresholds themselves belong to the class but for .5
        (0.70, 0.49, "W_func"),
        (0.70, 0.50, "W_both"),
        (0.69, 0.00, "W_both"),
        (1.00, 0.00, "W_func"),
        (0.30, 0.90, "W_sens"),
        (0.30, 0.89, "W_both"),
        (0.31, 1.00, "W_both"),
        (0.00, 1.00, "W_sens"),
        (0.90, 0.95, "W_both"),
        (0.10, 0.10, "W_both"),
    ]
    units = pd.DataFrame(table, columns=["alignment", "sparsity", "expected"])
    units["unit"] = [f"a:{row}" for row in range(len(units))]
    found = label_units(units, "origin")
    assert found["label"].tolist() == units["expected"].tolist()
    assert counts(found) == {"W_func": 2, "W_sens": 2, "W_both": 6}
    assert list(found.columns) == PARTITION.names
    assert (found["draw"] == 0).all()


def test_percentile_is_scipys_mean_percentile_with_ties():
    values = pd.Series([0.0, 0.0, 0.0, 3.0, 1.0, 1.0, -2.0])
    expected = [percentileofscore(values, value, kind="mean") / 100 for value in values]
    np.testing.assert_allclose(percentile(values), expected, rtol=1e-15)
    assert (percentile(pd.Series([4.0] * 5)) == 0.5).all()


def test_origin_quantile_is_origin_on_percentiles_and_sees_only_the_order():
    units = made()
    units.loc[:9, "sparsity"] = 0.0
    ranked = units.assign(
        alignment=percentile(units["alignment"]), sparsity=percentile(units["sparsity"])
    )
    pd.testing.assert_series_equal(labels(units, "origin_quantile"), labels(ranked, "origin"))
    bent = units.assign(alignment=units["alignment"] ** 7, sparsity=np.exp(units["sparsity"]))
    pd.testing.assert_series_equal(
        labels(bent, "origin_quantile"), labels(units, "origin_quantile")
    )


def test_curvature_takes_exact_quarters_of_every_tensor_by_order():
    units = made()
    found = labels(units, "curvature")
    for tensor, rows in units.groupby("tensor"):
        quarter = len(rows) // 4  # 3 of 13, 2 of 8, none of 3
        ordered = rows.sort_values("curvature_mean")["unit"]
        expected = ["W_sens"] * quarter + ["W_both"] * (len(rows) - 2 * quarter)
        expected += ["W_func"] * quarter
        assert found[ordered].tolist() == expected, tensor


def test_curvature_is_blind_to_monotone_transforms_and_to_the_rows_order():
    units = made()
    units.loc[[2, 5, 7, 9], "curvature_mean"] = 0.0  # ties at the bottom, more than the quarter
    found = labels(units, "curvature")
    bent = units.assign(curvature_mean=np.log1p(units["curvature_mean"]) ** 3 + 5)
    pd.testing.assert_series_equal(labels(bent, "curvature"), found)
    shuffled = units.sample(frac=1, random_state=0)
    again = labels(shuffled, "curvature")
    assert again.index.tolist() == shuffled["unit"].tolist()
    pd.testing.assert_series_equal(again[found.index], found)


def test_random_keeps_every_tensors_counts_and_its_draws_differ():
    units = made()
    like = label_units(units, "curvature")
    drawn = label_units(units, "random", like=like, draws=6, seed=3)
    assert drawn["draw"].dtype == np.int16
    assert len(drawn) == 6 * len(units)
    tensor = units.set_index("unit")["tensor"]
    of_reference = like.groupby([like["unit"].map(tensor), "label"]).size()
    for draw, rows in drawn.groupby("draw"):
        assert rows["unit"].tolist() == units["unit"].tolist()
        of_draw = rows.groupby([rows["unit"].map(tensor), "label"]).size()
        pd.testing.assert_series_equal(of_draw, of_reference, obj=f"draw {draw}")
    assert drawn.groupby("draw")["label"].apply(tuple).nunique() == 6
    assert counts(drawn) == counts(like)


def test_random_hangs_on_its_identity_alone():
    units = made()
    like = label_units(units, "curvature")
    drawn = label_units(units, "random", like=like, draws=5, seed=3)
    key = ["draw", "unit"]
    shuffled = label_units(
        units.sample(frac=1, random_state=1), "random", like=like, draws=7, seed=3
    )
    shuffled = shuffled[shuffled["draw"] < 5]
    pd.testing.assert_frame_equal(
        shuffled.sort_values(key, ignore_index=True), drawn.sort_values(key, ignore_index=True)
    )
    other = label_units(units, "random", like=like, draws=5, seed=4)
    assert (other["label"] != drawn["label"]).any()


def test_random_is_within_its_null_where_the_reference_is_far_outside():
    units = made(rows=(200, 200, 200))
    like = label_units(units, "curvature")
    drawn = label_units(units, "random", like=like, draws=200, seed=0)
    logs = np.log(units.set_index("unit")["curvature_mean"])

    def difference(rows):
        values = logs[rows["unit"]].to_numpy()
        return values[rows["label"] == "W_func"].mean() - values[rows["label"] == "W_sens"].mean()

    found = drawn.groupby("draw")[["unit", "label"]].apply(difference)
    # Two means of 150 draws without replacement from deviation 1: error √(2/150) within 600,
    # of which the strata and the finite population take little; tolerances are 4 errors of
    # 200 draws' mean and 20% of the deviation (its own error is 5%).
    error = np.sqrt(2 / 150) * logs.std()
    assert abs(found.mean()) < 4 * error / np.sqrt(200)
    assert found.std() == pytest.approx(error, rel=0.2)
    assert difference(like) > 10 * error


@pytest.mark.parametrize(
    ("rule", "column"),
    [("origin", "alignment"), ("origin_quantile", "sparsity"), ("curvature", "curvature_mean")],
)
def test_a_feature_that_is_missing_is_named_with_its_rule(rule, column):
    with pytest.raises(RequestError, match=rf"{rule} .*{column}"):
        label_units(made().drop(columns=column), rule)
    with pytest.raises(RequestError, match=rf"{rule}: .*{column}"):
        label_units(made().assign(**{column: np.nan}), rule)


def test_requests_that_make_no_sense_are_refused():
    units = made()
    like = label_units(units, "curvature")
    with pytest.raises(RequestError, match="no partition rule"):
        label_units(units, "best")
    with pytest.raises(RequestError, match="--like"):
        label_units(units, "random")
    with pytest.raises(RequestError, match="5 or more"):
        label_units(units, "random", like=like, draws=4)
    with pytest.raises(RequestError, match="other units"):
        label_units(units.iloc[1:], "random", like=like)
    with pytest.raises(RequestError, match="several draws"):
        label_units(units, "random", like=pd.concat([like, like]))
    with pytest.raises(RequestError, match="only random"):
        label_units(units, "origin", like=like)


def test_every_rule_is_documented_and_gives_only_known_labels():
    units = made()
    like = label_units(units, "curvature")
    for rule, function in RULES.items():
        assert "Source:" in function.__doc__
        found = label_units(units, rule, like=like if rule == "random" else None)
        assert set(found["label"]) <= set(LABELS)
