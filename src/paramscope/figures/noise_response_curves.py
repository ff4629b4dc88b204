"""Perplexity and membership inference over the noise in each class of parameters."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from paramscope.figures.classes import CLASSES, COLOURS, DASHES, MARKERS
from paramscope.figures.replicates import mean_curve, not_finite, seed_means
from paramscope.figures.responses import (
    AUC,
    AUC_UNIT,
    ISO_LINE,
    ISO_LOG_PPL,
    PERPLEXITY,
    PERPLEXITY_UNIT,
    SIGMA,
    baseline,
    control_key,
    counts,
    in_order,
    iso_key,
    name_panel,
    response_scale,
    rules_and_controls,
    sigmas,
    span,
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

RESPONSES = {
    "delta_log_ppl": f"{PERPLEXITY}\n{PERPLEXITY_UNIT}",
    "delta_auc": f"{AUC}\n{AUC_UNIT}",
}


@styled
def noise_response_curves(responses: Mapping[str, pd.DataFrame], model: str) -> Figure:
    """A column a partition rule, a row a response, a curve over sigma for each class.

    Curves are means over noise seeds (of the mean of the antithetic pair), bands 95% t
    intervals. A rule's control, grey in its column, is summarised alike, class by class, its
    seeds with their own draws of the partition; it has a column only where it is alone.

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
    columns = len(shown)
    figure = new_figure(SINGLE if columns == 1 else max(DOUBLE, 1.75 * columns), 5.6)
    grid = figure.subplots(2, columns, squeeze=False, sharex=True, sharey="row")
    told = [counts(tables), baseline(tables)]
    head(figure, model, "responses to noise", "\n".join(told))
    control = {rule: seed_means(table, list(RESPONSES)) for rule, table in controls.items()}
    for column, (rule, table) in enumerate(shown.items()):
        replicates = seed_means(table, list(RESPONSES))
        for axes, response in zip(grid[:, column], RESPONSES, strict=True):
            axes.axhline(0, color=PALE, linewidth=0.8, zorder=0)
            _curves(axes, replicates, response, control=False)
            if rule in control:
                _curves(axes, control[rule], response, control=True)
        top, bottom = grid[:, column]
        top.axhline(ISO_LOG_PPL, zorder=0, **ISO_LINE)
        name_panel(top, column, rule, table)
        bottom.set_xlabel(SIGMA)
        left_out = not_finite(replicates, list(RESPONSES))
        if left_out:
            note(bottom, f"{count(left_out, 'replicate')} not finite, left out", x=0.02)
    _frame(grid, sigmas(tables))
    handles = []
    if control:
        handles.append(control_key("control (random partitions), dashed as the classes"))
    if grid[0, 0].get_ylim()[1] > ISO_LOG_PPL:
        handles.append(iso_key())
    figure.legend(
        handles=handles,
        title="bands: 95% t intervals of the mean over noise seeds",
        loc="outside lower center",
        ncols=1 if columns == 1 else 2,
    )
    return figure


def _curves(axes: Axes, replicates: pd.DataFrame, response: str, *, control: bool) -> None:
    """A curve a class with its band; in grey behind the others, unmarked, for the control."""
    for label in CLASSES:
        curve = mean_curve(replicates, label, response)
        name = f"control {label}" if control else label
        axes.plot(
            curve.index,
            curve["mean"],
            color=GREY if control else COLOURS[label],
            linestyle=DASHES[label],
            linewidth=0.8 if control else 1.2,
            marker=("x" if len(curve) == 1 else "") if control else MARKERS[label],
            markersize=4,
            markeredgecolor=GREY if control else "white",
            markeredgewidth=0.8 if control else 0.4,
            zorder=4 if control and len(curve) == 1 else 1 if control else 3,
            gid=f"mean {name}",
        )
        if len(curve) == 1:  # a control that is measured at one noise level
            axes.vlines(curve.index, curve["low"], curve["high"], color=GREY, linewidth=0.8)
        axes.fill_between(
            curve.index,
            curve["low"],
            curve["high"],
            color=GREY if control else COLOURS[label],
            alpha=0.18,
            linewidth=0,
            zorder=1 if control else 2,
            gid=f"interval {name}",
        )


def _frame(grid: NDArray[Any], levels: list[float]) -> None:
    """Scales and limits: all of the curves, and of the bands what is near."""
    for row, name in zip(grid, RESPONSES.values(), strict=True):
        means = [line.get_ydata() for axes in row for line in axes.lines if line.get_gid()]
        bands = [
            path.vertices[:, 1]
            for axes in row
            for band in axes.collections
            for path in band.get_paths()
        ]
        response_scale(row[0], "y", *span(np.concatenate(means), np.concatenate([[], *bands])))
        row[0].set_ylabel(name)
    pad = 0.04 * levels[-1]
    grid[0, 0].set_xlim(min(0, levels[0]) - pad, levels[-1] + pad)
