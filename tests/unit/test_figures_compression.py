"""Figures of compression show what the tables hold, whatever methods and densities there are."""

from functools import cache

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg

from paramscope.errors import ArtifactError
from paramscope.figures.density_frontier import density_frontier
from paramscope.figures.layer_sparsity import block_shares, layer_sparsity
from paramscope.figures.memory_per_epoch import memory_per_epoch
from paramscope.figures.perplexity_trend import perplexity_trend
from paramscope.figures.pruned import (
    LOOKS,
    MOST_TICKS,
    OTHERS,
    change_told,
    looks,
    panels,
    perplexity_told,
    round_ticks,
)
from paramscope.figures.style import new_figure
from paramscope.units import unit_of
from tests.unit.figure_checks import check_imports, check_type, laid_out, said, with_gid

FIGURES = ("perplexity_trend", "density_frontier", "layer_sparsity", "memory_per_epoch")
METHODS = ("magnitude", "wanda", "sparsegpt", "gradual", "admm")
DENSITIES = (0.5, 0.3, 0.2, 0.1, 0.05)
BASELINE = 27.66
KINDS = {"q_proj": 16_384, "out_proj": 16_384, "fc1": 65_536, "fc2": 65_537}


def make_epochs(methods=METHODS, densities=DENSITIES, last=6, before=5e8):
    """Perplexity falls to a floor that both hang on, and rises at the end; memory by method."""
    made = {}
    for i, method in enumerate(methods):
        for density in densities:
            epoch = np.arange(last + 1)
            pruned = BASELINE * np.exp((5 - i) * 0.35 * (1 / density - 1) ** 0.7)
            floor = BASELINE * np.exp((5 - i) * 0.05 * (1 / density - 1) ** 0.5)
            perplexity = floor + (pruned - floor) * np.exp(-1.2 * epoch) + 0.1 * (epoch == last)
            start = before * (1 + 0.03 * i + 0.2 * density) + 1e5 * epoch
            peak = 1.3 * start + 0.04 * before * (1 + i) * (epoch > 0)
            made[method, density] = pd.DataFrame(
                {
                    "epoch": epoch,
                    "perplexity": perplexity,
                    "best": perplexity == perplexity.min(),
                    "memory_before_bytes": start.astype(np.int64),
                    "memory_peak_bytes": peak.astype(np.int64),
                    "memory_total_peak_bytes": peak.astype(np.int64) + 7_000_000,
                }
            )
    return made


def make_points(epochs):
    rows = [
        (method, density, frame["perplexity"].iloc[0], frame["perplexity"].min())
        for (method, density), frame in epochs.items()
    ]
    return pd.DataFrame(
        rows, columns=["method", "density", "perplexity_pruned", "perplexity_finetuned"]
    )


def make_layers(methods=METHODS, densities=DENSITIES, blocks=4, spread=0.0):
    generator = np.random.default_rng(0)
    made = {}
    for method in methods:
        for density in densities:
            rows = [
                (
                    block,
                    f"model.decoder.layers.{block}.{kind}.weight",
                    n,
                    round(n * density * (1 + spread * generator.normal())),
                    density,
                )
                for block in range(blocks)
                for kind, n in KINDS.items()
            ]
            made[method, density] = pd.DataFrame(
                rows, columns=["layer", "tensor", "n_weights", "n_kept", "density_asked"]
            )
    return made


def with_broken(epochs):
    for (method, density), frame in epochs.items():
        if method == "magnitude" and density < 0.2:
            frame.loc[0, "perplexity"] = np.inf
    return epochs


@cache
def figures():
    """Each figure of the whole study, of one run, of a large model, and of odd values."""
    epochs, one = make_epochs(), make_epochs(("sparsegpt",), (0.1,), last=1, before=9e9)
    odd = with_broken(make_epochs((*METHODS, "sparsegpt-2:4"), (0.9, *DENSITIES, 0.02), last=30))
    return {
        "trend": perplexity_trend(epochs, BASELINE, "tiny"),
        "trend of one": perplexity_trend(one, BASELINE, "tiny"),
        "trend of two": perplexity_trend(
            make_epochs(("gradual", "wanda"), (0.5, 0.1), last=3), BASELINE, "tiny"
        ),
        "trend of odd": perplexity_trend(odd, BASELINE, "tiny"),
        "frontier": density_frontier(make_points(epochs), BASELINE, "tiny"),
        "frontier of one": density_frontier(make_points(one), BASELINE, "tiny"),
        "frontier of odd": density_frontier(make_points(odd), BASELINE, "tiny"),
        "layers": layer_sparsity(make_layers(), "tiny"),
        "layers of one": layer_sparsity(make_layers(("wanda",), (0.5,), blocks=1), "tiny"),
        "layers of many": layer_sparsity(make_layers(blocks=40, spread=0.05), "tiny"),
        "memory": memory_per_epoch(epochs, "tiny"),
        "memory of one": memory_per_epoch(one, "tiny"),
        "memory of odd": memory_per_epoch(odd, "tiny"),
    }


def only(axes, gid):
    (artist,) = with_gid(axes, gid)
    return artist


def legend_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def inside(axes, x, y):
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    return (np.asarray(x) >= left).all() and (np.asarray(x) <= right).all() and (
        np.asarray(y) >= low
    ).all() and (np.asarray(y) <= high).all()  # fmt: skip


def test_a_trend_is_its_table_and_its_best_epoch_is_ringed():
    epochs = make_epochs()
    figure = figures()["trend"]
    assert len(figure.axes) == len(DENSITIES)
    for axes, density in zip(figure.axes, DENSITIES, strict=True):
        assert axes.get_legend().get_title().get_text()[3:] == (
            f"density {density:g}: {round(100 - 100 * density)}% zeros"
        )
        assert axes.get_yscale() == "log"
        assert set(only(axes, "baseline").get_ydata()) == {BASELINE}
        assert axes.get_ylim()[0] < BASELINE
        for place, method in enumerate(METHODS):
            rows = epochs[method, density]
            line = only(axes, f"trend {method}")
            np.testing.assert_array_equal(line.get_xydata(), rows[["epoch", "perplexity"]])
            assert inside(axes, *line.get_data())
            best = rows.loc[rows["perplexity"].idxmin()]
            ring = only(axes, f"best {method}")
            assert ring.get_xydata().tolist() == [[best["epoch"], best["perplexity"]]]
            change = 100 * (best["perplexity"] / rows["perplexity"].iloc[0] - 1)
            assert legend_of(axes)[place].endswith(f"(−{-change:.1f}%)")
    assert "dense: 27.66; 25 pruned models" in figure.get_suptitle()


def test_many_epochs_are_all_drawn_and_few_are_marked():
    for name, gid in (("trend of odd", "trend wanda"), ("memory of odd", "peak wanda")):
        line = only(figures()[name].axes[0], gid)
        assert len(line.get_xdata()) == 31
        assert line.get_markevery() == 3
    assert only(figures()["trend"].axes[0], "trend wanda").get_markevery() == 1


def test_a_trend_tells_what_is_not_finite_and_rows_may_come_in_any_order():
    epochs = make_epochs(("magnitude",), (0.1,))
    frame = epochs["magnitude", 0.1].copy()
    frame.loc[0, "perplexity"] = np.inf
    figure = perplexity_trend({("magnitude", 0.1): frame[::-1]}, BASELINE, "tiny")
    (axes,) = figure.axes
    assert only(axes, "trend magnitude").get_xdata().tolist() == [1, 2, 3, 4, 5, 6]
    assert "1 epoch not finite, left out" in said(figure)
    assert legend_of(axes)[0].endswith("(–)")
    assert "left out" not in said(figures()["trend"])


def test_the_frontier_is_hollow_after_pruning_and_filled_after_finetuning():
    points = make_points(make_epochs()).sort_values("density")
    whole, near = figures()["frontier"].axes
    for axes in (whole, near):
        assert axes.get_xscale() == axes.get_yscale() == "log"
        np.testing.assert_allclose(axes.get_xticks(), sorted(DENSITIES))
    for method in METHODS:
        rows = points[points["method"] == method]
        pruned, finetuned = (only(whole, f"{what} {method}") for what in ("pruned", "finetuned"))
        np.testing.assert_array_equal(pruned.get_xydata(), rows[["density", "perplexity_pruned"]])
        np.testing.assert_array_equal(
            finetuned.get_xydata(), rows[["density", "perplexity_finetuned"]]
        )
        assert pruned.get_markerfacecolor() == "white"
        assert finetuned.get_markerfacecolor() == finetuned.get_color() == pruned.get_color()
        ratio = only(near, f"finetuned {method}")
        np.testing.assert_allclose(ratio.get_ydata(), rows["perplexity_finetuned"] / BASELINE)
        assert not with_gid(near, f"pruned {method}")
        for axes, line in ((whole, pruned), (whole, finetuned), (near, ratio)):
            assert inside(axes, *line.get_data())
    assert set(only(whole, "baseline").get_ydata()) == {BASELINE}
    assert set(only(near, "baseline").get_ydata()) == {1.0}


def test_the_frontier_tells_what_is_missing():
    points = make_points(make_epochs(("wanda",), (0.5, 0.1)))
    points.loc[0, "perplexity_finetuned"] = np.nan
    points.loc[1, "perplexity_pruned"] = np.inf
    figure = density_frontier(points, BASELINE, "tiny")
    assert "2 values null or not finite" in said(figure)
    whole = figure.axes[0]
    assert only(whole, "pruned wanda").get_xdata().tolist() == [0.5]
    assert only(whole, "finetuned wanda").get_xdata().tolist() == [0.1]


def test_zeros_by_block_are_the_tables_and_stand_on_what_was_asked():
    layers = make_layers(blocks=6, spread=0.05)
    figure = layer_sparsity(layers, "tiny")
    top, bottom = figure.axes
    most = 0.0
    for (method, density), rows in layers.items():
        gid = f"{method} {density:g}"
        zeros, excess = only(top, f"zeros {gid}"), only(bottom, f"excess {gid}")
        ranges = only(top, f"range {gid}").get_segments()
        asked = only(top, f"asked {gid}").get_segments()
        assert zeros.get_xdata().round().tolist() == list(range(6))
        for block, of_block in rows.groupby("layer"):
            kept, weights = of_block["n_kept"].sum(), of_block["n_weights"].sum()
            assert zeros.get_ydata()[block] == pytest.approx(1 - kept / weights)
            assert excess.get_ydata()[block] == pytest.approx(kept - density * weights)
            most = max(most, abs(kept - density * weights))
            shares = 1 - of_block["n_kept"] / of_block["n_weights"]
            np.testing.assert_allclose(ranges[block][:, 1], [shares.min(), shares.max()])
            np.testing.assert_allclose(asked[block][:, 1], 1 - density)
            assert asked[block][0, 0] < zeros.get_xdata()[block] < asked[block][1, 0]
        assert inside(top, *zeros.get_data())
        assert inside(bottom, *excess.get_data())
    assert f"furthest from what was asked: {most:,.0f} weights a block" in said(figure)
    shared = {round(x, 6) for line in top.lines for x in line.get_xdata()}
    assert len(shared) == 6 * len(METHODS)  # each method has its own place in a block


def test_blocks_weigh_tensors_by_their_weights():
    rows = pd.DataFrame(
        {"layer": [3, 3], "tensor": ["a", "b"], "n_weights": [10, 30], "n_kept": [5, 3],
         "density_asked": [0.5, 0.1]}
    )  # fmt: skip
    (block,) = block_shares(rows).itertuples()
    assert (block.Index, block.kept, block.asked) == (3, 8, pytest.approx(8))
    assert block.zeros == pytest.approx(0.8)
    assert block.zeros_asked == pytest.approx(0.8)
    assert (block.low, block.high) == pytest.approx((0.5, 0.9))


def test_memory_is_the_tables_in_its_unit():
    for name, epochs, size, unit in (
        ("memory", make_epochs(), 1e6, "MB"),
        ("memory of one", make_epochs(("sparsegpt",), (0.1,), last=1, before=9e9), 1e9, "GB"),
    ):
        figure = figures()[name]
        densities = sorted({density for _, density in epochs}, reverse=True)
        for axes, density in zip(figure.axes, densities, strict=True):
            methods = [method for method in METHODS if (method, density) in epochs]
            for place, method in enumerate(methods):
                rows = epochs[method, density]
                for what in ("before", "peak"):
                    line = only(axes, f"{what} {method}")
                    np.testing.assert_array_equal(line.get_xdata(), rows["epoch"])
                    np.testing.assert_allclose(
                        line.get_ydata(), rows[f"memory_{what}_bytes"] / size
                    )
                    assert inside(axes, *line.get_data())
                total = rows["memory_total_peak_bytes"].iloc[-1] / size
                assert legend_of(axes)[place].endswith(f"{total:,.4g} {unit}")
        assert f"Memory ({unit})" in said(figure)
        highest = max(rows["memory_total_peak_bytes"].max() for rows in epochs.values())
        assert f"highest peak {highest / size:,.4g} {unit} (1 {unit} = 10" in said(figure)
    assert unit_of(2.5e9) == (1e9, "GB")
    assert unit_of(12.0) == (1e3, "kB")


def test_methods_differ_by_colour_and_by_mark_and_strangers_have_a_look():
    assert len({colour for colour, _ in (*LOOKS.values(), *OTHERS)}) == len(LOOKS) + len(OTHERS)
    assert len({marker for _, marker in (*LOOKS.values(), *OTHERS)}) == len(LOOKS) + len(OTHERS)
    found = looks(["zeta", "admm", "wanda", "alpha"])
    assert list(found) == ["wanda", "admm", "alpha", "zeta"]
    assert looks(["wanda"])["wanda"] == found["wanda"]  # whatever is drawn beside it
    assert len({(look.colour, look.marker) for look in found.values()}) == 4


@settings(deadline=None, max_examples=200)
@given(st.floats(1, 1e9), st.floats(1.05, 1e9))
def test_ticks_are_round_few_and_inside(low, factor):
    ticks = round_ticks(low, low * factor)
    assert 1 <= len(ticks) <= MOST_TICKS
    assert (ticks >= low).all()
    assert (ticks <= low * factor).all()
    assert (np.diff(ticks) > 0).all()
    digits = {f"{tick:.8e}".split("e")[0].rstrip("0.") for tick in ticks}
    assert all(len(digit.replace(".", "")) <= 4 for digit in digits)


def test_values_in_words():
    assert perplexity_told(27.657) == "27.66"
    assert perplexity_told(193.04) == "193.0"
    assert perplexity_told(12345.6) == "12,346"
    assert perplexity_told(np.inf) == "–"
    assert change_told(200.0, 50.0) == "−75.0%"
    assert change_told(50.0, 200.0) == "+300.0%"


def test_panels_are_in_rows_of_three():
    for n, shape in ((1, (1, 1)), (3, (1, 3)), (5, (2, 3)), (7, (3, 3))):
        figure = new_figure(7, 4)
        axes = panels(figure, n)
        assert len(axes) == len(figure.axes) == n
        grid = axes[0].get_subplotspec().get_gridspec()
        assert (grid.nrows, grid.ncols) == shape


def test_what_cannot_be_drawn_is_refused():
    epochs, layers = make_epochs(), make_layers()
    for draw in (
        lambda runs: perplexity_trend(runs, BASELINE, "tiny"),
        lambda runs: memory_per_epoch(runs, "tiny"),
        lambda runs: layer_sparsity(runs, "tiny"),
    ):
        with pytest.raises(ArtifactError, match="to draw"):
            draw({})
    with pytest.raises(ArtifactError, match=r"wanda at density 0\.2 have no rows"):
        memory_per_epoch(epochs | {("wanda", 0.2): epochs["wanda", 0.2][:0]}, "tiny")
    with pytest.raises(ArtifactError, match="layers of wanda"):
        layer_sparsity(layers | {("wanda", 0.2): layers["wanda", 0.2][:0]}, "tiny")
    unmarked = epochs["admm", 0.1].assign(best=False)
    with pytest.raises(ArtifactError, match=r"admm at density 0\.1 name no best one"):
        perplexity_trend(epochs | {("admm", 0.1): unmarked}, BASELINE, "tiny")
    points = make_points(epochs)
    with pytest.raises(ArtifactError, match="no perplexities"):
        density_frontier(points[:0], BASELINE, "tiny")
    with pytest.raises(ArtifactError, match=r"magnitude at density 0\.5 has two rows"):
        density_frontier(pd.concat([points, points[:1]]), BASELINE, "tiny")


@pytest.fixture(scope="module")
def drawn():
    return laid_out(figures())


@pytest.mark.parametrize("name", list(figures()))
def test_type_is_at_least_seven_points_uncut_and_apart(name, drawn):
    check_type(drawn[name], least=11)


@pytest.mark.parametrize("name", list(figures()))
def test_no_text_lies_in_a_neighbouring_panel(name, drawn):
    """Text above a panel ends where the next panel's begins."""
    figure = drawn[name]
    renderer = FigureCanvasAgg(figure).get_renderer()
    for axes in figure.axes:
        for other in figure.axes:
            legend = axes.get_legend()
            if legend is not None and other is not axes:
                box = legend.get_window_extent(renderer)
                assert not box.padded(-1).overlaps(other.get_window_extent(renderer))


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_hangs_on_no_other_figure(name):
    check_imports(name, FIGURES, {"errors", "figures", "names", "units"})
