"""Panels of the curvature's trace: outside the layers, by layer, and within a layer."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from paramscope.figures.families import COLOURS, FAMILIES
from paramscope.figures.style import GREY, SMALL, count, note
from paramscope.names import OUTSIDE

WEIGHT, BIAS = "weight", "bias"
TINY = float(np.finfo(float).tiny)  # what stands for 0 on a logarithmic axis, far below it
FULL: dict[str, Any] = {"linestyle": "-", "marker": "o", "markeredgewidth": 0}
HOLLOW: dict[str, Any] = {
    "linestyle": (0, (3, 1.5)),
    "linewidth": 0.9,
    "marker": "o",
    "markerfacecolor": "white",
    "markeredgewidth": 0.7,
}


def outside_layers(axes: Axes, outside: pd.DataFrame, name: str) -> None:
    """Embeddings, final norm and head: a row a module, its weight above its bias."""
    axes.set_title(f"{name}  Outside the layers")
    modules = list(dict.fromkeys(outside["kind"]))
    told = []
    for place, own in enumerate(modules):
        of_module = outside[outside["kind"] == own]
        for _, row in of_module.iterrows():
            weight = row["role"] == WEIGHT
            y = place + (0.0 if len(of_module) == 1 else -0.17 if weight else 0.17)
            if row["zero"] or row["mean"] <= 0:
                why = "0 but for rounding" if row["zero"] else "mean < 0"
                told.append(f"{own}.{row['role']}: {why}")
                continue
            look: dict[str, Any] = {"color": COLOURS[row["family"]] if weight else GREY}
            gid = f"{row['role']} {own}"
            axes.plot(
                [max(row["q05"], TINY), row["q95"]],
                [y, y],
                linewidth=3.5,
                alpha=0.25,
                solid_capstyle="butt",
                gid=f"quantiles {gid}",
                **look,
            )
            error = row["se_mean"]
            axes.plot([row["mean"] - error, row["mean"] + error], [y, y], linewidth=0.9, **look)
            axes.plot(
                row["mean"],
                y,
                "o",
                markersize=3.5,
                markeredgewidth=0.8,
                markerfacecolor=look["color"] if weight else "white",
                gid=f"mean {gid}",
                **look,
            )
    note(axes, "\n".join(told), y=0.02)
    axes.set_yticks(range(len(modules)), modules)
    axes.set_ylim(max(len(modules), 1) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def model_shares(axes: Axes, tensors: pd.DataFrame, name: str) -> None:
    """Each layer's share of the model's trace, by family, and that of what is outside."""
    traces = tensors.assign(trace=tensors["trace"].clip(lower=0))
    table = traces.pivot_table(
        index="layer", columns="family", values="trace", aggfunc="sum", fill_value=0.0
    )
    table = table[[family for family in FAMILIES if family in table]] / traces["trace"].sum()
    layers = [layer for layer in table.index if layer != OUTSIDE]
    apart = max(1.5, len(layers) / 6)
    places = [len(layers) - 1 + apart if n == OUTSIDE else layers.index(n) for n in table.index]
    width = [max(0.8, 0.3 * apart) if n == OUTSIDE else 0.8 for n in table.index]
    _stack(axes, places, table, COLOURS, width)
    ticks = _every(layers)
    if OUTSIDE in table.index:
        ticks.append((len(layers) - 1 + apart, "outside"))
    axes.set_xticks([place for place, _ in ticks], [text for _, text in ticks])
    negative = int((tensors["trace"] < 0).sum())
    note(axes, f"{count(negative, 'trace')} < 0, as 0" if negative else "", y=0.98)
    axes.set_xlabel("Layer")
    axes.set_ylabel("Share of the model's trace")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_title(f"{name}  Share of the trace by layer")


def layer_shares(axes: Axes, blocks: pd.DataFrame, colours: Mapping[str, Any], name: str) -> None:
    """Each kind's share of its layer's trace, weight and bias together."""
    table = blocks.assign(trace=blocks["trace"].clip(lower=0)).pivot_table(
        index="layer", columns="kind", values="trace", aggfunc="sum", fill_value=0.0
    )
    table = table[list(colours)].div(table.sum(axis=1), axis=0)
    _stack(axes, list(range(len(table))), table, colours, [0.86] * len(table))
    ticks = _every(list(table.index))
    axes.set_xticks([place for place, _ in ticks], [text for _, text in ticks])
    axes.set_ylim(0, 1)
    axes.set_xlabel("Layer")
    axes.set_ylabel("Share of the layer's trace")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_title(f"{name}  Within a layer, by kind")


def _stack(
    axes: Axes,
    places: list[float],
    table: pd.DataFrame,
    colours: Mapping[str, Any],
    width: list[float],
) -> None:
    """A column of `table` on the other, a bar a row."""
    base = np.zeros(len(table))
    for column in table.columns:
        axes.bar(
            places,
            table[column],
            width=width,
            bottom=base,
            color=colours[column],
            edgecolor="white",
            linewidth=0.4 if len(table) < 20 else 0.15,
            gid=f"share {column}",
        )
        base += table[column].to_numpy()
    axes.tick_params(labelsize=SMALL)


def _every(layers: list[int]) -> list[tuple[float, str]]:
    """Place and name of layers, of five at most."""
    stride = max(1, -(-len(layers) // 5))
    return [(float(place), str(layers[place])) for place in range(0, len(layers), stride)]
