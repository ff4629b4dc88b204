"""The plan's figures show what its rows hold, and say what does not fit."""

import re
from functools import cache
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb

from paramscope.artifacts.plans import PART_COLUMNS, PLAN, STATES, TASKS, plan_rows
from paramscope.artifacts.provenance import provenance
from paramscope.artifacts.tables import write_table
from paramscope.errors import ArtifactError
from paramscope.figures.memory_plan import BESIDE, ON_CPU, in_order, memory_plan
from paramscope.figures.model_device_matrix import LOOKS, model_device_matrix, packed, typed
from paramscope.figures.saving import read_figure_provenance
from tests.unit.figure_checks import (
    check_imports,
    check_type,
    draw_by_commands,
    laid_out,
    said,
    with_gid,
)
from tests.unit.plan_records import DEVICES, HELD, MODELS, plan, record

SHOWN = ("opt-125m", "opt-1.3b", "opt-6.7b")
GPUS = tuple(name for name, (kind, *_) in DEVICES.items() if kind == "cuda")
CPUS = tuple(name for name in DEVICES if name not in GPUS)
FIGURES = ("memory_plan", "model_device_matrix")


@cache
def rows():
    return plan()


@cache
def figures():
    return {
        "plan": memory_plan(rows(), SHOWN),
        "plan of one": memory_plan(plan(("opt-350m",)), ["opt-350m"]),
        "plan of all": memory_plan(rows(), list(MODELS)),
        "plan without GPUs": memory_plan(plan(SHOWN, devices=CPUS), SHOWN),
        "plan of one strategy": memory_plan(plan(SHOWN, ("training",), GPUS[:1]), SHOWN[:2]),
        "matrix": model_device_matrix(rows()),
        "matrix of few": model_device_matrix(plan(SHOWN, ("training", "dpsgd-bk", "gradient"))),
        "matrix of one device": model_device_matrix(plan(devices=GPUS[:1])),
        "matrix with gaps": model_device_matrix(gaps()),
    }


def gaps():
    """Rows of which some models, devices and strategies have none."""
    kept = rows()["device"].isin(GPUS) | (rows()["model"] == "opt-125m")
    lacking = (rows()["model"] == "opt-2.7b") & rows()["strategy"].isin(TASKS["pruning"])
    return rows()[kept & ~lacking]


def sizes(model, device="a800"):
    """What was made up of a model's strategies on a device, by strategy."""
    return {strategy: record(model, strategy, device) for strategy in HELD}


@pytest.mark.parametrize(("case", "device"), [("plan", "a800"), ("plan without GPUs", CPUS[0])])
def test_bars_are_the_parts_and_end_at_the_total(case, device):
    names = [label.get_text() for label in figures()[case].axes[0].get_yticklabels()]
    assert names == list(HELD)  # by task and place in it, then those of none
    for axes, model in zip(figures()[case].axes, SHOWN, strict=True):
        planned = sizes(model, device)
        left = np.zeros(len(planned))
        columns = PART_COLUMNS | {BESIDE: "extra_bytes"}
        for part, column in columns.items():
            bars = with_gid(axes, part)
            np.testing.assert_allclose([bar.get_x() for bar in bars], left)
            widths = np.array([bar.get_width() for bar in bars])
            # Hundredths of a byte: widths are in GB.
            np.testing.assert_allclose(
                widths * 1e9, [row[column] for row in planned.values()], atol=0.01
            )
            left += widths
        totals = [row["total_bytes"] / 1e9 for row in planned.values()]
        np.testing.assert_allclose(left, totals)
        told = [float(text.get_text()) for text in with_gid(axes, "total")]
        np.testing.assert_allclose(told, totals, rtol=5e-3)  # written in three digits
        assert axes.get_xscale() == "linear"
        assert axes.get_xlim()[1] > max(totals)


def test_bars_and_diamonds_cross_a_devices_line_where_they_do_not_fit():
    """The row's state against what the picture says; every device is in every panel."""
    crossing = 0
    for axes, model in zip(figures()["plan"].axes, SHOWN, strict=True):
        ends = [b.get_x() + b.get_width() for b in with_gid(axes, BESIDE)]
        (marks,) = with_gid(axes, ON_CPU)
        named = {text.get_text() for text in with_gid(axes, "device")}
        right = axes.get_xlim()[1]
        for device in DEVICES:
            kind = DEVICES[device][0]
            usable = record(model, "inference", device)["usable_bytes"] / 1e9
            lines = with_gid(axes, f"usable {device}")
            assert len(lines) == (usable < right)
            (told,) = (text for text in named if text.startswith(f"{device} "))
            assert told.endswith("→") == (not lines)
            assert float(told.split()[1]) == pytest.approx(usable, rel=5e-3)
            if lines:
                np.testing.assert_allclose(lines[0].get_xdata(), usable)
                assert (lines[0].get_linestyle() == "-") == (kind == "cuda")
            reached = ends if kind == "cuda" else marks.get_xdata()
            for end, strategy in zip(reached, HELD, strict=True):
                fits = record(model, strategy, device)["state"] == "fits"
                assert (end <= usable) == fits, (model, strategy, device)
                crossing += not fits
    assert crossing > 50


def test_the_ground_right_of_all_devices_is_marked_and_formulas_are_told():
    grounds = [with_gid(axes, "beyond") for axes in figures()["plan"].axes]
    assert [len(found) for found in grounds] == [0, 0, 1]
    most = record("opt-6.7b", "training", "h200")["usable_bytes"] / 1e9
    assert grounds[2][0].get_x() == pytest.approx(most)
    text = said(figures()["plan"])
    assert "Not drawn, full_hessian: opt-125m 62.7 PB, opt-1.3b 6.9 EB, opt-6.7b" in text
    assert "full_hessian" not in [t.get_text() for t in figures()["plan"].axes[0].get_yticklabels()]
    assert "on a CPU; estimated" in said(figures()["plan without GPUs"])
    for axes in figures()["plan without GPUs"].axes:
        assert not with_gid(axes, ON_CPU)


def test_what_a_model_lacks_is_a_dash_and_its_row_stays():
    without = rows()[~((rows()["model"] == "opt-1.3b") & (rows()["strategy"] == "ggn"))]
    axes = memory_plan(without, SHOWN).axes[1]
    totals = [text.get_text() for text in with_gid(axes, "total")]
    assert totals[list(HELD).index("ggn")] == "–"
    assert totals.count("–") == 1
    heights = [round(bar.get_y() + bar.get_height() / 2) for bar in with_gid(axes, "parameters")]
    assert heights == [i for i, name in enumerate(HELD) if name != "ggn"]


def test_strategies_are_in_the_tasks_order_whatever_the_rows_come_in():
    assert in_order(["gradient", "dpsgd-micro", "training", "ggn", "ggn", "dpsgd-bk"]) == [
        *("ggn", "training", "dpsgd-bk", "dpsgd-micro", "gradient")
    ]
    shuffled = rows().sample(frac=1, random_state=0)
    texts = [said(memory_plan(shuffled, SHOWN)), said(figures()["plan"])]
    assert texts[0].split("Not drawn")[0] == texts[1].split("Not drawn")[0]


def best(model, device, task):
    """State, strategy, mend and bytes that a cell is of, by looking at all that could be."""
    found = []
    for place, strategy in enumerate(TASKS[task]):
        row = record(model, strategy, device)
        size = row["mended_bytes"] or row["total_bytes"]
        found.append((STATES.index(row["state"]), place, strategy, row["mend"], size, row))
    state, _, strategy, mend, size, row = min(found, key=lambda one: one[:2])
    if STATES[state] == "no":
        size = min(one[-1]["total_bytes"] for one in found)
    return STATES[state], strategy, mend, size / row["usable_bytes"]


def test_cells_tell_the_best_of_each_task():
    seen = set()
    for axes, task in zip(figures()["matrix"].axes, TASKS, strict=True):
        assert axes.get_title(loc="left").split("  ")[1].startswith(task)
        texts = {text.get_position(): text.get_text() for text in with_gid(axes, "cell")}
        assert len(texts) == len(MODELS) * len(DEVICES)
        patches = [p for state in STATES for p in with_gid(axes, f"state {state}")]
        assert len(patches) == len(texts)
        by_place = sorted(patches, key=lambda p: (p.get_y(), p.get_x()))
        places = ((model, device) for model in MODELS for device in DEVICES)
        for patch, (model, device) in zip(by_place, places, strict=True):
            state, strategy, mend, share = best(model, device, task)
            middle = (patch.get_x() + 0.5, patch.get_y() + patch.get_height() / 2)
            text = next(t for at, t in texts.items() if np.allclose(at, middle))
            assert to_hex(patch.get_facecolor()) == LOOKS[state]["facecolor"].lower()
            assert patch.get_hatch() == LOOKS[state].get("hatch")
            seen.add(state)
            words = text.replace(",", "").split()
            if state == "no":
                assert words[0] == "no"
                assert float(words[1].strip("×").replace(",", "")) == pytest.approx(
                    share, abs=0.05 if share < 9.95 else 0.5
                )
                continue
            expected = [strategy.rpartition("-")[2]] if len(TASKS[task]) > 1 else []
            for words_typed, short in (
                *(("--optimizer plain", "plain"), ("--chunk-tokens 512", "chunk")),
                *(("--dtype bfloat16", "bf16"), ("--checkpointing", "ckpt")),
            ):
                expected += [short] * (words_typed in (mend or ""))
            told = [word.replace("magn.", "magnitude") for word in words[:-1]]
            assert told == expected
            if words[-1] == "<1%":
                assert share < 0.005
                continue
            percent = float(words[-1].strip("%"))
            assert percent == pytest.approx(100 * share, abs=0.5)  # written in whole ones
            assert (state == "tight") == (percent > 100)
    assert seen == set(STATES)


def test_gaps_are_told_from_what_does_not_fit():
    axes = figures()["matrix with gaps"].axes[list(TASKS).index("pruning")]
    empty = with_gid(axes, "state ")
    lacking = len(CPUS) * (len(MODELS) - 1) + len(GPUS)
    assert len(empty) == lacking
    assert [text.get_text() for text in with_gid(axes, "cell")].count("–") == lacking
    assert "not in the plan" in said(figures()["matrix with gaps"])
    assert "not in the plan" not in said(figures()["matrix"])
    few = figures()["matrix of few"]
    titles = [axes.get_title(loc="left") for axes in few.axes]
    assert titles == ["a  training", "b  private training"]


def test_the_legend_tells_what_the_short_words_stand_for():
    text = said(figures()["matrix"])
    for told in (
        *("bf16: --dtype bfloat16", "ckpt: --checkpointing", "plain: --optimizer plain"),
        *("chunk: --chunk-tokens 512", "fits as asked for", "within the margin alone"),
    ):
        assert told in text
    assert "--" not in said(model_device_matrix(plan(("opt-125m",), devices=("h200",))))


def test_a_cells_words_are_inside_it():
    for name in ("matrix", "matrix of few", "matrix of one device", "matrix with gaps"):
        figure = laid_out({name: figures()[name]})[name]
        renderer = FigureCanvasAgg(figure).get_renderer()
        for axes in figure.axes:
            cells = [p.get_window_extent(renderer) for p in axes.patches]
            for text in with_gid(axes, "cell"):
                box = text.get_window_extent(renderer)
                (around,) = (c for c in cells if c.contains(*((box.p0 + box.p1) / 2)))
                assert around.x0 <= box.x0, text
                assert around.x1 >= box.x1, text
                assert around.y0 <= box.y0, text
                assert around.y1 >= box.y1, text


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.sampled_from(["bk,", "plain,", "bf16,", "per_layer,", "97%"]), min_size=1),
    st.floats(0.6, 3),
)
def test_words_are_packed_in_order_and_none_is_lost(words, room):
    lines = packed(words, room).split("\n")
    assert " ".join(lines).split() == words
    for one, other in pairwise(lines):
        assert packed([one, other.split()[0]], room).count("\n") == 1  # it would not have fitted


def test_words_wider_than_a_cell_are_cut():
    assert packed(["magnitude,", "97%"], 0.5) == "magn.\n97%"
    assert packed(["magnitude,", "97%"], 1.0) == "magnitude, 97%"
    cut = packed(["neverending"], 0.3)
    assert re.fullmatch(r"never?e?n?\.", cut) or cut.endswith(".")
    assert typed("--dtype bfloat16 --checkpointing --batch 1") == [
        *("--dtype bfloat16", "--checkpointing", "--batch 1")
    ]
    assert typed("") == []


# Machado, Oliveira and Fernandes 2009 (doi:10.1109/TVCG.2009.113), severity 1, of linear RGB.
SEEN_BY = {
    "all cones": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopes": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopes": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    "tritanopes": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.303900]],
}  # fmt: skip
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour, seen):
    """CIELAB (D65) of an sRGB colour as someone sees it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(np.array(seen) @ linear, 0, 1) / TO_XYZ.sum(axis=1)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("who", SEEN_BY)
def test_states_are_told_apart_with_any_colour_vision(who):
    """Colours differ by 15 or more in CIELAB, some six times what is just noticed."""
    for one, other in combinations(STATES, 2):
        colours = [lab(LOOKS[state]["facecolor"], SEEN_BY[who]) for state in (one, other)]
        assert np.linalg.norm(colours[0] - colours[1]) > 15, (one, other)
    hatches = [LOOKS[state].get("hatch", "") for state in ("fits", "tight", "no")]
    assert len(set(hatches)) == 3


def test_plans_that_cannot_be_drawn_are_refused():
    with pytest.raises(ArtifactError, match=r"no model opt-66b; it has opt-125m, opt-350m"):
        memory_plan(rows(), ["opt-125m", "opt-66b"])
    with pytest.raises(ArtifactError, match="no model to show"):
        memory_plan(rows(), [])
    formulas = plan(("opt-125m",), ("full_hessian",))
    with pytest.raises(ArtifactError, match="closed forms alone"):
        memory_plan(formulas, ["opt-125m"])
    with pytest.raises(ArtifactError, match="no strategy of a task"):
        model_device_matrix(formulas)
    wrong = rows().assign(state="maybe")
    for draw in (lambda: memory_plan(wrong, SHOWN), lambda: model_device_matrix(wrong)):
        with pytest.raises(ArtifactError, match="a state is one of"):
            draw()


def test_a_device_without_room_is_drawn():
    """All that the system holds: nothing is usable, and nothing fits."""
    full = [record(model, "training", "a800") for model in SHOWN]
    made = plan_rows(
        row | {"held_bytes": row["memory_bytes"], "usable_bytes": 0, "state": "no",
               "mend": None, "mended_bytes": None}
        for row in full
    )  # fmt: skip
    text = said(model_device_matrix(made))
    assert "no –" in text
    assert "a800 0" in said(memory_plan(made, SHOWN))


def test_commands_draw_each_figure_from_a_plan(tmp_path):
    write_table(tmp_path / "plan.parquet", rows(), PLAN, provenance("artifacts.plans", {}))
    lines = {name: [f"{name}.png", "--plan", "plan.parquet"] for name in FIGURES}
    lines["memory_plan"] += ["--model", "opt-125m", "--model", "opt-6.7b"]
    draw_by_commands(tmp_path, lines)
    for name in FIGURES:
        described = read_figure_provenance(tmp_path / f"{name}.png")
        assert len(described["inputs"]) == 1
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")


@pytest.fixture(scope="module")
def placed():
    return laid_out(figures())


@pytest.mark.parametrize("name", list(figures()))
def test_type_is_at_least_seven_points_uncut_and_apart(name, placed):
    check_type(placed[name], least=10)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_hangs_on_no_other_figure(name):
    check_imports(name, FIGURES, {"artifacts", "errors", "figures", "names", "units"})


def test_rows_stay_as_they_were():
    few = plan(("opt-125m",))
    before = few.copy()
    memory_plan(few, ["opt-125m"])
    model_device_matrix(few)
    pd.testing.assert_frame_equal(few, before)
