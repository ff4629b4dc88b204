"""Perplexity of pruned models over the epochs of finetuning, by density and method."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from paramscope.errors import ArtifactError
from paramscope.figures.pruned import (
    BASELINE,
    COLUMNS,
    Look,
    Run,
    by_density,
    change_told,
    epoch_axis,
    log_axis,
    looks,
    marked,
    name_panel,
    panels,
    perplexity_told,
)
from paramscope.figures.style import DOUBLE, GREY, count, head, new_figure, note, styled

EPOCHS = ("epoch", "perplexity", "best")  # the columns that are needed
BEST = 6.5  # pt: the ring around the best epoch


@styled
def perplexity_trend(epochs: Mapping[Run, pd.DataFrame], baseline: float, model: str) -> Figure:
    """A panel a density, a line a method, over epochs; 0 is after pruning, before finetuning.

    The best epoch is ringed, the dense model's perplexity a line across. Above each panel
    stands every method's perplexity at its best epoch, and the change since pruning.

    Args:
        epochs: by method and density: `EPOCHS`, a row an epoch. Perplexities that are not
            finite are left out and told.
        baseline: perplexity of the dense model.
        model: what the title calls the model.

    Raises:
        ArtifactError: no runs, one without rows, or one with no best epoch.
    """
    densities = by_density(epochs, "epochs")
    methods = looks(method for method, _ in epochs)
    columns = min(len(densities), COLUMNS)
    rows = -(-len(densities) // columns)
    most = max(map(len, densities.values()))
    figure = new_figure(DOUBLE, 1.0 + rows * (1.75 + 0.14 * most))
    head(
        figure,
        model,
        "perplexity after pruning and finetuning",
        f"dense: {perplexity_told(baseline)}; {count(len(epochs), 'pruned model')}; "
        "above each panel: at the best epoch (change since pruning)",
    )
    for index, (axes, (density, runs)) in enumerate(
        zip(panels(figure, len(densities)), densities.items(), strict=True)
    ):
        handles = [_trend(axes, epochs[run], methods[run[0]], run) for run in runs]
        axes.axhline(baseline, zorder=1, gid="baseline", **BASELINE)
        together = pd.concat([epochs[run] for run in runs])
        log_axis(axes, "y", [baseline, *together["perplexity"]])
        lowest = index + columns >= len(densities)
        epoch_axis(axes, int(together["epoch"].max()), named=lowest)
        name_panel(axes, index, density, handles)
        if index % columns == 0:
            axes.set_ylabel("Perplexity")
        broken = int((~np.isfinite(together["perplexity"])).sum())
        note(axes, f"{count(broken, 'epoch')} not finite, left out" if broken else "", y=0.98)
    figure.legend(
        handles=[
            Line2D([], [], label="dense model", **BASELINE),
            Line2D([], [], label="best epoch", **_ring(GREY)),
        ],
        loc="outside lower center",
        ncols=2,
    )
    return figure


def _trend(axes: Axes, rows: pd.DataFrame, look: Look, run: Run) -> Line2D:
    """A method's line with its best epoch ringed; its legend's handle."""
    rows = rows.sort_values("epoch")
    best = rows[rows["best"]]
    if best.empty:
        method, density = run
        raise ArtifactError(
            f"the epochs of {method} at density {density:g} name no best one; rerun finetune"
        )
    chosen, pruned = best.iloc[-1], float(rows["perplexity"].iloc[0])
    finite = rows[np.isfinite(rows["perplexity"])]
    line = look.line() | {"markersize": 3} | marked(finite)
    axes.plot(finite["epoch"], finite["perplexity"], gid=f"trend {run[0]}", zorder=3, **line)
    value = float(chosen["perplexity"])
    axes.plot([chosen["epoch"]], [value], gid=f"best {run[0]}", zorder=4, **_ring(look.colour))
    return look.key(f"{look.name}  {perplexity_told(value)} ({change_told(pruned, value)})")


def _ring(colour: str) -> dict[str, Any]:
    """Keywords of a mark around a point."""
    return {
        "color": colour,
        "marker": "o",
        "markersize": BEST,
        "markerfacecolor": "none",
        "markeredgecolor": colour,
        "markeredgewidth": 0.8,
        "linestyle": "",
    }
