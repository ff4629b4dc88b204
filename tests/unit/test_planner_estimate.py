"""Estimates: few layers tell of all, parts add up, and closed forms are their formulas."""

import json
from dataclasses import replace

import numpy as np
import pytest

from paramscope.dpsgd.profile import POINTS
from paramscope.errors import RequestError
from paramscope.names import DPSGD_PARTS
from paramscope.planner.estimate import estimate, measure
from paramscope.planner.known_devices import known_device
from paramscope.planner.models import parameters
from paramscope.planner.options import Options
from paramscope.planner.traces import Phase, extrapolated, highest
from tests.unit.test_planner_strategies import SHAPE, config

EXTRAPOLATED = [
    ("inference", {}),
    ("training", {}),
    ("training", {"checkpointing": True, "optimizer": "foreach"}),
    ("masked_finetune", {"density": 0.1}),
    ("dpsgd-bk", {}),
    ("ggn", {"graph": "layerwise", "draws": 2}),
    ("hutchinson", {}),
    ("prune-wanda", {}),
]


@pytest.mark.parametrize(("name", "options"), EXTRAPOLATED)
def test_few_layers_tell_of_all(name, options):
    asked = Options(**SHAPE, **options)
    few = estimate(config(layers=7), name, asked)
    full = estimate(config(layers=7), name, asked, extrapolate=False)
    assert (few.how, full.how) == ("extrapolated", "full")
    assert few.peak_bytes == full.peak_bytes
    assert few.breakdown == full.breakdown
    assert (few.operation, few.phase) == (full.operation, full.phase)
    assert few.snapshots == full.snapshots


def test_a_peak_that_moves_with_depth_is_found():
    """With few layers one's activations are the peak; with many AdamW's copies of the parameters.

    A layer adds about 2.7k parameters to what AdamW has twice more than a backward's begin,
    and 2k values to the inputs that checkpointing keeps, so that depth decides.
    """
    asked = Options(batch=4, length=32, checkpointing=True, optimizer="foreach")
    peaks = [estimate(config(layers=n), "training", asked, verify=True) for n in (5, 45)]
    assert [peak.verified for peak in peaks] == [True, True]
    assert peaks[0].phase == "backward"
    assert peaks[1].phase == "step"


def test_bends_are_not_extrapolated():
    def run(held):
        parts = np.zeros((3, len(DPSGD_PARTS)), np.int64)
        parts[1, 0] = held
        return (Phase("", np.array(["a", "b", "c"], dtype=object), parts),)

    assert highest(extrapolated([run(10), run(20), run(30)], 8)).bytes == 90
    assert extrapolated([run(10), run(20), run(31)], 8) is None


def test_an_only_layer_that_is_unlike_all_others_is_left_out():
    """Without a norm after the last layer, what is last and first does what no other does."""
    asked = Options(batch=2, length=16, graph="layerwise")
    unlike = config(layers=7, do_layer_norm_before=False)
    found = estimate(unlike, "ggn", asked, verify=True)
    assert (found.how, found.verified) == ("extrapolated", True)


def test_parts_add_up_and_the_record_is_json():
    found = estimate(config(layers=6), "training", Options(**SHAPE), verify=True)
    assert found.verified is True
    assert found.how == "extrapolated"
    assert tuple(found.breakdown) == DPSGD_PARTS
    assert sum(found.breakdown.values()) == found.peak_bytes
    assert found.breakdown["parameters"] == 4 * found.parameters
    assert found.breakdown["optimizer states"] >= 8 * found.parameters
    line = found.timeline
    columns = np.array(list(line["by_part"].values()))
    assert columns.sum(0).tolist() == line["live_bytes"]
    assert line["live_bytes"][line["peak_at"]] == max(line["live_bytes"]) == found.peak_bytes
    assert len(line["live_bytes"]) <= POINTS
    assert json.loads(json.dumps(found.record())) == found.record()
    again = estimate(config(layers=6), "training", Options(**SHAPE), verify=True)
    assert again == found


def test_cuda_counts_blocks_and_takes_its_own_adamw():
    cpu = estimate(config(), "training", Options(**SHAPE, optimizer="foreach"))
    cuda = estimate(config(), "training", Options(**SHAPE), "cuda")
    assert cuda.options["optimizer"] == "foreach"
    assert cuda.peak_bytes > cpu.peak_bytes
    assert all(size % 512 == 0 for size in cuda.breakdown.values())
    assert {row["name"] for row in cuda.terms} >= {"CUDA context", "cuBLAS workspace"}
    a800 = estimate(config(), "training", Options(**SHAPE), "cuda", device=known_device("a800"))
    sizes = {row["name"]: row["bytes"] for row in a800.terms}
    assert sizes["cuBLAS workspace"] == 2 * 8320 * 1024  # a backward has a workspace of its own
    with pytest.raises(RequestError, match="a800 is of kind cuda; plan for that kind"):
        estimate(config(), "training", Options(**SHAPE), device=known_device("a800"))


def test_closed_forms():
    source = "opt-125m"
    full = estimate(source, "full_hessian")
    assert full.peak_bytes == 4 * parameters(source) ** 2
    assert full.peak_bytes == pytest.approx(62.7e15, rel=1e-3)  # 62.7 PB
    d, f, V, L = 768, 3072, 50_272, 12
    rows = L * (4 * d * (d + 1) ** 2 + f * (d + 1) ** 2 + d * (f + 1) ** 2) + V * d**2
    assert estimate(source, "block_hessian").peak_bytes == 4 * rows
    with pytest.raises(RequestError, match="full_hessian is a formula"):
        measure(config(), "full_hessian")


def test_more_of_everything_takes_more():
    base = Options(**SHAPE)
    held = estimate(config(), "training", base).peak_bytes
    for key, value in {"batch": 4, "length": 16, "dtype": "float64"}.items():
        assert estimate(config(), "training", replace(base, **{key: value})).peak_bytes > held
