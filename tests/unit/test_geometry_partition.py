"""Oracles: tables labelled by hand, ranks by scipy, invariances, and the null of the control."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import percentileofscore

from paramscope.errors import RequestError
from paramscope.geometry.features import percentile
from paramscope.geometry.partition import PARTITION, RULES, counts, label_units
from paramscope.names import CONTROLS, LABELS


def made(rows=(13, 8, 3), seed=0):
    """Units of three tensors with distinct curvature."""
    rng = np.random.default_rng(seed)
    units = [(f"{t}:{r}", t, r) for t, n in zip("abc", rows, strict=True) for r in range(n)]
    frame = pd.DataFrame(units, columns=["unit", "tensor", "row"])
    frame["curvature_mean"] = rng.lognormal(size=len(frame))
    frame["alignment"] = rng.uniform(size=len(frame))
    frame["sparsity"] = rng.uniform(size=len(frame))
    frame["gate"] = rng.normal(size=len(frame))
    frame["loss_gap"] = rng.lognormal(size=len(frame))
    frame["contrast"] = frame["tensor"].map({"a": 0.4, "b": -0.2, "c": 0.1})
    frame["n_parameters"] = 9
    return frame


def tensors(sizes, contrasts):
    """Units of tensors a, b, …: one parameter a row, so a size is a number of rows."""
    names = "abcdefgh"[: len(sizes)]
    units = [(f"{t}:{r}", t, r, c) for t, n, c in zip(names, sizes, contrasts, strict=True)
             for r in range(n)]  # fmt: skip
    return pd.DataFrame(units, columns=["unit", "tensor", "row", "contrast"]).assign(n_parameters=1)


def by_tensor(units, found):
    """The one label of each tensor's units, F, S or B, in the order of tensors."""
    given = found["label"].groupby(units["tensor"]).unique()
    assert (given.map(len) == 1).all()
    return "".join(label[0][2].upper() for label in given)


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


@pytest.mark.parametrize("rule", ["gate", "loss_gap"])
def test_gate_and_loss_gap_take_quarters_with_the_highest_as_sens(rule):
    units = made()
    mirrored = units.assign(curvature_mean=-units[rule])  # the lowest curvature is W_sens
    pd.testing.assert_series_equal(labels(units, rule), labels(mirrored, "curvature"))
    top = units[units["tensor"] == "a"].nlargest(3, rule)["unit"]
    assert (labels(units, rule)[top] == "W_sens").all()


@pytest.mark.parametrize(
    ("sizes", "contrasts", "expected"),
    [
        ([4, 4, 4, 4], [0.1, 0.9, -0.3, 0.2], "BSFB"),  # a quarter each, exactly
        ([3, 4, 4, 5], [0.1, 0.9, -0.3, 0.2], "BSFB"),
        ([2, 2, 4, 5, 3], [0.9, 0.8, 0.1, 0.0, -0.9], "SSBFF"),  # 4 of 16 and, past 3, 3 + 5
        ([1, 8, 1], [0.9, 0.5, 0.1], "SBF"),  # both ends reach for the middle one
        ([5, 5], [0.1, 0.2], "FS"),
        ([7], [0.3], "B"),
    ],
)
def test_contrast_takes_whole_tensors_until_a_quarter(sizes, contrasts, expected):
    units = tensors(sizes, contrasts)
    found = label_units(units, "contrast")
    assert by_tensor(units, found) == expected
    shuffled = units.sample(frac=1, random_state=0)
    again = label_units(shuffled, "contrast").set_index("unit")["label"]
    assert (again[found["unit"]].to_numpy() == found["label"].to_numpy()).all()


def test_contrasts_ends_hold_a_quarter_each_and_no_tensor_more():
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes, contrasts = rng.integers(1, 20, 8), rng.normal(size=8)
        units = tensors(sizes, contrasts)
        given = dict(zip("abcdefgh", by_tensor(units, label_units(units, "contrast")), strict=True))
        contrast = dict(zip("abcdefgh", contrasts, strict=True))
        size = dict(zip("abcdefgh", sizes, strict=True))
        for label, sign in (("S", 1), ("F", -1)):
            end = sorted((t for t in given if given[t] == label), key=lambda t: sign * contrast[t])
            rest = [t for t in given if given[t] == "B"]
            assert sum(size[t] for t in end) >= sum(sizes) / 4
            assert sum(size[t] for t in end[1:]) < sum(sizes) / 4  # without its last, too few
            assert all(sign * contrast[t] < sign * contrast[end[0]] for t in rest)


def test_units_that_are_tensors_are_ordered_over_the_whole_model():
    sizes = [40, 10, 10, 10, 10, 20]  # a quarter is 25
    units = pd.DataFrame({"unit": list("abcdef"), "tensor": list("abcdef"), "row": 0})
    units = units.assign(n_parameters=sizes, gate=[0.0, 5, 4, 3, -1, -2])
    found = label_units(units, "gate")
    assert by_tensor(units, found) == "BSSSFF"
    like = label_units(units, "random", like=found, draws=40, seed=1)
    drawn = like.pivot_table(index="draw", columns="unit", values="label", aggfunc="first")
    assert (drawn[["a", "f"]] == ["W_both", "W_func"]).all(axis=None)  # alone in their sizes
    four = drawn[list("bcde")]
    assert ((four == "W_sens").sum(axis=1) == 3).all()
    assert (four == "W_func").any().all()  # each takes the place of the fourth now and then


def test_random_permutes_whole_tensors_where_the_reference_has_nothing_else():
    sizes = [8, 8, 8, 8, 40, 41, 41, 42]
    units = tensors(sizes, [0.9, 0.8, 0.7, 0.1, 0.2, 0.0, -0.1, -0.2])
    like = label_units(units, "contrast")
    reference = by_tensor(units, like)
    assert reference == "SSSBSBFF"
    drawn = label_units(units, "random", like=like, draws=60, seed=2)
    seen = []
    for _, rows in drawn.groupby("draw"):
        given = by_tensor(units, rows.reset_index(drop=True))
        # sizes within 5% of each other are one: labels move among 8, 8, 8, 8 and among the rest
        assert sorted(given[:4]) == sorted(reference[:4])
        assert sorted(given[4:]) == sorted(reference[4:])
        seen.append(given)
    assert len(set(seen)) > 20  # of 4 · 12 arrangements
    share = np.mean([given[3] == "S" for given in seen])
    assert share == pytest.approx(0.75, abs=4 * np.sqrt(0.75 * 0.25 / 60))
    again = label_units(units.sample(frac=1, random_state=3), "random", like=like, draws=60, seed=2)
    key = ["draw", "unit"]
    pd.testing.assert_frame_equal(
        again.sort_values(key, ignore_index=True), drawn.sort_values(key, ignore_index=True)
    )


def test_the_stage_that_makes_a_missing_feature_is_named():
    for rule in ("gate", "loss_gap", "contrast"):
        for units in (made().drop(columns=rule), made().assign(**{rule: np.nan})):
            with pytest.raises(RequestError, match=f"{rule} needs .*membership-features"):
                label_units(units, rule)
    with pytest.raises(RequestError, match="stage units"):
        label_units(made().drop(columns="curvature_mean"), "curvature")
    half = made()
    half.loc[0, "gate"] = np.nan
    with pytest.raises(RequestError, match="not finite"):
        label_units(half, "gate")


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


def test_random_tensor_deals_whole_tensors_and_refuses_split_ones():
    """The control of `contrast` is the permutation of whole tensors, and of nothing smaller."""
    units = tensors([8, 8, 8, 8, 40, 41, 41, 42], [0.9, 0.8, 0.7, 0.1, 0.2, 0.0, -0.1, -0.2])
    like = label_units(units, "contrast")
    drawn = label_units(units, "random_tensor", like=like, draws=30, seed=2)
    assert drawn.equals(label_units(units, "random", like=like, draws=30, seed=2))
    assert len({by_tensor(units, d.reset_index(drop=True)) for _, d in drawn.groupby("draw")}) > 10
    split = label_units(made(), "curvature")
    with pytest.raises(RequestError, match="the reference splits them"):
        label_units(made(), "random_tensor", like=split)


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
    with pytest.raises(RequestError, match="only controls take"):
        label_units(units, "origin", like=like)


def test_every_rule_is_documented_and_gives_only_known_labels():
    units = made()
    for rule, function in RULES.items():
        assert "Source:" in function.__doc__
        like = label_units(units, "contrast") if rule in CONTROLS else None
        found = label_units(units, rule, like=like)
        assert set(found["label"]) <= set(LABELS)
