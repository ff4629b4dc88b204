"""The study's one-look answer: separation scores by rule, against random partitions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from paramscope.errors import ArtifactError
from paramscope.figures.classes import NAMES
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

MEASURES = {"gap": "loss gap", "auc": "loss attack's AUC"}
BEYOND, WITHIN = "#D55E00", "#0072B2"  # S beyond the null, and among it or with none
ALPHA = 0.05
WIDEST = 8.0  # S in a figure at most: 2⁸ times is as good as all
SPREAD = 0.16  # of a row's height, up and down, that the null's points are scattered over


@styled
def separation(records: Sequence[Mapping[str, Any]], model: str) -> Figure:
    """S by rule with its interval, a panel a measure of membership; the controls' draws below.

    A rule's grey band holds 95% of the S of partitions that are random in what the rule
    chooses. A score outside it is drawn in another colour and marker; one that is undefined is
    said in words.

    Args:
        records: statistics, one a rule: rule, n_seeds, separation (gap and auc: value, low,
            high, n, null_low, null_high, p_null) and, of a control, null (gap and auc:
            values, low, high).
        model: what the title calls the model.

    Raises:
        ArtifactError: no record of a rule other than a control, or two of one rule.
    """
    by_rule = {str(record["rule"]): record for record in records}
    rules = [rule for rule in by_rule if rule not in CONTROLS]
    if not rules or len(by_rule) < len(records):
        raise ArtifactError("separation: give the statistics of one rule or more, each once")
    nulls = {rule: by_rule[rule].get("null") or {} for rule in by_rule if rule in CONTROLS}
    nulls = {rule: null for rule, null in nulls.items() if null}
    rows = len(rules) + len(nulls)
    figure = new_figure(DOUBLE, 1.75 + 0.42 * rows)
    head(
        figure,
        model,
        "does noise in one class take more memory than in another?",
        seeds_told({rule: by_rule[rule]["n_seeds"] for rule in rules}),
    )
    grid = figure.subplots(1, len(MEASURES), sharey=True, sharex=True)
    ends = [_panel(grid[i], kind, rules, by_rule, nulls) for i, kind in enumerate(MEASURES)]
    for i, (axes, name) in enumerate(zip(grid, MEASURES.values(), strict=True)):
        axes.set_title(f"{letter(i)}  Membership by {name}")
        axes.set_xlabel(r"$S = \log_2(\eta_\mathrm{sens} / \eta_\mathrm{func})$ at +5% perplexity")
    low, high = min(e[0] for e in ends), max(e[1] for e in ends)
    reach = 0.06 * (high - low)
    grid[0].set_xlim(low - reach, high + reach)
    grid[0].set_ylim(rows - 0.4, -0.6)
    names = [*rules, *(f"{rule}\n(control)" for rule in nulls)]
    grid[0].set_yticks(range(rows), names)
    figure.legend(
        handles=_keys(nulls),
        title=f"S > 0: at equal loss of perplexity, noise in {NAMES['W_sens']} takes more of the "
        f"membership signal than noise in {NAMES['W_func']}",
        loc="outside lower center",
        ncols=4,
    )
    return figure


def _panel(
    axes: Axes,
    kind: str,
    rules: Sequence[str],
    by_rule: Mapping[str, Mapping[str, Any]],
    nulls: Mapping[str, Mapping[str, Any]],
) -> tuple[float, float]:
    """Draw one measure; the least and greatest S that should be seen."""
    seen = [-1.0, 1.0]
    axes.axvline(0, color=GREY, linewidth=0.8, zorder=1)
    for row, rule in enumerate(rules):
        score = by_rule[rule]["separation"].get(kind) or {}
        value, (low, high) = _value(score, "value"), _ends(score)
        band = _value(score, "null_low"), _value(score, "null_high")
        if np.isfinite(band).all():
            _band(axes, band, row, f"band {kind} {rule}")
            seen += band
        if not np.isfinite(value):
            axes.text(0.02, row, f"{NOTHING} undefined", fontsize=SMALL, color=GREY, va="center",
                      transform=axes.get_yaxis_transform())  # fmt: skip
            continue
        p = _value(score, "p_null")
        beyond = bool(p <= ALPHA and (value > band[1] or value < band[0]))
        colour, marker = (BEYOND, "D") if beyond else (WITHIN, "o")
        shown = np.clip([low, high], -WIDEST, WIDEST)
        if np.isfinite(shown).all():
            axes.plot(shown, [row, row], color=colour, linewidth=1.4, gid=f"interval {kind} {rule}")
            seen += shown.tolist()
        axes.plot(value, row, marker, color=colour, ms=4.5, mec="white", mew=0.5, zorder=3,
                  gid=f"score {kind} {rule}")  # fmt: skip
        seen.append(float(np.clip(value, -WIDEST, WIDEST)))
        told = f"{number(value)}" + ("" if np.isnan(p) else f", p = {p:.2g}")
        axes.text(float(np.clip(value, -WIDEST, WIDEST)), row - 0.18, told, fontsize=SMALL,
                  color=INK, ha="center", va="bottom", zorder=4)  # fmt: skip
    for row, (rule, null) in enumerate(nulls.items(), len(rules)):
        values = np.asarray(null[kind]["values"], float)
        places = row + SPREAD * np.sin(2.4 * np.arange(len(values)))  # apart, not at random
        axes.plot(
            values,
            places,
            "o",
            color=GREY,
            ms=2.4,
            mec="none",
            alpha=0.8,
            gid=f"null {kind} {rule}",
        )
        seen += np.clip(values, -WIDEST, WIDEST).tolist()
        if np.isfinite(_ends(null[kind])).all():
            _band(axes, _ends(null[kind]), row, f"band {kind} {rule}")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return min(seen), max(seen)


def _band(axes: Axes, band: tuple[float, float], row: int, gid: str) -> None:
    axes.fill_betweenx(
        [row - 0.45, row + 0.45], *band, color=PALE, alpha=0.7, zorder=0, linewidth=0, gid=gid
    )


def _keys(nulls: Mapping[str, Any]) -> list[Any]:
    keys: list[Any] = [
        Line2D([], [], color=WITHIN, marker="o", ms=4, label="score, 95% interval over noise seeds")
    ]
    if nulls:
        keys += [
            Line2D([], [], color=BEYOND, marker="D", ms=4, label="the same, beyond the null"),
            Line2D([], [], color=GREY, marker="o", ms=2.4, ls="", label="random partition"),
            Patch(facecolor=PALE, alpha=0.7, label="95% of them"),
        ]
    return keys


def _value(score: Mapping[str, Any], name: str) -> float:
    value = score.get(name)
    return float("nan") if value is None else float(value)


def _ends(score: Mapping[str, Any]) -> tuple[float, float]:
    return _value(score, "low"), _value(score, "high")
