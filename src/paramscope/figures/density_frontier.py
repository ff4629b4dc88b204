"""Perplexity against density by method, after pruning and after finetuning."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from paramscope.errors import ArtifactError
from paramscope.figures.pruned import BASELINE, Look, log_axis, looks, perplexity_told
from paramscope.figures.style import DOUBLE, GREY, count, head, new_figure, note, styled

POINTS = ("method", "density", "perplexity_pruned", "perplexity_finetuned")
PRUNED, FINETUNED = POINTS[2:]
APART = 0.09  # of the axis, between two ticks


@styled
def density_frontier(points: pd.DataFrame, baseline: float, model: str) -> Figure:
    """Two panels over density, both axes logarithmic, a line a method.

    Perplexity, hollow after pruning and filled after finetuning, with the dense model's as a
    line across; and what finetuning leaves as a multiple of the dense model's.

    Args:
        points: `POINTS`, a row a method and density; perplexities that are null or not finite
            are left out and told.
        baseline: perplexity of the dense model.
        model: what the title calls the model.

    Raises:
        ArtifactError: no points, or two of one method and density.
    """
    if points.empty:
        raise ArtifactError("no perplexities to draw; rerun evaluate")
    twice = points[points.duplicated(["method", "density"])]
    if len(twice):
        method, density = twice.iloc[0][["method", "density"]]
        raise ArtifactError(f"{method} at density {density:g} has two rows; give it once")
    points = points.sort_values("density")
    methods = looks(points["method"])
    figure = new_figure(DOUBLE, 3.5)
    head(
        figure,
        model,
        "perplexity against density",
        f"dense: {perplexity_told(baseline)}; {count(len(methods), 'method')}, "
        f"{count(len(points), 'pruned model')}; density: share of the pruned layers' weights kept",
    )
    whole, near = figure.subplots(1, 2)
    for column in (PRUNED, FINETUNED):
        _lines(whole, points, column, methods, 1.0)
    _lines(near, points, FINETUNED, methods, baseline)
    values = points[[PRUNED, FINETUNED]].astype(float)
    whole.axhline(baseline, zorder=1, gid="baseline", **BASELINE)
    near.axhline(1.0, zorder=1, gid="baseline", **BASELINE)
    log_axis(whole, "y", [baseline, *values.to_numpy().ravel()])
    log_axis(near, "y", [1.0, *(values[FINETUNED] / baseline)])
    whole.set_title("a  After pruning and after finetuning")
    near.set_title("b  After finetuning, dense model = 1")
    whole.set_ylabel("Perplexity")
    near.set_ylabel("Perplexity / dense model's")
    for axes in (whole, near):
        _density_axis(axes, sorted(points["density"].unique()))
    missing = int((~np.isfinite(values.to_numpy())).sum())
    note(whole, f"{count(missing, 'value')} null or not finite" if missing else "", y=0.98)
    plain = Look("", GREY, "o")
    figure.legend(
        handles=[
            *(look.key() for look in methods.values()),
            Line2D([], [], label="after pruning", **plain.line(hollow=True)),
            Line2D([], [], label="after finetuning", **plain.line()),
            Line2D([], [], label="dense model", **BASELINE),
        ],
        loc="outside lower center",
        ncols=4,
    )
    return figure


def _lines(
    axes: Axes, points: pd.DataFrame, column: str, methods: Mapping[str, Look], unit: float
) -> None:
    """A line a method of `column` in units of `unit`."""
    hollow = column == PRUNED
    for method, look in methods.items():
        rows = points[points["method"] == method]
        values = rows[column].to_numpy(np.float64) / unit
        kept = np.isfinite(values)
        axes.plot(
            rows["density"].to_numpy()[kept],
            values[kept],
            gid=f"{'pruned' if hollow else 'finetuned'} {method}",
            zorder=2 if hollow else 3,
            **look.line(hollow=hollow),
        )


def _density_axis(axes: Axes, densities: list[float]) -> None:
    """A logarithmic axis ticked at the densities themselves, those too near left out."""
    log_axis(axes, "x", densities)
    low, high = np.log(axes.get_xlim())
    ticks: list[float] = []
    for density in densities:
        if not ticks or np.log(density / ticks[-1]) >= APART * (high - low):
            ticks.append(density)
    axes.set_xticks(ticks, [f"{density:g}" for density in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("Density (share kept)")
