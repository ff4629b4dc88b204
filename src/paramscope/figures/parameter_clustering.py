"""The classes of a partition in feature space, by layer and by kind of module."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from paramscope.figures.classes import (
    CLASSES,
    COLOURS,
    DASHES,
    NAMES,
    key,
    labelled,
    scatter,
    sizes,
)
from paramscope.figures.style import (
    DOUBLE,
    GREY,
    SMALL,
    count,
    head,
    letter,
    limits,
    new_figure,
    note,
    styled,
)


@dataclass(frozen=True)
class Feature:
    """How a column of the units table is shown."""

    name: str
    logarithmic: bool = False


FEATURES: Mapping[str, Feature] = {
    "curvature_mean": Feature("Mean diag G (nats / weight²)", logarithmic=True),
    "saliency": Feature("Saliency ½ Σ h w² (nats)", logarithmic=True),
    "weight_rms": Feature("Weight RMS"),
    "sparsity": Feature("Sparsity (share of tokens)"),
    "alignment": Feature("Alignment ‖Vᵀŵ‖ with eigenspace"),
    "alignment_percentile": Feature("Percentile of alignment"),
}
DECADES = 100  # times the least positive value: from there on a logarithmic axis has ticks to show
PLANE = ("curvature_mean", "alignment_percentile")  # raw alignments crowd near 0


@styled
def parameter_clustering(
    units: pd.DataFrame, partition: pd.DataFrame, rule: str, model: str
) -> Figure:
    """Six features' distributions by class, one plane of two of them, and shares of classes.

    Args:
        units: unit, tensor, layer, kind and the columns of FEATURES; NaN is left out, and said.
        partition: unit, label, draw; the first draw is shown.
        rule: what the partition is called.
        model: what the title calls the model.

    Raises:
        ArtifactError: the tables are of different units, or a class is unknown.
    """
    points = labelled(units, partition, rule)
    figure = new_figure(DOUBLE, 6.4)
    grid = figure.subplots(3, 3)
    draws = partition["draw"].nunique()
    head(
        figure,
        model,
        f"classes of rule {rule} in feature space",
        f"n = {count(len(points), 'unit')} of {count(points['tensor'].nunique(), 'tensor')}"
        f" in {count(points['layer'].nunique(), 'layer')}"
        + (f" · draw 1 of {draws}" if draws > 1 else ""),
    )
    for index, (name, feature) in enumerate(FEATURES.items()):
        axes = grid.flat[index]
        _distribution(axes, points, name, feature)
        axes.set_title(letter(index))
        if index % 3 == 0:
            axes.set_ylabel("Share of units ≤ x")
    _plane(grid[2, 0], points)
    grid[2, 0].set_title(letter(6))
    _by_layer(grid[2, 1], points)
    grid[2, 1].set_title(letter(7))
    _by_kind(grid[2, 2], points)
    grid[2, 2].set_title(letter(8))
    figure.legend(
        handles=[key(c, f"{NAMES[c]} (n = {n:,})") for c, n in sizes(points["label"]).items()],
        loc="outside lower center",
        ncols=3,
    )
    return figure


def _distribution(axes: Axes, points: pd.DataFrame, name: str, feature: Feature) -> None:
    """Empirical distribution functions, which need no bin and no bandwidth, a class a line."""
    for label in CLASSES:
        values = np.sort(points.loc[points["label"] == label, name].to_numpy())
        values = values[np.isfinite(values)]
        if not len(values):
            continue
        axes.step(
            np.concatenate([values[:1], values]),
            np.arange(len(values) + 1) / len(values),
            where="post",
            color=COLOURS[label],
            linestyle=DASHES[label],
            gid=label,
        )
    note(axes, _scale(axes, points[name], feature, "x"), y=0.06)
    axes.set_xlabel(feature.name)
    axes.set_ylim(-0.03, 1.03)


def _scale(axes: Axes, values: pd.Series, feature: Feature, side: str) -> str:
    """Set one axis' scale and limits; a remark on what that leaves out, if anything."""
    finite = values[np.isfinite(values)]
    positive = finite[finite > 0]
    logarithmic = feature.logarithmic and positive.max() > DECADES * positive.min()
    low, high, beyond = limits(np.log10(positive) if logarithmic else finite)
    if logarithmic:
        getattr(axes, f"set_{side}scale")("log")
    else:  # no offset text, which has no room
        axis = getattr(axes, f"{side}axis")
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    getattr(axes, f"set_{side}lim")(*((10**low, 10**high) if logarithmic else (low, high)))
    left_out = {
        "≤ 0": len(finite) - len(positive) if logarithmic else 0,
        "beyond": beyond,
        "unmeasured": len(values) - len(finite),
    }
    return ", ".join(f"{count(n, 'unit')} {why}" for why, n in left_out.items() if n)


def _plane(axes: Axes, points: pd.DataFrame) -> None:
    x, y = PLANE
    size = float(np.clip(120 / np.sqrt(max(len(points), 1)), 1.0, 10))
    scatter(axes, points, x, y, size)
    remarks = [
        _scale(axes, points[name], FEATURES[name], side) for name, side in ((x, "x"), (y, "y"))
    ]
    axes.set_title(", ".join(filter(None, remarks)), loc="right", fontsize=SMALL, color=GREY)
    axes.set_xlabel(FEATURES[x].name)
    axes.set_ylabel(FEATURES[y].name)


def _shares(points: pd.DataFrame, by: str) -> pd.DataFrame:
    """Share of each class, a column, in each group, a row in the groups' order."""
    counts = pd.crosstab(points[by], points["label"]).reindex(columns=list(CLASSES), fill_value=0)
    return counts.div(counts.sum(axis=1), axis=0)


def _by_layer(axes: Axes, points: pd.DataFrame) -> None:
    shares = _shares(points, "layer")
    base = np.zeros(len(shares))
    for label in CLASSES:
        axes.bar(
            shares.index,
            shares[label],
            width=0.86,
            bottom=base,
            color=COLOURS[label],
            edgecolor="white",
            linewidth=0.4,
            gid=label,
        )
        base += shares[label].to_numpy()
    n = points["layer"].value_counts()
    each = f"{n.min():,}" if n.min() == n.max() else f"{n.min():,} to {n.max():,}"
    axes.set_xlabel(f"Layer ({each} units each)")
    axes.set_ylabel("Share of units")
    axes.set_xticks(shares.index[:: int(np.ceil(len(shares) / 8))])
    axes.set_ylim(0, 1)


def _by_kind(axes: Axes, points: pd.DataFrame) -> None:
    order = list(dict.fromkeys(points["kind"]))  # as the model runs through them
    shares = _shares(points, "kind").loc[order[::-1]]
    n = points["kind"].value_counts()
    base = np.zeros(len(shares))
    for label in CLASSES:
        axes.barh(
            [f"{kind} ({n[kind]:,})" for kind in shares.index],
            shares[label],
            height=0.8,
            left=base,
            color=COLOURS[label],
            edgecolor="white",
            linewidth=0.4,
            gid=label,
        )
        base += shares[label].to_numpy()
    axes.set_xlabel("Share of units")
    axes.set_xlim(0, 1)
