"""The units in the UMAP plane: by cluster, and by class of a partition."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from paramscope.figures.classes import NAMES, key, labelled, scatter, sizes
from paramscope.figures.style import (
    DOUBLE,
    NOTHING,
    SMALL,
    count,
    head,
    letter,
    limits,
    new_figure,
    note,
    number,
    styled,
)

# Tol's muted palette (personal.sron.nl/~pault), so that no cluster looks like a class
CLUSTERS = (
    *("#332288", "#CC6677", "#44AA99", "#DDCC77", "#882255"),
    *("#88CCEE", "#117733", "#AA4499", "#999933"),
)
NAMED = 12  # clusters that get their number written on them, the largest


@styled
def umap_visualization(
    units: pd.DataFrame,
    embedding: pd.DataFrame,
    quality: Mapping[str, Any],
    partition: pd.DataFrame,
    rule: str,
    model: str,
) -> Figure:
    """Two panels over one plane: clusters, and classes of `partition`.

    Args:
        units: unit, tensor, layer.
        embedding: unit, umap_x, umap_y, cluster (-1 for noise).
        quality: the embedding's record: method, n_clusters, noise_share, silhouette,
            silhouette_features, trustworthiness, neighbourhood_preservation; null allowed.
        partition: unit, label, draw; the first draw is shown.
        rule: what the partition is called.
        model: what the title calls the model.

    Raises:
        ArtifactError: the tables are of different units.
    """
    points = labelled(embedding, partition, rule)
    of_units = units[units["unit"].isin(points["unit"])]
    figure = new_figure(DOUBLE, 4.5)
    clusters, classes = figure.subplots(1, 2)
    head(
        figure,
        model,
        "units in the UMAP plane",
        f"n = {count(len(points), 'unit')} of {count(of_units['tensor'].nunique(), 'tensor')}"
        f" in {count(of_units['layer'].nunique(), 'layer')}"
        f" · trustworthiness {number(quality['trustworthiness'], 3)}"
        f" · neighbourhood preservation {number(quality['neighbourhood_preservation'])}",
    )
    size = float(np.clip(250 / np.sqrt(max(len(points), 1)), 1.5, 14))  # pt²: smaller where crowded
    _clusters(clusters, points, quality, size)
    _classes(figure, classes, points, partition["draw"].nunique(), rule, size)
    left, right, beyond_x = limits(points["umap_x"])
    bottom, top, beyond_y = limits(points["umap_y"])
    half = max(right - left, top - bottom) / 2  # square, since distances are what is shown
    for axes in (clusters, classes):
        axes.set_xlim((left + right) / 2 - half, (left + right) / 2 + half)
        axes.set_ylim((bottom + top) / 2 - half, (bottom + top) / 2 + half)
        axes.set_box_aspect(1)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel("UMAP 1 (arbitrary units)")
        axes.spines[["top", "right"]].set_visible(True)
    clusters.set_ylabel("UMAP 2 (arbitrary units)")
    if beyond_x or beyond_y:
        note(classes, f"{count(max(beyond_x, beyond_y), 'unit')} beyond the frame")
    return figure


def _clusters(axes: Axes, points: pd.DataFrame, quality: Mapping[str, Any], size: float) -> None:
    stray = points[points["cluster"] < 0]
    axes.scatter(
        stray["umap_x"],
        stray["umap_y"],
        s=1.6 * size,
        color="#bbbbbb",
        marker="x",
        linewidths=0.5,
        rasterized=True,
        gid="cluster -1",
    )
    found = points.loc[points["cluster"] >= 0, "cluster"].value_counts().index
    for place, cluster in enumerate(found):
        inside = points[points["cluster"] == cluster]
        axes.scatter(
            inside["umap_x"],
            inside["umap_y"],
            s=size,
            color=CLUSTERS[place % len(CLUSTERS)],
            linewidths=0,
            rasterized=True,
            gid=f"cluster {cluster}",
        )
        if place < NAMED:
            places = inside[["umap_x", "umap_y"]].to_numpy()
            x, y = _central(places)
            axes.text(
                x,
                y,
                f"{cluster}",
                fontsize=SMALL,
                fontweight="bold",
                ha="center",
                va="center",
                clip_on=True,
                path_effects=[withStroke(linewidth=2, foreground="white")],
            )
    share = quality["noise_share"]
    noise = NOTHING if share is None else f"{100 * share:.1f}%"
    axes.set_title(
        f"{letter(0)}  {_method(quality.get('method'))}: {count(len(found), 'cluster')},"
        f" noise {noise} (grey ×)\n"
        f"silhouette {number(quality['silhouette'])} in the plane,"
        f" {number(quality['silhouette_features'])} in feature space"
    )


def _central(places: NDArray[np.float64]) -> tuple[float, float]:
    """The unit nearest to the cluster's median, which in a bent cluster may be outside it."""
    distance = ((places - np.median(places, axis=0)) ** 2).sum(axis=1)
    x, y = places[np.argmin(distance)]
    return float(x), float(y)


def _method(method: object) -> str:
    name = str(method).lower()
    return next((m for m in ("HDBSCAN", "DBSCAN") if m.lower() in name), "Clusters")


def _classes(
    figure: Figure, axes: Axes, points: pd.DataFrame, draws: int, rule: str, size: float
) -> None:
    scatter(axes, points, "umap_x", "umap_y", size)
    of_draws = f", draw 1 of {draws}" if draws > 1 else ""
    axes.set_title(f"{letter(1)}  Classes by rule {rule}{of_draws}\n")  # two lines, like a's
    figure.legend(
        handles=[
            key(label, f"{NAMES[label]} (n = {n:,})", line=False)
            for label, n in sizes(points["label"]).items()
        ],
        loc="outside lower right",
        ncols=3,
        handletextpad=0.2,
    )
