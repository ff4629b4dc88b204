"""The contenders of the curvature's benchmark: how each is drawn, its numbers, its memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from paramscope.figures.style import GREY, INK, NOTHING, SMALL

OURS, DRAWS = "ggn", 4  # the estimator and budget whose error the others are set to reach
RANK = 0.98
MATRICES = {"ggn": "G", "hessian": "H"}
BY_ENTRY = "entry"  # the unit of those that are exact, an entry at a time
# Okabe and Ito's palette and Paul Tol's indigo: blues for G, warm colours for H
COLOURS: Mapping[str, tuple[str, ...]] = {
    "ggn": ("#0072B2", "#56B4E9", "#332288", "#009E73"),
    "hessian": ("#D55E00", "#E69F00", "#CC79A7", "#8C510A"),
    BY_ENTRY: ("#444444", "#777777", "#A0A0A0", "#BBBBBB"),
}
MARKERS = "o^DsPvX<>hd8"
DASHES: Mapping[str, Any] = {"ggn": "-", "hessian": (0, (5, 1.5))}


@dataclass(frozen=True)
class Look:
    """How a contender is drawn."""

    colour: str
    marker: str
    dash: Any

    def line(self) -> dict[str, Any]:
        """Keywords of a line with markers."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "linestyle": self.dash,
            "markeredgewidth": 0,
            "markersize": 4,
        }


def look_of(facts: pd.DataFrame) -> dict[str, Look]:
    """A colour by diagonal and order, a marker by order; greys for those by entry."""
    used = dict.fromkeys(COLOURS, 0)
    looks = {}
    for place, (name, row) in enumerate(facts.iterrows()):
        kind = BY_ENTRY if row["unit"] == BY_ENTRY else row["of"]
        colour = COLOURS[kind][used[kind] % len(COLOURS[kind])]
        used[kind] += 1
        looks[str(name)] = Look(colour, MARKERS[place % len(MARKERS)], DASHES[row["of"]])
    return looks


def contenders(axes: Axes, facts: pd.DataFrame, looks: Mapping[str, Look], name: str) -> None:
    """A row a contender: its line, name, diagonal, and costs in gradients."""
    columns = {
        0.62: "gradients\na unit",
        0.80: f"gradients\nto ρ = {RANK:g}",
        1.0: f"gradients to\n{OURS}, {DRAWS} draws",
    }
    axes.set_title(f"{name}  Contenders")
    for x, text in columns.items():
        axes.text(x, -0.55, text, ha="right", va="bottom", fontsize=SMALL, color=GREY)
    for y, (contender, row) in enumerate(facts.iterrows()):
        look = looks[str(contender)]
        if row["unit"] == BY_ENTRY:
            axes.plot([0.03], [y], **look.line())
        else:
            axes.plot([0.0, 0.03, 0.06], [y] * 3, **look.line(), markevery=[1])
        cells = {
            0.62: f"{_cost(row['gradients_per_unit'])} / {row['unit']}",
            0.80: _cost(row["gradients_98"], row["extrapolated_98"]),
            1.0: _cost(row["gradients_to_ggn4"], row["extrapolated_ggn4"]),
        }
        label = f"{str(contender).replace('_', ' ')} ({MATRICES[row['of']]})"
        weight = "bold" if contender == OURS else "normal"
        axes.text(0.085, y, label, va="center", fontsize=SMALL, fontweight=weight)
        for x, text in cells.items():
            axes.text(x, y, text, ha="right", va="center", fontsize=SMALL, fontweight=weight)
    axes.set_xlim(0, 1)
    axes.set_ylim(len(facts) - 0.5, -0.5)
    axes.set_axis_off()


def _cost(value: float | None, extrapolated: bool = False) -> str:
    """Three digits, or `≈` and two for what is extrapolated; a dash for none."""
    if value is None or not np.isfinite(value):
        return NOTHING
    value = float(f"{value:.{2 if extrapolated else 3}g}")
    decimals = max(0, (1 if extrapolated else 2) - int(np.floor(np.log10(max(value, 1)))))
    return f"{'≈ ' if extrapolated else ''}{value:,.{decimals}f}"


def memory(axes: Axes, facts: pd.DataFrame, looks: Mapping[str, Look], name: str) -> None:
    """Peak memory in a gradient's: bars as tracked, a stroke for the process' RSS."""
    places = np.arange(len(facts))
    axes.barh(
        places,
        facts["peak_ratio_tracked"],
        height=0.66,
        color=[looks[str(contender)].colour for contender in facts.index],
        gid="tracked",
    )
    axes.plot(facts["peak_ratio_rss"], places, "|", color=INK, markersize=12, gid="rss")
    axes.axvline(1, color=GREY, linewidth=0.8, linestyle=":", zorder=3)
    end = np.nanmax(facts[["peak_ratio_tracked", "peak_ratio_rss"]].to_numpy())
    for y, (tracked, rss) in enumerate(facts[["peak_ratio_tracked", "peak_ratio_rss"]].to_numpy()):
        axes.text(
            np.nanmax([tracked, rss]) + 0.03 * end,
            y,
            f"{_cost(tracked)} | {_cost(rss)}",
            va="center",
            fontsize=SMALL,
        )
    axes.set_xlim(0, 1.4 * end)
    axes.set_ylim(len(facts) - 0.5, -0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("Peak memory (gradient's peak = 1)")
    axes.set_title(f"{name}  Bar: tracked; stroke: RSS")
