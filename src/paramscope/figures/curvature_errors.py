"""Panels of the curvature's error: over draws, in rank, by layer and family."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from paramscope.figures.families import COLOURS, EMBEDDING, FAMILIES, HEAD, MARKERS
from paramscope.figures.style import GREY, PALE, count, note
from paramscope.names import OUTSIDE

GROUPS = (
    "draws",
    "group",
    "spearman_ggn",
    "spearman_hessian",
    "relative_error_ggn",
    "median_relative_error_ggn",
)
# Paul Tol's muted palette, whose colours here are none of a family's
GGN, HESSIAN, MEDIAN = ("#332288", "o"), ("#AA4499", "D"), ("#999933", "s")
ROOM = 0.32  # of a panel's height, for its legend


def over_draws(axes: Axes, groups: pd.DataFrame, name: str) -> None:
    """Relative error over draws: dots are groups of draws, lines their means."""
    mean = groups.groupby("draws")["relative_error_ggn"].mean()
    _series(axes, groups, "relative_error_ggn", GGN, "‖Ĝ − G‖ / ‖G‖")
    _series(axes, groups, "median_relative_error_ggn", MEDIAN, "median of |Ĝ / G − 1|")
    axes.plot(
        mean.index,
        mean.iloc[0] * np.sqrt(mean.index[0] / mean.index.to_numpy()),
        color=GREY,
        linestyle="--",
        linewidth=0.8,
        label="1 / √draws",
        zorder=1,
        gid="guide",
    )
    axes.set_title(f"{name}  Error against draws")
    axes.set_ylabel("Relative error")
    shown = groups[["relative_error_ggn", "median_relative_error_ggn"]].to_numpy()
    _scales(axes, groups, shown[shown > 0], PercentFormatter(1, decimals=None))


def ranks(axes: Axes, groups: pd.DataFrame, entries: pd.DataFrame, name: str) -> None:
    """1 − Spearman over draws, and where exact G itself is to H."""
    away = 1 - groups[["spearman_ggn", "spearman_hessian"]]
    for column, look, text in (
        ("spearman_ggn", GGN, "estimate, with G"),
        ("spearman_hessian", HESSIAN, "estimate, with H"),
    ):
        shown = groups.assign(**{column: away[column]})[away[column] > 0]
        _series(axes, shown, column, look, text)
    order = entries[["exact_ggn", "exact_hessian"]].rank()
    gap = 1 - order["exact_ggn"].corr(order["exact_hessian"])
    if gap > 0:
        axes.axhline(
            gap,
            color=HESSIAN[0],
            linestyle=":",
            linewidth=1,
            label="exact G, with H",
            zorder=0,
            gid="exact",
        )
    perfect = int((away <= 0).sum().sum())
    note(axes, f"{count(perfect, 'group')} at 1, left out" if perfect else "", y=0.04)
    axes.set_title(f"{name}  Rank against draws")
    axes.set_ylabel("1 − Spearman")
    values = np.array([*away.to_numpy().ravel(), gap])
    _scales(axes, groups, values[values > 0], FuncFormatter(lambda value, _: f"{value:g}"))


def _series(axes: Axes, groups: pd.DataFrame, name: str, look: tuple[str, str], text: str) -> None:
    colour, marker = look
    dots: dict[str, Any] = {"marker": marker, "color": colour, "markeredgewidth": 0}
    axes.plot(
        groups["draws"],
        groups[name],
        linestyle="",
        markersize=3,
        alpha=0.3,
        gid=f"group {name}",
        **dots,
    )
    mean = groups.groupby("draws")[name].mean()
    axes.plot(mean.index, mean, markersize=4, label=text, gid=f"mean {name}", **dots)


def _scales(axes: Axes, groups: pd.DataFrame, values: np.ndarray, form: Any) -> None:
    """Logarithmic axes with few, plain labels, and room for the legend above all `values`."""
    axes.set_xscale("log", base=2)
    draws = sorted(set(groups["draws"]))
    axes.set_xticks(draws, [f"{n:,}" for n in draws])
    axes.set_yscale("log")
    low, high = (values.min(), values.max()) if len(values) else (0.1, 1.0)
    span = max(np.log10(high / low), 0.3)
    axes.set_ylim(low / 10 ** (0.08 * span), high * 10 ** (span * (0.06 + ROOM / (1 - ROOM))))
    subs = (1.0, 2.0, 5.0) if span < 2.5 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axes.yaxis.set_major_formatter(form)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("Draws")
    axes.legend(loc="upper right", borderpad=0, borderaxespad=0.2, labelspacing=0.3)


def by_layer(axes: Axes, entries: pd.DataFrame, name: str) -> None:
    """Median and quartiles of the relative error, layers first, then what is in none.

    Entries whose G is 0 but for rounding have no relative error.
    """
    entries = entries.dropna(subset="error")
    groups = entries.groupby(["layer", "family"])["error"]
    layers = sorted(set(entries["layer"]) - {OUTSIDE})
    shown = [f for f in FAMILIES if f in set(entries["family"])]
    inner = [f for f in shown if f not in (EMBEDDING, HEAD)]
    outer = [f for f in shown if (OUTSIDE, f) in groups.groups]
    step = 0.66 / max(len(inner), 1)
    apart = max(1.0, len(layers) / 8)  # of what is outside the layers, seen at any depth
    start = len(layers) - 0.5 + apart
    for (where, kind), errors in groups:
        if where == OUTSIDE:
            x = start + apart * outer.index(str(kind))
        else:
            x = layers.index(where) + step * (inner.index(str(kind)) - (len(inner) - 1) / 2)
        quartiles = errors.quantile([0.25, 0.75])
        look: dict[str, Any] = {"color": COLOURS[str(kind)], "clip_on": False}
        gid = f"{kind} {where}"
        axes.plot([x, x], quartiles, linewidth=0.8, alpha=0.6, gid=f"quartiles {gid}", **look)
        axes.plot(
            x,
            errors.median(),
            marker=MARKERS[str(kind)],
            markersize=3.5 if len(layers) < 14 else 2.4,
            markeredgewidth=0,
            gid=f"median {gid}",
            **look,
        )
    stride = max(1, -(-len(layers) // 6))
    ticks = [(float(place), str(layers[place])) for place in range(0, len(layers), stride)]
    if outer:
        if layers:
            axes.axvline(len(layers) - 0.5 + apart / 4, color=PALE, linewidth=0.8, zorder=0)
        ticks.append((start + apart * (len(outer) - 1) / 2, "outside"))
    axes.set_xticks([place for place, _ in ticks], [text for _, text in ticks])
    n = groups.size()
    each = f"{n.min()}" if n.min() == n.max() else f"{n.min()} to {n.max()}"
    axes.set_xlabel(f"Layer ({each} entries each)")
    axes.set_ylabel("Relative error |Ĝ / G − 1|")
    axes.set_ylim(0, None)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_title(f"{name}  By layer: median, quartiles")
