"""Figures of DP-SGD show what the records hold, whatever variants there are."""

import copy
import re
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

from paramscope.artifacts.profiles import METHODS as NAMES
from paramscope.artifacts.provenance import provenance
from paramscope.artifacts.records import write_record
from paramscope.errors import ArtifactError
from paramscope.figures.dpsgd import METHOD_LOOKS, OTHERS, PART_LOOKS, REASON, shortened
from paramscope.figures.memory_breakdown_comparison import memory_breakdown_comparison
from paramscope.figures.memory_timeline import memory_timeline, phases, spread
from paramscope.figures.performance_tradeoff import performance_tradeoff
from paramscope.figures.point_labels import place
from paramscope.figures.privacy_utility import privacy_utility
from paramscope.figures.saving import read_figure_provenance
from paramscope.names import DPSGD_PARTS
from tests.unit.dpsgd_records import (
    COSTS,
    LARGE_WORKLOAD,
    METHODS,
    REFUSAL,
    SMALL_WORKLOAD,
    predicted,
    profile,
    refused,
    study,
    utility,
)
from tests.unit.figure_checks import (
    check_imports,
    check_type,
    draw_by_commands,
    laid_out,
    said,
    with_gid,
)

OF_PROFILES = {
    "breakdown": memory_breakdown_comparison,
    "timeline": memory_timeline,
    "tradeoff": performance_tradeoff,
}
FIGURES = (
    *("memory_breakdown_comparison", "memory_timeline", "performance_tradeoff"),
    "privacy_utility",
)


def later_peak(variant):
    """A profile on a GPU whose drawn iteration stays below the run's peak."""
    record = profile(variant, LARGE_WORKLOAD, device="NVIDIA H100 80GB HBM3", device_type="cuda")
    record["breakdown"]["other"] += 2_000_000_000
    record["peak"]["bytes"] += 2_000_000_000
    return record | {"explained": 0.971}


def crowd():
    """Variants whose costs hardly differ, two of them refused."""
    made = []
    for index in range(14):
        record = profile("bk")
        record["timing"] = {
            key: value * (1 + 0.004 * (index * 5 % 14)) if key != "n" else 5 + index
            for key, value in record["timing"].items()
        }
        extra = 40_000 * (index * 3 % 14)
        record["breakdown"]["other"] += extra
        record["peak"]["bytes"] += extra
        made.append(record | {"variant": f"bk+option-{index}"})
    return [
        profile("vanilla"),
        *made,
        refused("opacus_ghost"),
        refused("opacus_hooks", reason="short"),
    ]


@cache
def cases():
    """By name: the profiles and their workload's name."""
    small, large = SMALL_WORKLOAD["name"], LARGE_WORKLOAD["name"]
    return {
        "study": (study(), small),
        "large study": (study(LARGE_WORKLOAD), large),
        "methods": ([profile(method) for method in METHODS], small),
        "one": ([profile("vanilla")], small),
        "without vanilla": ([profile("bk"), profile("micro"), refused("flash")], small),
        "elsewhere": (
            [
                profile("vanilla", LARGE_WORKLOAD),
                later_peak("bk"),
                refused("micro", LARGE_WORKLOAD),
            ],
            large,
        ),
        "crowd": (crowd(), small),
    }


@cache
def figures():
    drawn = {
        f"{figure} of {case}": draw(profiles, workload)
        for figure, draw in OF_PROFILES.items()
        for case, (profiles, workload) in cases().items()
    }
    lacking = utility((0.3, 0.31, 3.0))
    lacking["rows"][2] |= {"perplexity": None, "perplexity_low": None, "perplexity_high": None}
    far = utility((1.0, 30.0))
    for row in far["rows"]:
        for key in ("perplexity", "perplexity_low", "perplexity_high"):
            row[key] = row[key] ** (1.0 if row["epsilon"] is None else 2.0)
    alone = utility((2.0,))
    alone["rows"] = alone["rows"][1:2]
    return drawn | {
        "utility": privacy_utility(utility(), "tiny-opt"),
        "utility of one": privacy_utility(utility((1.0,)), "tiny-opt"),
        "utility lacking": privacy_utility(lacking, "tiny-opt"),
        "utility far": privacy_utility(far, "tiny-opt"),
        "utility alone": privacy_utility(alone, "tiny-opt"),
    }


def bars(axes, part):
    """Left end and width of a part's bars, [rows] each; two sides summed where there are two."""
    patches = with_gid(axes, part)
    rows = len({round(patch.get_y(), 6) for patch in patches})
    x, width = (np.array([getattr(patch, f"get_{of}")() for patch in patches])
                for of in ("x", "width"))  # fmt: skip
    return x.reshape(-1, rows), width.reshape(-1, rows)


def in_order(profiles):
    """The profiles that are drawn, in the order of the eight methods and of their options."""
    kept = [record for record in profiles if not record["refused"]]
    return sorted(kept, key=lambda record: list(COSTS).index(record["variant"]))


@pytest.mark.parametrize(("case", "size"), [("study", 1e6), ("large study", 1e9)])
def test_bars_are_the_records_parts_and_end_at_the_peak(case, size):
    shown = in_order(cases()[case][0])
    whole, extra = figures()[f"breakdown of {case}"].axes
    assert len(shown) == 11
    left = np.zeros(11)
    for part in DPSGD_PARTS:
        (x,), (width,) = bars(whole, part)
        np.testing.assert_allclose(x, left)
        np.testing.assert_allclose(width, [r["breakdown"][part] / size for r in shown])
        left += width
    np.testing.assert_allclose(left, [record["peak"]["bytes"] / size for record in shown])
    totals = [float(text.get_text()) for text in with_gid(whole, "total")]
    np.testing.assert_allclose(totals, left, rtol=5e-4)  # written in four digits

    vanilla = shown[0]
    net = np.zeros(11)
    for part in DPSGD_PARTS:
        _, width = bars(extra, part)
        difference = [r["breakdown"][part] - vanilla["breakdown"][part] for r in shown]
        np.testing.assert_allclose(width.sum(axis=0) * size, difference, atol=1)
        net += width.sum(axis=0)
    diamonds = [line.get_xdata()[0] for line in with_gid(extra, "net")]
    np.testing.assert_allclose(diamonds, net[1:], atol=1e-9)
    ratios = [float(t.get_text()[1:]) for t in with_gid(extra, "extra") if "×" in t.get_text()]
    expected = [sum(COSTS[r["variant"]][0]) / sum(COSTS["vanilla"][0]) for r in shown]
    np.testing.assert_allclose(ratios, expected, atol=0.006)  # written in two decimals: 0.005


def test_rows_are_in_one_order_whatever_the_records_come_in():
    forwards = memory_breakdown_comparison(study(), "decoder-small")
    backwards = memory_breakdown_comparison(study()[::-1], "decoder-small")
    for figure in (forwards, backwards):
        names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert names[:3] == ["vanilla", "vanilla + checkpoint", "Opacus hooks"]
        assert names[4] == "flash (predicted)"
        assert names[-1] == "micro + chunk + checkpoint"
    assert said(forwards) == said(backwards)


def test_what_is_predicted_is_framed_and_what_was_refused_is_told():
    for kind in OF_PROFILES:
        figure = figures()[f"{kind} of study"]
        assert "Opacus ghost refused: Opacus 1.6's ghost mode can't run" in said(figure)
        assert "flash (predicted)" in said(figure)
    whole, _ = figures()["breakdown of study"].axes
    (frame,) = with_gid(whole, "predicted")
    assert frame.get_width() * 1e6 == pytest.approx(predicted("flash")["peak"]["bytes"])
    assert "flash (predicted): no time, so no point" in said(figures()["tradeoff of study"])
    assert not with_gid(figures()["tradeoff of study"].axes[0], "point flash")
    crowded = said(figures()["tradeoff of crowd"])
    assert "Opacus hooks refused: short\nOpacus ghost refused: Opacus 1.6" in crowded


def test_what_cannot_be_compared_with_vanilla_is_told():
    assert "no profile of vanilla" in said(figures()["breakdown of without vanilla"])
    for case in ("without vanilla", "one", "elsewhere"):
        assert len(figures()[f"breakdown of {case}"].axes) == 1
    elsewhere = said(figures()["breakdown of elsewhere"])
    assert "BK: other type of device than vanilla's, not compared" in elsewhere
    assert "BK: the parts are 97.1% of what the device's allocator held" in elsewhere
    assert "×1.0" not in elsewhere
    assert "BK: on NVIDIA H100 80GB HBM3, vanilla is not" in said(
        figures()["tradeoff of elsewhere"]
    )


@pytest.mark.parametrize(("case", "size"), [("study", 1e6), ("large study", 1e9)])
def test_areas_are_the_records_timelines(case, size):
    shown = in_order(cases()[case][0])
    panels = figures()[f"timeline of {case}"].axes
    assert len(panels) == len(shown)
    for axes, record in zip(panels, shown, strict=True):
        timeline = record["timeline"]
        (live,) = with_gid(axes, "live")
        operations = np.array(timeline["operation_index"]) - timeline["operation_index"][0]
        np.testing.assert_array_equal(live.get_xdata(), operations)
        np.testing.assert_allclose(live.get_ydata(), np.array(timeline["live_bytes"]) / size)
        area = 0.0
        for part in DPSGD_PARTS:
            values = np.array(timeline["by_part"][part]) / size
            areas = with_gid(axes, part)
            assert len(areas) == values.any()
            for drawn in areas:
                (path,) = drawn.get_paths()
                x, y = path.vertices.T
                own = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
                assert own == pytest.approx(np.dot(values[:-1], np.diff(operations)))  # shoelace
                area += own
        assert area == pytest.approx(np.dot(live.get_ydata()[:-1], np.diff(operations)))
        (peak,) = with_gid(axes, "peak")
        at = timeline["peak_at"]
        assert peak.xy == (operations[at], pytest.approx(max(timeline["live_bytes"]) / size))
        assert f"{record['peak']['bytes'] / size:,.4g} " in axes.get_title(loc="left")
        assert "in _log_softmax_backward" in axes.get_title(loc="left")
        assert axes.get_ylim() == panels[0].get_ylim()
        assert axes.get_ylim()[1] > max(live.get_ydata())


def test_phases_are_named_between_their_marks():
    record = profile("vanilla")
    marks = [mark["at"] for mark in record["timeline"]["phases"]]
    assert [name for name, *_ in phases(record)] == ["forward", "backward", "step"]
    assert [start for _, start, _ in phases(record)] == [3 * at for at in marks[:-1]]
    assert [end for *_, end in phases(record)] == [3 * at for at in marks[1:]]
    figure = memory_timeline([record], "decoder-small")
    (bounds,) = with_gid(figure.axes[0], "phases")
    assert [segment[0][0] for segment in bounds.get_segments()] == [3 * at for at in marks[1:-1]]
    names = with_gid(figure.axes[0], "phase")
    for text, (_, start, end) in zip(names, phases(record), strict=True):
        at = text.get_position()[0] * figure.axes[0].get_xlim()[1]
        assert text.get_text() == "step" or start <= at <= end  # the step is narrower than its name


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.02, 0.3)), min_size=1, max_size=3))
def test_names_in_a_row_keep_apart_and_inside(drawn):
    centres = sorted(centre for centre, _ in drawn)
    widths = [width for _, width in drawn]
    placed = np.array(spread(centres, widths, 0.03))
    low, high = placed - np.array(widths) / 2, placed + np.array(widths) / 2
    assert low[0] >= -1e-9
    assert high[-1] <= 1 + 1e-9
    assert (low[1:] - high[:-1] >= 0.03 - 1e-9).all()
    if len(placed) == 1 and widths[0] / 2 <= centres[0] <= 1 - widths[0] / 2:
        assert placed[0] == centres[0]


def test_a_timeline_below_the_runs_peak_names_both():
    (_, title) = (axes.get_title(loc="left") for axes in figures()["timeline of elsewhere"].axes)
    record = later_peak("bk")
    here = max(record["timeline"]["live_bytes"]) / 1e9
    assert f"{here:,.4g} GB; whole run: {record['peak']['bytes'] / 1e9:,.4g} GB" in title


def test_points_are_at_the_records_medians_and_ratios():
    axes, beside = figures()["tradeoff of study"].axes
    vanilla = profile("vanilla")
    timed = [record for record in in_order(study()) if record["timing"]]
    for record in timed:
        (point,) = with_gid(axes, f"point {record['variant']}")
        (span,) = with_gid(axes, f"range {record['variant']}")
        walls = sorted(1e3 * one["wall_s"] for one in record["iterations"])
        ratio = sum(COSTS[record["variant"]][0]) / sum(COSTS["vanilla"][0])
        assert point.get_ydata() == pytest.approx([np.median(walls)])
        assert point.get_xdata() == pytest.approx([ratio], rel=1e-6)
        np.testing.assert_allclose(span.get_segments()[0][:, 1], [walls[0], walls[-1]])
        hollow = point.get_markerfacecolor() == "white"
        assert hollow == ("+" in record["variant"])
        (label,) = [text for text in axes.texts if text.xy[0] == point.get_xdata()[0]]
        method, *options = record["variant"].split("+")
        assert label.get_text() == " + ".join([NAMES[method], *options])
    assert len(timed) == 10
    (memory,), (time,) = (with_gid(axes, f"vanilla's {of}") for of in ("memory", "time"))
    assert set(memory.get_xdata()) == {1.0}
    median = 1e3 * vanilla["timing"]["median_s"]
    assert set(time.get_ydata()) == {median}
    np.testing.assert_allclose(np.array(beside.get_ylim()) * median, axes.get_ylim())


def test_without_vanilla_points_are_at_bytes():
    figure = figures()["tradeoff of without vanilla"]
    (axes,) = figure.axes
    (point,) = with_gid(axes, "point bk")
    assert point.get_xdata() == pytest.approx([profile("bk")["peak"]["bytes"] / 1e6])
    assert "Peak memory (MB, 10⁶ bytes)" in said(figure)
    assert "no timed profile of vanilla" in said(figure)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 12))
def test_labels_of_scattered_points_lie_on_nothing(seed, n):
    generator = np.random.default_rng(seed)
    frame = np.array([0.0, 0.0, 420.0, 200.0])
    points = generator.uniform((20, 20), (400, 180), (n, 2))
    sizes = np.column_stack([generator.uniform(20, 90, n), np.full(n, 9.0)])
    centres = points + place(points, sizes, frame, np.empty((0, 4)))
    low, high = centres - sizes / 2, centres + sizes / 2
    assert (low >= frame[:2]).all()
    assert (high <= frame[2:]).all()
    for i in range(n):
        inside = (low[i] < points).all(axis=1) & (points < high[i]).all(axis=1)
        assert not inside.any()
        for j in range(i):
            assert (low[i] >= high[j]).any() or (high[i] <= low[j]).any()


def test_privacy_and_utility_are_the_records_rows():
    record = utility()
    base, *private, target = record["rows"]
    for axes, value in zip(figures()["utility"].axes, ("perplexity", "auc"), strict=True):
        (line,) = with_gid(axes, f"{value} private")
        np.testing.assert_allclose(
            line.get_xydata(), [(row["epsilon"], row[value]) for row in private]
        )
        (left,), (right,) = (with_gid(axes, f"{value} {name}") for name in ("base", "target"))
        assert left.get_ydata() == [base[value]]
        assert right.get_ydata() == [target[value]]
        assert left.get_xdata()[0] < private[0]["epsilon"] < private[-1]["epsilon"]
        assert private[-1]["epsilon"] < right.get_xdata()[0] < axes.get_xlim()[1]
        spans = [
            artist.get_segments()[0][:, 1].tolist()
            for artist in axes.collections
            if str(artist.get_gid()).startswith("interval")
        ]
        assert sorted(spans) == sorted(
            [row[f"{value}_low"], row[f"{value}_high"]] for row in record["rows"]
        )
        labels = [label.get_text() for label in axes.get_xticklabels()]
        assert labels == ["0.5", "1", "2", "4", "8", "base\n(0)", "∞\n(not private)"]
    _, leak = figures()["utility"].axes
    bounds, shades = with_gid(leak, "bound"), with_gid(leak, "ruled out")
    last = 0.0
    for row, bound, shade in zip(private, bounds, shades, strict=True):
        ((left, low), (right, high)) = bound.get_segments()[0]
        assert last < left < row["epsilon"] < right
        assert low == high == row["auc_bound_one_run"] == shade.get_paths()[0].vertices[:, 1].min()
        last = right
    assert set(with_gid(leak, "chance")[0].get_ydata()) == {0.5}
    assert "δ = 0.003; attack: loss" in said(figures()["utility"])


def test_null_values_are_told_and_wide_ranges_are_logarithmic():
    lacking = figures()["utility lacking"]
    assert "1 value null, left out" in said(lacking)
    (line,) = with_gid(lacking.axes[0], "perplexity private")
    assert line.get_xdata().tolist() == [0.3, 3.0]
    assert [axes.get_yscale() for axes in figures()["utility far"].axes] == ["log", "linear"]
    assert [axes.get_yscale() for axes in figures()["utility"].axes] == ["linear", "linear"]


def test_parts_and_methods_are_told_apart():
    assert tuple(PART_LOOKS) == DPSGD_PARTS
    assert tuple(METHOD_LOOKS) == tuple(NAMES) == METHODS
    assert len({marker for _, marker in (*METHOD_LOOKS.values(), OTHERS)}) == 9
    assert len({colour for colour, _ in (*METHOD_LOOKS.values(), OTHERS)}) == 9
    light = [np.dot(to_rgb(colour), (0.2126, 0.7152, 0.0722)) for colour, _ in PART_LOOKS.values()]
    assert (np.abs(np.diff(light)) > 0.12).all()  # neighbours in a stack, printed in grey
    hatched = [bool(hatch) for _, hatch in PART_LOOKS.values()]
    assert hatched == [False, True] * 4


def test_reasons_are_cut_between_words():
    assert shortened("no\nsecond line") == "no"
    cut = shortened(REFUSAL)
    assert len(cut) <= REASON
    assert REFUSAL.startswith(cut.removesuffix(" …"))
    assert REFUSAL[len(cut.removesuffix(" …"))] == " "


@pytest.mark.parametrize("draw", OF_PROFILES.values(), ids=list(OF_PROFILES))
def test_profiles_that_cannot_be_drawn_are_refused(draw):
    def refuses(profiles, message, workload="decoder-small"):
        with pytest.raises(ArtifactError, match=message):
            draw(profiles, workload)

    refuses([], "no profiles of decoder-small")
    refuses([refused("flash")], "all was refused: flash refused: Opacus")
    refuses(study(), "vanilla was profiled on decoder-small, not on other", "other")
    refuses([profile("bk"), profile("bk")], "bk has two profiles")
    refuses([{"variant": "bk"}], "not a profile of DP-SGD: lacks workload, method")
    longer = profile("bk", SMALL_WORKLOAD | {"length": 1024})
    refuses([profile("vanilla"), longer], r"differ in the workload's length \(512, 1024\)")
    broken = profile("bk")
    broken["breakdown"]["other"] += 1
    refuses([broken], re.escape("the parts of bk add up to"))
    unknown = profile("bk")
    unknown["breakdown"]["stash"] = unknown["breakdown"].pop("other")
    refuses([unknown], "bk lacks or adds parts: other, stash")


def test_timelines_that_do_not_add_up_are_refused():
    for change, message in (
        ({"live_bytes": []}, "bk has no timeline"),
        ({"by_part": {"parameters": [1] * 600}}, "don't add up"),
        ({"by_part": {"stash": [1] * 600}}, "unknown parts: stash"),
    ):
        record = copy.deepcopy(profile("bk"))
        record["timeline"] |= change
        with pytest.raises(ArtifactError, match=message):
            memory_timeline([record], "decoder-small")


def test_what_was_not_timed_has_no_tradeoff_and_a_record_needs_private_rows():
    with pytest.raises(ArtifactError, match="no variant of decoder-small was timed"):
        performance_tradeoff([predicted("bk")], "decoder-small")
    with pytest.raises(ArtifactError, match="no models' privacy"):
        privacy_utility({"rows": []}, "tiny")
    with pytest.raises(ArtifactError, match="no private model"):
        privacy_utility(utility(()), "tiny")


def test_commands_draw_each_figure_from_records(tmp_path):
    made_by = provenance("figures.saving", {})
    options = []
    for record in study():
        write_record(tmp_path / f"{record['variant']}.json", record, made_by)
        options += ["--profile", f"{record['variant']}.json"]
    write_record(tmp_path / "utility.json", utility(), made_by)
    lines = {
        name: [f"{name}.png", *options, "--workload", "decoder-small"] for name in FIGURES[:-1]
    }
    lines["privacy_utility"] = [
        *("privacy_utility.png", "--record", "utility.json", "--model", "tiny-opt")
    ]
    draw_by_commands(tmp_path, lines)
    for name in FIGURES:
        described = read_figure_provenance(tmp_path / f"{name}.png")
        assert len(described["inputs"]) == (1 if name == "privacy_utility" else len(study()))
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
