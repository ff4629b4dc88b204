"""What figures of pruned models share: the methods' looks, densities in words, and axes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from paramscope.errors import ArtifactError
from paramscope.figures.style import INK, NOTHING, letter

Run = tuple[str, float]  # a method and a density
NAMES = {
    "magnitude": "magnitude",
    "wanda": "Wanda",
    "sparsegpt": "SparseGPT",
    "gradual": "gradual",
    "admm": "ADMM",
}
# Okabe and Ito's palette (jfly.uni-koeln.de/color) and Paul Tol's indigo: told apart with any
# colour vision, and by marker without colour.
LOOKS = {
    "magnitude": ("#CC79A7", "s"),
    "wanda": ("#E69F00", "D"),
    "sparsegpt": ("#0072B2", "o"),
    "gradual": ("#D55E00", "^"),
    "admm": ("#009E73", "v"),
}
OTHERS = (("#332288", "P"), ("#56B4E9", "X"), ("#8C510A", "<"), ("#777777", ">"))
BASELINE: dict[str, Any] = {"color": INK, "linewidth": 0.8, "linestyle": (0, (7, 2, 1.5, 2))}
COLUMNS = 3  # panels side by side
MOST_TICKS = 6
MOST_MARKS = 12  # on a line
NARROW = 2.5  # a range of this factor is ticked evenly, a wider one by decades


@dataclass(frozen=True)
class Look:
    """How a method is drawn, and what it is called."""

    name: str
    colour: str
    marker: str

    def line(self, *, hollow: bool = False) -> dict[str, Any]:
        """Keywords of a line with markers, filled or hollow ones."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "markersize": 4,
            "markerfacecolor": "white" if hollow else self.colour,
            "markeredgewidth": 0.9 if hollow else 0.0,
            "linewidth": 0.9 if hollow else 1.2,
            "linestyle": (0, (4, 1.8)) if hollow else "-",
        }

    def key(self, text: str | None = None) -> Line2D:
        """A legend's handle."""
        return Line2D([], [], label=text or self.name, **self.line())


def looks(methods: Iterable[str]) -> dict[str, Look]:
    """A look for each method, in the order they are drawn: the known first."""
    order = list(NAMES)
    given = sorted(set(methods), key=lambda m: (order.index(m) if m in order else len(order), m))
    others = [method for method in given if method not in LOOKS]
    look = LOOKS | {method: OTHERS[i % len(OTHERS)] for i, method in enumerate(others)}
    return {method: Look(NAMES.get(method, method), *look[method]) for method in given}


def by_run(table: pd.DataFrame) -> dict[Run, pd.DataFrame]:
    """The rows of each run, by method and density, from all runs' in one table.

    Columns method and of_density say whose a row is.
    """
    runs = table[["method", "of_density"]].drop_duplicates().itertuples(index=False, name=None)
    return {
        (str(method), float(density)): table[
            (table["method"] == method) & (table["of_density"] == density)
        ].drop(columns=["method", "of_density"])
        for method, density in runs
    }


def by_density(runs: Mapping[Run, pd.DataFrame], what: str) -> dict[float, list[Run]]:
    """The runs of each density, the highest first, methods in the order they are drawn.

    `what` is what errors call the tables' rows.

    Raises:
        ArtifactError: no runs, or one without rows.
    """
    if not runs:
        raise ArtifactError(f"no {what} to draw; give those of one method and density or more")
    for (method, density), rows in runs.items():
        if rows.empty:
            raise ArtifactError(f"the {what} of {method} at density {density:g} have no rows")
    methods = list(looks(method for method, _ in runs))
    return {
        density: [(method, density) for method in methods if (method, density) in runs]
        for density in sorted({density for _, density in runs}, reverse=True)
    }


def panels(figure: Figure, n: int, **shared: Any) -> list[Axes]:
    """`n` axes in rows of three at most."""
    columns = min(n, COLUMNS)
    rows = -(-n // columns)
    grid = figure.subplots(rows, columns, squeeze=False, **shared).ravel()
    for axes in grid[n:]:
        axes.remove()
    return list(grid[:n])


def name_panel(axes: Axes, index: int, density: float, handles: list[Line2D]) -> None:
    """Above the axes: letter, density and zeros, and a line a method."""
    axes.legend(
        handles=handles,
        title=f"{letter(index)}  {density_told(density)}",
        loc="lower left",
        bbox_to_anchor=(0, 1),
        alignment="left",
        borderpad=0,
        borderaxespad=0.4,
        handlelength=1.8,
    )


def density_told(density: float) -> str:
    """`density 0.1: 90% zeros`."""
    return f"density {density:g}: {100 * (1 - density):.4g}% zeros"


def perplexity_told(value: float) -> str:
    """Four digits or so: `27.66`, `1,234`, `5.2e+06`; a dash for what is not finite."""
    if not np.isfinite(value):
        return NOTHING
    if value >= 1e6:
        return f"{value:.1e}"
    return f"{value:,.{2 if value < 100 else 1 if value < 1000 else 0}f}"


def change_told(first: float, second: float) -> str:
    """The change from first to second in percent, with its sign; a dash for none."""
    if not (np.isfinite(first) and np.isfinite(second)):
        return NOTHING
    return f"{100 * (second / first - 1):+.1f}%".replace("-", "−")


def marked(rows: pd.DataFrame) -> dict[str, int]:
    """The keyword that thins a line's markers out where there are many epochs."""
    return {"markevery": -(-len(rows) // MOST_MARKS)}


def epoch_axis(axes: Axes, last: int, *, named: bool) -> None:
    """Whole epochs from 0 on, with room on both sides, and what they are if `named`."""
    pad = 0.06 * max(last, 1)
    axes.set_xlim(-pad, max(last, 1) + pad)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    if named:
        axes.set_xlabel("Epoch (0: pruned only)")


def log_axis(axes: Axes, side: str, values: Iterable[float]) -> None:
    """A logarithmic axis that holds all finite `values`, ticked at round numbers."""
    finite = np.asarray(list(values), dtype=float)
    finite = finite[np.isfinite(finite) & (finite > 0)]
    low, high = (finite.min(), finite.max()) if len(finite) else (1.0, 10.0)
    room = max((high / low) ** 0.07, 1.03)
    low, high = float(low / room), float(high * room)
    getattr(axes, f"set_{side}scale")("log")
    getattr(axes, f"set_{side}lim")(low, high)
    axis: Any = getattr(axes, f"{side}axis")
    axis.set_ticks(round_ticks(low, high))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _tick_told(value)))
    axis.set_minor_locator(NullLocator())


def round_ticks(low: float, high: float) -> NDArray[np.float64]:
    """Six round numbers at most between `low` and `high`, for a logarithmic axis."""
    if high / low < NARROW:
        even = np.asarray(MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high))
        return even[(even >= low) & (even <= high)]
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    for digits in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = np.outer(decades, digits).ravel()
        ticks = ticks[(ticks >= low) & (ticks <= high)]
        if len(ticks) <= MOST_TICKS:
            break
    return ticks[:: -(-len(ticks) // MOST_TICKS)]


def _tick_told(value: float) -> str:
    if value < 1e5:
        return f"{value:,.6g}"
    power = int(np.floor(np.log10(value) + 1e-9))
    digits = f"{value / 10.0**power:g}"
    return rf"$10^{{{power}}}$" if digits == "1" else rf"${digits}\cdot10^{{{power}}}$"
