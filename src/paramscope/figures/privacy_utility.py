"""Perplexity and membership inference over the privacy budget ε of finetuning."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from paramscope.errors import ArtifactError
from paramscope.figures.pruned import NARROW, log_axis
from paramscope.figures.style import (
    DOUBLE,
    GREY,
    INK,
    PALE,
    SMALL,
    count,
    head,
    new_figure,
    styled,
)

CHANCE = 0.5
FEW = 0.05  # of the axis: private models nearer to each other share one tick
HALF_WIDTHS = (0.06, 0.25)  # of the bounds' columns, in log ε
PRIVATE: dict[str, Any] = {"color": "#0072B2", "marker": "o"}
BASE: dict[str, Any] = {"color": "#009E73", "marker": "s"}
TARGET: dict[str, Any] = {"color": "#D55E00", "marker": "D"}
BOUND: dict[str, Any] = {"color": INK, "linewidth": 1.1}
ACROSS: dict[str, Any] = {"linewidth": 0.7, "linestyle": (0, (1, 1.6)), "zorder": 1}

Row = Mapping[str, Any]


@styled
def privacy_utility(record: Mapping[str, Any], model: str) -> Figure:
    """Two panels over ε, on a logarithmic axis with 0 at its left and ∞ at its right end.

    Perplexity and the membership attack's AUC with their intervals: of the base, which was
    not trained on the members, of private models, and of the target, which was trained
    without privacy. A shaded column is what a model's (ε, δ) rules out of any attack's
    expected AUC.

    Args:
        record: delta, n_members, attack and rows, each with name, epsilon (0 for the base,
            null for the target), perplexity, auc, both with _low and _high, and
            auc_bound_one_run.
        model: what the title calls the model.

    Raises:
        ArtifactError: no rows, or none of a private model.
    """
    rows = record.get("rows") or []
    if not rows:
        raise ArtifactError("no models' privacy and utility to draw; rerun privacy_utility")
    private = sorted((row for row in rows if row["epsilon"]), key=lambda row: float(row["epsilon"]))
    if not private:
        raise ArtifactError("no private model among the rows; rerun privacy_utility with one")
    base = [row for row in rows if row["epsilon"] == 0]
    target = [row for row in rows if row["epsilon"] is None]
    left, right = _ends([float(row["epsilon"]) for row in private])
    groups = [
        (base, [left] * len(base), BASE),
        (private, [float(row["epsilon"]) for row in private], PRIVATE),
        (target, [right] * len(target), TARGET),
    ]
    figure = new_figure(DOUBLE, 3.3)
    head(
        figure,
        model,
        "privacy against utility",
        f"{count(len(private), 'private model')}, {count(record['n_members'], 'member')}; "
        f"δ = {record['delta']:.3g}; attack: {record['attack']}; bars: 95% intervals",
    )
    panels = figure.subplots(1, 2)
    missing = 0
    for axes, value in zip(panels, ("perplexity", "auc"), strict=True):
        for members, x, style in groups:
            missing += _points(axes, members, x, value, style)
        _epsilon_axis(axes, private, left if base else None, right if target else None)
    _perplexity(panels[0], rows)
    bounded = _bound(panels[1], private, rows)
    handles: list[Line2D | Patch] = [
        Line2D([], [], label=label, linestyle="none", markersize=4.5, **style)
        for label, members, style in (
            ("base, not trained on members", base, BASE),
            ("private", private, PRIVATE),
            ("target, not private", target, TARGET),
        )
        if members
    ]
    if bounded:
        handles.append(Patch(label="AUC that (ε, δ) rules out", facecolor=PALE))
    handles.append(Line2D([], [], label="chance", color=GREY, **ACROSS))
    title = f"{count(missing, 'value')} null, left out" if missing else None
    figure.legend(
        handles=handles,
        title=title,
        title_fontproperties={"size": SMALL},
        alignment="left",
        loc="outside lower center",
        ncols=5,
    )
    return figure


def _points(
    axes: Axes, rows: Sequence[Row], x: Sequence[float], value: str, style: Mapping[str, Any]
) -> int:
    """Each row's value with its interval, private ones joined; how many had none."""
    kept = [(at, row) for at, row in zip(x, rows, strict=True) if row[value] is not None]
    for at, row in kept:
        low, high = (row[f"{value}_{side}"] for side in ("low", "high"))
        if low is not None and high is not None:
            axes.vlines(at, low, high, color=style["color"], linewidth=1.0, zorder=3,
                        gid=f"interval {row['name']} {at:g}")  # fmt: skip
    if kept:
        axes.plot(
            [at for at, _ in kept],
            [row[value] for _, row in kept],
            gid=f"{value} {kept[0][1]['name']}",
            linestyle="-" if style is PRIVATE else "none",
            linewidth=1.0,
            markersize=4.5,
            zorder=4,
            **style,
        )
    if style is not PRIVATE:
        for _, row in kept:
            axes.axhline(row[value], color=style["color"], gid=f"level {row['name']}", **ACROSS)
    return len(rows) - len(kept)


def _perplexity(axes: Axes, rows: Sequence[Row]) -> None:
    """A logarithmic scale where the values span a wide range."""
    keys = ("perplexity", "perplexity_low", "perplexity_high")
    values = [row[key] for row in rows for key in keys if row[key] is not None]
    if values and max(values) / min(values) > NARROW:
        log_axis(axes, "y", values)
    axes.set_ylabel("Perplexity")
    axes.set_title("a  Utility: less is better")


def _bound(axes: Axes, private: Sequence[Row], rows: Sequence[Row]) -> bool:
    """What (ε, δ) rules out of each private model, a column from its bound up; whether any is."""
    known = [
        (float(row["epsilon"]), row["auc_bound_one_run"])
        for row in private
        if row["auc_bound_one_run"] is not None
    ]
    keys = ("auc", "auc_low", "auc_high")
    values = [row[key] for row in rows for key in keys if row[key] is not None]
    bounds = [bound for _, bound in known]
    low, high = min([CHANCE, *values]), max([CHANCE, *values, *bounds])
    room = 0.08 * (high - low) or 0.05
    axes.set_ylim(low - room, min(high + room, 1 + room / 2))
    top = axes.get_ylim()[1]
    factor = _half_width([epsilon for epsilon, _ in known])
    for epsilon, bound in known:
        ends = [epsilon / factor, epsilon * factor]
        axes.fill_between(ends, bound, top, color=PALE, linewidth=0, zorder=0.5, gid="ruled out")
        axes.hlines(bound, *ends, zorder=2, gid="bound", **BOUND)
    axes.axhline(CHANCE, color=GREY, gid="chance", **ACROSS)
    axes.set_ylabel("Membership inference AUC")
    axes.set_title("b  Leakage: nearer to 0.5 is better")
    return bool(known)


def _half_width(epsilons: Sequence[float]) -> float:
    """By what factor a column reaches to each side: not to the next model's, if there is room."""
    gaps = np.diff(np.log(np.unique(epsilons)))
    return float(np.exp(np.clip(0.38 * min(gaps, default=1.0), *HALF_WIDTHS)))


def _ends(epsilons: Sequence[float]) -> tuple[float, float]:
    """Where ε = 0 and ε = ∞ stand: as far out as sets them apart from the private ones."""
    apart = max(4.0, (max(epsilons) / min(epsilons)) ** 0.3)
    return min(epsilons) / apart, max(epsilons) * apart


def _epsilon_axis(
    axes: Axes, private: Sequence[Row], left: float | None, right: float | None
) -> None:
    """A logarithmic axis ticked at the models, broken towards 0 and ∞."""
    epsilons = [float(row["epsilon"]) for row in private]
    ends = _ends(epsilons)
    pad = (ends[1] / ends[0]) ** 0.09
    low = (min(epsilons) / 1.5 if left is None else ends[0]) / pad
    high = (max(epsilons) * 1.5 if right is None else ends[1]) * pad
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    ticks: list[float] = []
    for epsilon in epsilons:
        if not ticks or np.log(epsilon / ticks[-1]) >= FEW * np.log(high / low):
            ticks.append(epsilon)
    labels = [f"{epsilon:.3g}" for epsilon in ticks]
    for end, label, inner in (
        (left, "base\n(0)", min(epsilons)),
        (right, "∞\n(not private)", max(epsilons)),
    ):
        if end is not None:
            ticks.append(end)
            labels.append(label)
            axes.annotate(
                "//", (float(np.sqrt(end * inner)), 0), xycoords=("data", "axes fraction"),
                ha="center", va="center", fontsize=SMALL, gid="break",
            )  # fmt: skip
    axes.set_xticks(ticks, labels)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("ε spent")
