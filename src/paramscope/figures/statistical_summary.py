"""Effect sizes of the differences between classes, and separation scores, by rule."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from paramscope.errors import ArtifactError
from paramscope.figures.classes import CLASSES, NAMES, checked
from paramscope.figures.style import (
    DOUBLE,
    GREY,
    INK,
    NOTHING,
    PALE,
    SMALL,
    head,
    letter,
    new_figure,
    number,
    seeds_told,
    styled,
)
from paramscope.names import CONTROLS

RESPONSES = {
    "delta_log_ppl": "Δ log\nperplexity",
    "delta_auc": "Δ AUC\n(loss)",
    "delta_auc_min_k": "Δ AUC\n(Min-K%)",
    "delta_loss_gap": "Δ loss\ngap",
}
SCORES = {"gap": ("loss gap", "o", "#332288"), "auc": ("AUC (loss)", "D", "#AA4499")}
Cell = tuple[str, str, str, str]  # response, first, second, rule
COLOURS = "PuOr"  # diverging, told apart with any colour vision
SIGNIFICANT = 0.05
SCORE_HEIGHT = 0.8  # inches a rule
MEANING = f"""S > 0: at equal loss of perplexity, noise in
{NAMES["W_sens"]} takes more of the membership
signal than noise in {NAMES["W_func"]} does.
{NOTHING}: undefined, as the record's notes say."""


@styled
def statistical_summary(records: Sequence[Mapping[str, Any]], model: str) -> Figure:
    """A heat map of the comparisons of classes by rule, and beside it the separation scores.

    A cell's colour and number are the effect size of first − second class; below is the
    Holm-corrected p, bold where it is under .05. A null is a dash in a hatched cell.

    Args:
        records: one a rule: rule, n_seeds, comparisons (response, first, second,
            effect_size, p_holm, n) and separation (gap and auc: value, low, high, n).
        model: what the title calls the model.

    Raises:
        ArtifactError: no record, or two of one rule.
    """
    by_rule = {str(r["rule"]): r for r in sorted(records, key=lambda r: r["rule"] in CONTROLS)}
    if len(by_rule) != len(records) or not records:
        raise ArtifactError("statistics to draw: give one record or more, each of another rule")
    cells = {
        (c["response"], c["first"], c["second"], rule): c
        for rule, record in by_rule.items()
        for c in record["comparisons"]
    }
    checked({label for _, *pair, _ in cells for label in pair}, "the statistics")
    pairs = sorted({(first, second) for _, first, second, _ in cells}, key=_place)
    responses = [name for name in RESPONSES if any(cell[0] == name for cell in cells)]
    height = max(0.34 * len(pairs) * len(responses), SCORE_HEIGHT * len(by_rule), 1.5)
    figure = new_figure(DOUBLE, 1.6 + height)
    head(
        figure,
        model,
        "differences between classes, by rule",
        seeds_told({rule: r["n_seeds"] for rule, r in by_rule.items()}),
    )
    halves = figure.add_gridspec(1, 2, width_ratios=[min(1.5, 0.9 + 0.15 * len(by_rule)), 1])
    grid = halves[0].subgridspec(max(len(responses), 1), 1)
    heat = [figure.add_subplot(grid[row]) for row in range(max(len(responses), 1))]
    norm = Normalize(*_range(cells))
    for axes, response in zip(heat, responses, strict=False):
        _block(axes, response, pairs, list(by_rule), cells, norm)
    heat[0].set_title(f"{letter(0)}  Effect size and Holm-corrected p")
    heat[-1].tick_params(labelbottom=True)
    if responses:
        scale = ScalarMappable(norm, COLOURS)
        bar = figure.colorbar(scale, ax=heat, location="bottom", fraction=0.03, aspect=40)
        bar.set_label(
            r"effect size $d_z$, first − second class"
            "\n"
            f"(colours end at ±{norm.vmax:g}; bold: p < {SIGNIFICANT:g})"
        )
        bar.outline.set_visible(False)
    else:
        _blank(heat[0], "the statistics hold no comparison")
    figure.align_ylabels(heat)
    used = min(max(SCORE_HEIGHT * len(by_rule), 0.55 * height), 1.2 * len(by_rule))
    beside = halves[1].subgridspec(2, 1, height_ratios=[used, max(height - used, 0.6)])
    scores = figure.add_subplot(beside[0])
    scores.set_title(f"{letter(1)}  Separation score, 95% interval")
    _scores(scores, by_rule)
    _blank(figure.add_subplot(beside[1]), MEANING)
    return figure


def _place(pair: tuple[str, str]) -> tuple[int, ...]:
    return tuple(CLASSES.index(label) for label in pair)


def _range(cells: Mapping[Cell, Mapping[str, Any]]) -> tuple[float, float]:
    """Colour limits: the smallest round number that holds nine in ten effect sizes."""
    sizes = [abs(c["effect_size"]) for c in cells.values() if c["effect_size"] is not None]
    most = float(np.quantile(sizes, 0.9)) if sizes else 1.0
    end = next((end for end in (0.5, 1, 2, 5, 10, 20) if most <= end), 50)
    return -end, end


def _block(
    axes: Axes,
    response: str,
    pairs: Sequence[tuple[str, str]],
    rules: Sequence[str],
    cells: Mapping[Cell, Mapping[str, Any]],
    norm: Normalize,
) -> None:
    """One response: a row a pair of classes, a column a rule."""
    found = [[cells.get((response, *pair, rule), {}) for rule in rules] for pair in pairs]
    sizes = np.array([[_value(cell, "effect_size") for cell in row] for row in found])
    axes.pcolormesh(
        np.ma.masked_invalid(sizes),
        cmap=COLOURS,
        norm=norm,
        edgecolors="white",
        linewidth=1,
        gid=response,
    )
    for row, column in np.ndindex(sizes.shape):
        middle = (column + 0.5, row + 0.5)
        p = _value(found[row][column], "p_holm")
        if np.isnan(sizes[row, column]):
            axes.add_patch(
                Rectangle(
                    (column + 0.02, row + 0.04), 0.96, 0.92, fc="white", ec=PALE, lw=0, hatch="////"
                )
            )
            told = NOTHING if np.isnan(p) else f"{NOTHING}\n{_p(p)}"
            axes.text(*middle, told, ha="center", va="center", fontsize=SMALL)
            continue
        axes.text(
            *middle,
            f"{number(float(sizes[row, column]))}\n{_p(p)}",
            ha="center",
            va="center",
            fontsize=SMALL,
            fontweight="bold" if p < SIGNIFICANT else "normal",
            color="white" if _dark(norm(sizes[row, column])) else INK,
        )
    axes.invert_yaxis()
    axes.set_xticks(np.arange(len(rules)) + 0.5, [_name(rule) for rule in rules])
    axes.set_yticks(
        np.arange(len(pairs)) + 0.5,
        [f"{NAMES[first]} − {NAMES[second]}" for first, second in pairs],
    )
    axes.tick_params(length=0, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.set_ylabel(RESPONSES[response])


def _dark(place: float) -> bool:
    """Whether a colour, at `place` in [0, 1] of the map, asks for white type on it."""
    return bool(np.dot(colormaps[COLOURS](place)[:3], (0.2126, 0.7152, 0.0722)) < 0.45)


def _value(cell: Mapping[str, Any], name: str) -> float:
    value = cell.get(name)
    return float("nan") if value is None else float(value)


def _p(p: float) -> str:
    if np.isnan(p):
        return f"p {NOTHING}"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _name(rule: str) -> str:
    return f"{rule}\n(control)" if rule in CONTROLS else rule.replace("_", "_\n", 1)


def _scores(axes: Axes, by_rule: Mapping[str, Mapping[str, Any]]) -> None:
    """S by rule: point, interval, and both in words, since a wide interval may be cut off."""
    values = [0.0, 1.0, -1.0]
    for place, (rule, record) in enumerate(by_rule.items()):
        if place:
            axes.axhline(place, color=PALE, linewidth=0.6)
        heading = f"{rule} (control)" if rule in CONTROLS else rule
        _words(axes, place + 0.2, heading, INK, fontweight="bold")
        for row, (score, (name, marker, colour)) in enumerate(SCORES.items()):
            y = place + (0.52, 0.87)[row]
            found = record["separation"].get(score) or {}
            value, low, high = (_value(found, key) for key in ("value", "low", "high"))
            told = number(value)
            if np.isfinite([low, high]).all():
                told += f" [{number(low)}, {number(high)}]"
                axes.plot([low, high], [y, y], color=colour, gid=f"interval {rule} {score}")
            if np.isfinite(value):
                values.append(value)
                axes.plot(value, y, marker, color=colour, ms=4, gid=f"score {rule} {score}")
            _words(axes, y - 0.07, f"{name} {told}", colour)
    reach = 0.4 * (max(values) - min(values))
    axes.axvline(0, color=GREY, linewidth=0.8, zorder=0)
    axes.set_xlim(min(values) - reach, max(values) + reach)
    axes.set_ylim(len(by_rule), 0)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(r"$S = \log_2(\eta_\mathrm{sens} / \eta_\mathrm{func})$ at +5% perplexity")


def _words(axes: Axes, y: float, text: str, colour: str, **style: Any) -> None:
    axes.text(
        0.0,
        y,
        text,
        transform=axes.get_yaxis_transform(),
        fontsize=SMALL,
        color=colour,
        va="bottom",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4},
        zorder=1,
        **style,
    )


def _blank(axes: Axes, text: str) -> None:
    axes.set_axis_off()
    axes.text(0, 1, text, va="top", fontsize=SMALL, color=GREY, transform=axes.transAxes)
