"""Training seeds are the replicates: their scores, mean and interval."""

import math

import numpy as np
import pytest
import scipy.stats

from paramscope.response.replication import (
    markdown,
    replicated,
    replicated_removal,
    replication_record,
    t_interval,
)
from paramscope.response.responses import merge
from paramscope.response.statistics import statistics
from tests.unit.response_sweeps import noisy_sweep
from tests.unit.test_response_null import random_sweep


@pytest.fixture(scope="module")
def by_seed():
    found = {}
    for seed in range(3):
        random = statistics(merge([random_sweep(seed=seed)]), "random", seed)
        strong = statistics(merge([noisy_sweep(seed=seed)]), "curvature", seed, random.record())
        found[seed] = [strong.record(), random.record()]
    return found


def test_the_interval_is_students():
    values = np.array([0.2, 0.9, -0.1, 0.4])
    mean, low, high = t_interval(values)
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert mean == pytest.approx(values.mean())
    assert math.isnan(t_interval(values[:1])[1])
    assert all(math.isnan(x) for x in t_interval(values[:0]))


def test_the_mean_is_over_training_seeds_not_noise_seeds(by_seed):
    rows = {(row.rule, row.measure): row for row in replicated(by_seed)}
    assert set(rows) == {("curvature", "gap"), ("curvature", "auc")}
    row = rows["curvature", "gap"]
    own = [records[0]["separation"]["gap"] for records in by_seed.values()]
    assert row.values == [one["value"] for one in own]
    assert row.null_high == [one["null_high"] for one in own]
    assert row.mean == pytest.approx(np.mean(row.values))
    assert row.verdicts == ["separates"] * 3
    assert row.low < row.mean < row.high


def test_an_undefined_seed_is_shown_and_left_out_of_the_mean(by_seed):
    lost = dict(by_seed)
    broken = dict(by_seed[1][0])
    broken["separation"] = {"gap": dict.fromkeys(by_seed[1][0]["separation"]["gap"])}
    lost[1] = [broken]
    row = next(row for row in replicated(lost) if row.measure == "gap")
    assert math.isnan(row.values[1])
    assert row.mean == pytest.approx(np.mean([row.values[0], row.values[2]]))
    assert row.verdicts[1] == "undefined"
    table = markdown([row])
    assert "2 of 3" in table
    assert f"{row.mean:.2f} [" in table
    assert replication_record([row], [], [0, 1, 2])["seeds"] == [0, 1, 2]


def test_removals_are_set_beside_each_other():
    ratios = [1.5, 2.5, None, 2.0]
    records = [{m: {"ratio": {"low_curvature": r}} for m in ("gap", "auc")} for r in ratios]
    gap, _ = replicated_removal(records)
    expected = scipy.stats.ttest_1samp([1.5, 2.5, 2.0], 0).confidence_interval(0.95)
    assert (gap.mean, gap.low, gap.high) == pytest.approx((2, expected.low, expected.high))
    assert math.isnan(gap.values[2])
    last = markdown([], [gap]).splitlines()[-1]
    assert "| loss gap | 2.00 [" in last
    assert last.endswith("| 1.50; 2.50; –; 2.00 |")
    assert replicated_removal([]) == []
