"""The classes of a partition: their order, names, colours and marks, and who is in them."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from paramscope.errors import ArtifactError
from paramscope.names import LABELS

CLASSES = LABELS
# Okabe and Ito's palette (jfly.uni-koeln.de/color): told apart with any colour vision, and
# by marker and dash in print without colour.
COLOURS = {"W_func": "#0072B2", "W_sens": "#D55E00", "W_both": "#009E73"}
MARKERS = {"W_func": "o", "W_sens": "^", "W_both": "s"}
AREAS = {"W_func": 1.0, "W_sens": 1.1, "W_both": 0.7}  # marker areas that look the same
DASHES: dict[str, Any] = {"W_func": "-", "W_sens": (0, (5, 1.5)), "W_both": (0, (1.2, 1.2))}
TURNS = 12
NAMES = {label: rf"$W_\mathrm{{{label.removeprefix('W_')}}}$" for label in CLASSES}


def checked(labels: Iterable[str], where: str) -> None:
    """Raise ArtifactError for a class that no figure knows."""
    unknown = sorted(set(labels) - set(CLASSES))
    if unknown:
        raise ArtifactError(
            f"{where}: unknown class(es) {', '.join(unknown)}; known are {', '.join(CLASSES)}"
        )


def labelled(frame: pd.DataFrame, partition: pd.DataFrame, rule: str) -> pd.DataFrame:
    """`frame`, a row a unit, with the `label` that the partition's first draw gives each.

    Raises:
        ArtifactError: frame and partition are of different units, or a class is unknown.
    """
    first = partition[partition["draw"] == partition["draw"].min()]
    checked(first["label"], f"rule {rule}")
    if len(frame) != len(first) or set(frame["unit"]) != set(first["unit"]):
        raise ArtifactError(
            f"the partition of rule {rule} ({len(first)} units) and the table it is to colour"
            f" ({len(frame)}) are of different units; rerun the rules that make them"
        )
    return frame.merge(first[["unit", "label"]], on="unit", validate="one_to_one")


def sizes(label: pd.Series) -> dict[str, int]:
    """Units in each class, classes without any included."""
    counts = label.value_counts()
    return {name: int(counts.get(name, 0)) for name in CLASSES}


def key(label: str, text: str, *, line: bool = True) -> Line2D:
    """A legend's handle for a class."""
    return Line2D(
        [],
        [],
        color=COLOURS[label],
        marker=MARKERS[label],
        markersize=4,
        linestyle=DASHES[label] if line else "none",
        label=text,
    )


def scatter(axes: Axes, points: pd.DataFrame, x: str, y: str, size: float) -> None:
    """Units as dots of about `size` pt², rasterised, in the colour and mark of their `label`.

    Classes take turns in a fixed random order, so that none lies on top everywhere.
    """
    order = np.random.default_rng(0).permutation(len(points))
    for batch in np.array_split(order, TURNS):
        turn = points.iloc[batch]
        for label in CLASSES:
            inside = turn[turn["label"] == label]
            axes.scatter(
                inside[x],
                inside[y],
                s=size * AREAS[label],
                color=COLOURS[label],
                marker=MARKERS[label],
                linewidths=0,
                alpha=0.75,
                rasterized=True,
                gid=label,
            )
