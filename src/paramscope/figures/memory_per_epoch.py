"""Memory before and at the peak of each epoch of finetuning, by density and method."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from paramscope.figures.pruned import (
    COLUMNS,
    Look,
    Run,
    by_density,
    epoch_axis,
    looks,
    marked,
    name_panel,
    panels,
)
from paramscope.figures.style import DOUBLE, GREY, count, head, new_figure, styled
from paramscope.units import POWERS, unit_of

BEFORE, PEAK, TOTAL = MEMORY = (
    "memory_before_bytes",
    "memory_peak_bytes",
    "memory_total_peak_bytes",
)
EPOCHS = ("epoch", *MEMORY)  # the columns that are needed


@styled
def memory_per_epoch(epochs: Mapping[Run, pd.DataFrame], model: str) -> Figure:
    """A panel a density, two lines a method over epochs: before the epoch, and its peak.

    Above each panel stands every method's highest peak so far, which is the last row's.

    Args:
        epochs: by method and density: `EPOCHS`, a row an epoch.
        model: what the title calls the model.

    Raises:
        ArtifactError: no runs, or one without rows.
    """
    densities = by_density(epochs, "epochs")
    methods = looks(method for method, _ in epochs)
    highest = max(float(rows[TOTAL].max()) for rows in epochs.values())
    size, unit = unit_of(highest)
    columns = min(len(densities), COLUMNS)
    rows_of_panels = -(-len(densities) // columns)
    most = max(map(len, densities.values()))
    figure = new_figure(DOUBLE, 1.0 + rows_of_panels * (1.6 + 0.14 * most))
    head(
        figure,
        model,
        "memory by epoch of finetuning",
        f"{count(len(epochs), 'finetuned model')}; highest peak {highest / size:,.4g} {unit} "
        f"(1 {unit} = {POWERS[unit]} bytes)",
    )
    grid = panels(figure, len(densities), sharey=True)
    for index, (axes, (density, runs)) in enumerate(zip(grid, densities.items(), strict=True)):
        handles = []
        for run in runs:
            rows, look = epochs[run].sort_values("epoch"), methods[run[0]]
            for column, hollow in ((BEFORE, True), (PEAK, False)):
                axes.plot(
                    rows["epoch"],
                    rows[column] / size,
                    gid=f"{'before' if hollow else 'peak'} {run[0]}",
                    zorder=2 if hollow else 3,
                    **look.line(hollow=hollow) | {"markersize": 3.4} | marked(rows),
                )
            total = float(rows[TOTAL].iloc[-1]) / size
            handles.append(look.key(f"{look.name}  {total:,.4g} {unit}"))
        last = max(int(epochs[run]["epoch"].max()) for run in runs)
        epoch_axis(axes, last, named=index + columns >= len(densities))
        name_panel(axes, index, density, handles)
        if index % columns == 0:
            axes.set_ylabel(f"Memory ({unit})")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axes.tick_params(labelleft=index % columns == 0)
    plain = Look("", GREY, "o")
    figure.legend(
        handles=[
            Line2D([], [], label="at the epoch's peak", **plain.line()),
            Line2D([], [], label="before the epoch", **plain.line(hollow=True)),
        ],
        title="above each panel: highest peak of the whole run",
        loc="outside lower center",
        ncols=2,
    )
    return figure
