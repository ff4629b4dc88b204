"""The planner's benchmark: accelerate's rule by its own numbers, and which goals are met."""

import pytest

from paramscope.dpsgd.workloads import Workload, architecture
from paramscope.planner.models import configuration
from tests.benchmarks.planner import (
    accelerate_bytes,
    accelerate_summary,
    case_of,
    goals,
    timed,
)
from tests.unit.test_planner_strategies import config

# calculate_maximum_sizes(AutoModel.from_config(config)) of accelerate 1.15.0 with transformers
# 5.23.0, and the most of estimate_training_usage's rows in float32 and in bfloat16.
PUBLISHED = {
    "opt-125m": (500_957_184, 2_003_828_736, 1_001_914_368),
    "opt-350m": (1_324_785_664, 5_299_142_656, 2_649_571_328),
    "opt-1.3b": (5_263_032_320, 21_052_129_280, 10_526_064_640),
    "gpt2": (30_976, 123_904, 61_952),
    "llama": (18_272, 73_088, 36_544),
    "opt": (20_544, 82_176, 41_088),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_rule_is_accelerates(name):
    model = configuration(name) if name.startswith("opt-") else config(name)
    size, training, half = PUBLISHED[name]
    assert accelerate_bytes(model, "inference", "float32") == size
    assert accelerate_bytes(model, "prune-wanda", "bfloat16") == size // 2
    assert accelerate_bytes(model, "training", "float32") == training
    assert accelerate_bytes(model, "dpsgd-bk", "bfloat16") == half
    assert accelerate_bytes(model, "masked_finetune", "float16") == half
    assert accelerate_bytes(model, "gradient", "float32") is None
    assert accelerate_bytes(model, "ggn", "float32") is None


def test_a_case_has_the_rule_beside_it():
    workload = Workload("", "opt", 16, 2, 2, 24, 40, 12, 3, True)
    size = accelerate_bytes(architecture(workload), "training", "float32")
    row = {
        **{name: getattr(workload, name) for name in workload.__dataclass_fields__},
        **{"strategy": "training", "dtype": "float32", "options": "", "threads": 2},
        **{"parameters": 5, "how": "full", "predicted_bytes": 9, "error": 0.01, "rss_bytes": 7},
        **{"measured_bytes": 4 * size, "total_bytes": 6, "false_fit": False},
    }
    case = case_of(row)
    assert (case["model"], case["accelerate_bytes"]) == ("opt 2 x 16", size)
    assert case["accelerate_error"] == -0.75
    other = case_of(row | {"strategy": "hutchinson"})
    assert other["accelerate_error"] is None
    bad = case | {"accelerate_error": 0.5}
    assert accelerate_summary([case, other, bad, bad]) == {
        "cases": 3, "low": -0.75, "high": 0.5, "median_size": 0.5,
    }  # fmt: skip
    assert accelerate_summary([other])["low"] is None


def measured(error, strategy="training", false_fit=False):
    return {"error": error, "strategy": strategy, "model": "m", "false_fit": false_fit}


def test_goals_are_of_the_worst_the_middle_and_the_longest():
    cases = [measured(-0.006, "ggn"), measured(0.0001), measured(0.0002, false_fit=True)]
    times = [
        {"model": "opt-30b", "strategy": "ggn", "seconds": [9.0, 4.0, 4.5]},
        {"model": "opt-125m", "strategy": "training", "seconds": [4.9, 4.8, 5.5]},
    ]
    records = [goal.record() for goal in goals(cases, times, ["ggn", "training", "inference"])]
    assert [(r["reached"], r["limit"], r["met"]) for r in records] == [
        (0.006, 0.005, False),
        (0.0002, 0.001, True),
        (3, 12, False),
        (1, 0, False),
        (1, 0, False),
        (4.9, 5.0, True),
    ]
    assert records[0]["subject"] == "ggn, m"
    assert records[5]["subject"] == "opt-125m, training"
    twelve = [measured(-0.005, "ggn"), *[measured(0.0)] * 11]
    assert all(goal.record()["met"] for goal in goals(twelve, [], ["ggn", "training"]))
    assert [goal.record()["met"] for goal in goals([], [], ["ggn"])] == [
        None, None, False, False, None,
    ]  # fmt: skip


def test_estimates_are_timed():
    assert all(0 < seconds < 60 for seconds in timed("opt-125m", "inference", 16, 2))
