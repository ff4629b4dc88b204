"""Perplexity lost against membership lost, as noise in a class of parameters grows."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Polygon
from numpy.typing import NDArray
from scipy.stats import gaussian_kde

from paramscope.figures.classes import CLASSES, COLOURS, DASHES, MARKERS
from paramscope.figures.replicates import (
    confidence_ellipse,
    draw_means,
    not_finite,
    null_band,
    seed_means,
)
from paramscope.figures.responses import (
    AUC,
    AUC_UNIT,
    ISO_LINE,
    ISO_LOG_PPL,
    PERPLEXITY,
    PERPLEXITY_UNIT,
    baseline,
    counts,
    in_order,
    iso_key,
    name_panel,
    response_scale,
    root,
    rules_and_controls,
    sigmas,
    span,
    square,
)
from paramscope.figures.style import (
    DOUBLE,
    GREY,
    PALE,
    SINGLE,
    count,
    head,
    new_figure,
    note,
    styled,
)

X, Y = "delta_log_ppl", "delta_auc"
HELD = 0.8  # of the density of a class's replicates, within its contour
FEWEST = 8  # replicates that a density is drawn of
FEW = 6  # noise levels that are listed; more are of many ranges
SMALLEST, LARGEST = 2.2, 5.5  # pt: markers grow with sigma


@styled
def prm_phase_diagram(responses: Mapping[str, pd.DataFrame], model: str) -> Figure:
    """A panel a partition rule: a trajectory over sigma for each class.

    Points are means over noise seeds (of the mean of the antithetic pair), ellipses the 95%
    confidence regions of those means, thin contours hold 80% of the seeds' density. The grey
    band holds 95% of the rule's random partitions, each class of each, as far as they were
    measured; dots are where they end.

    Args:
        responses: by rule: class, sigma, seed, sign, draw, n_units, ppl, auc, delta_log_ppl
            and delta_auc, a row a (class, sigma, seed, sign, draw). A class without rows is
            told as empty; replicates that are not finite are left out and told.
        model: what the title calls the model.

    Raises:
        ArtifactError: a table without rows, or with a class that no figure knows.
    """
    tables = in_order(responses)
    shown, controls = rules_and_controls(tables)
    columns = len(shown) if len(shown) <= 3 else 2
    rows = -(-len(shown) // columns)
    figure = new_figure(SINGLE if columns == 1 else DOUBLE, 1.4 + rows * 2.8)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    levels = sigmas(tables)
    head(
        figure,
        model,
        "perplexity and membership under noise",
        f"{counts(tables)}\n{baseline(tables)}",
    )
    drawn = []
    for index, (rule, table) in enumerate(shown.items()):
        axes = grid.flat[index]
        axes.axhline(0, color=PALE, linewidth=0.8, zorder=0)
        axes.axvline(0, color=PALE, linewidth=0.8, zorder=0)
        axes.axvline(ISO_LOG_PPL, zorder=0, gid="iso", **ISO_LINE)
        if rule in controls:
            _control(axes, controls[rule])
        drawn.append(_trajectories(axes, table))
        name_panel(axes, index, rule, table)
    _frame(grid, pd.concat(drawn), len(shown))
    handles: list[Any] = [iso_key()]
    if controls:
        handles.insert(0, Patch(facecolor=GREY, alpha=0.25, label="95% of random partitions"))
    figure.legend(
        handles=handles,
        title="\n".join(
            (
                marker_words(levels),
                "ellipses: 95% confidence region of the mean over noise seeds",
                "contours: 80% of the seeds' density",
            )
        ),
        loc="outside lower center",
        ncols=min(columns, 2),
    )
    return figure


def marker_words(levels: list[float]) -> str:
    """What the markers' sizes mean."""
    if len(levels) > FEW:
        return "markers grow with σ, over each class's own range"
    return f"markers grow with σ = {', '.join(f'{s:g}' for s in levels)}"


def _trajectories(axes: Axes, table: pd.DataFrame) -> pd.DataFrame:
    """Draw one rule's classes; the means that were drawn."""
    replicates = seed_means(table, [X, Y])
    left_out = not_finite(replicates, [X, Y])
    replicates = replicates.dropna()
    if left_out:
        note(axes, f"{count(left_out, 'replicate')} not finite, left out", y=0.98)
    means = replicates.groupby(["class", "sigma"])[[X, Y]].mean()
    for label in CLASSES:
        if label not in means.index:
            continue
        _density(axes, replicates.loc[replicates["class"] == label, [X, Y]].to_numpy(), label)
        path = means.loc[label]
        size = dict(zip(path.index, np.linspace(SMALLEST, LARGEST, len(path)), strict=True))
        axes.plot(
            [0, *path[X]],
            [0, *path[Y]],
            color=COLOURS[label],
            linestyle=DASHES[label],
            linewidth=1,
            gid=f"path {label}",
        )
        for sigma, point in path.iterrows():
            axes.plot(
                point[X],
                point[Y],
                MARKERS[label],
                color=COLOURS[label],
                markersize=size[sigma],
                markeredgecolor="white",
                markeredgewidth=0.4,
                zorder=3,
                gid=f"mean {label}",
            )
            of_level = (replicates["class"] == label) & (replicates["sigma"] == sigma)
            outline = confidence_ellipse(replicates.loc[of_level, [X, Y]].to_numpy())
            if len(outline):
                axes.add_patch(
                    Polygon(
                        outline,
                        facecolor=(COLOURS[label], 0.18),
                        edgecolor=(COLOURS[label], 0.7),
                        linewidth=0.6,
                        zorder=2,
                        gid=f"ellipse {label}",
                    )
                )
    return means


def _density(axes: Axes, points: NDArray[np.float64], label: str) -> None:
    """The contour, on the axes' own square-root scale, that holds 80% of a kernel density.

    Source: Scott's bandwidth (Scott 1992, "Multivariate Density Estimation").
    """
    scaled = root(points).T
    if len(points) < FEWEST or np.linalg.matrix_rank(np.cov(scaled), hermitian=True) < 2:
        return
    density = gaussian_kde(scaled)
    level = np.quantile(density(scaled), 1 - HELD)
    low, high = scaled.min(1), scaled.max(1)
    x, y = np.linspace(low - 0.5 * (high - low), high + 0.5 * (high - low), 120).T
    height = density(np.stack([a.ravel() for a in np.meshgrid(x, y)])).reshape(len(y), len(x))
    axes.contour(
        square(x), square(y), height, [level], colors=COLOURS[label], linewidths=0.5, alpha=0.7,
        zorder=1,
    ).set_gid(f"density {label}")  # fmt: skip


def _control(axes: Axes, table: pd.DataFrame) -> None:
    means = draw_means(table, [X, Y]).dropna()
    paths = [path[[X, Y]].to_numpy() for _, path in means.groupby(["class", "draw"])]
    x, low, high = null_band(paths)
    axes.fill_between(x, low, high, color=GREY, alpha=0.25, linewidth=0, zorder=0, gid="null")
    ends = np.array([path[-1] for path in paths])
    axes.plot(*ends.T, ".", color=GREY, ms=1.6, alpha=0.7, zorder=1, gid="draws")


def _frame(grid: NDArray[Any], means: pd.DataFrame, panels: int) -> None:
    """Shared axes, named at the edges of the grid."""
    for axes in grid.flat[panels:]:
        axes.set_visible(False)
    outlines = [patch.get_xy() for axes in grid.flat for patch in axes.patches]
    ellipses = np.concatenate([np.empty((0, 2)), *outlines])
    room = 0.11 if grid.shape[1] < 3 else 0.19
    response_scale(grid[0, 0], "x", *span([ISO_LOG_PPL, *means[X]], ellipses[:, 0]), room)
    response_scale(grid[0, 0], "y", *span(means[Y], ellipses[:, 1]))
    for axes in grid[:, 0]:
        axes.set_ylabel(f"{AUC} {AUC_UNIT}")
    for index in range(max(0, panels - grid.shape[1]), panels):
        grid.flat[index].set_xlabel(f"{PERPLEXITY}\n{PERPLEXITY_UNIT}")
        grid.flat[index].tick_params(labelbottom=True)
