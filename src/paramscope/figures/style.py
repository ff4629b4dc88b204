"""How every figure looks: column widths, type, titles, and axes that outliers don't squash."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

DPI = 200
SINGLE, DOUBLE = 3.4, 7.0  # inches: one and two columns of a paper
SMALL = 7.0  # pt: the smallest type in any figure
INK, GREY, PALE = "#222222", "#6e6e6e", "#dddddd"
NOTHING = "–"  # what stands where a statistic is null

RC: dict[str, Any] = {
    "figure.dpi": DPI,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.05,
    "font.family": "DejaVu Sans",  # comes with Matplotlib, so it is the same on every machine
    "mathtext.fontset": "dejavusans",
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 7.5,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.title_fontsize": 7.5,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "figure.titlesize": 9.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "lines.linewidth": 1.2,
    "hatch.linewidth": 0.5,
    "pdf.fonttype": 42,  # text stays text
}

P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Make a drawing function run in this style, whatever the process' Matplotlib is set to."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with in_style():
            return draw(*args, **kwargs)

    return drawn


def in_style() -> Any:
    """A context with Matplotlib's defaults, whatever a `matplotlibrc` says, and this style."""
    # the backend is left alone: a context can't restore it, and none is used
    default = {k: v for k, v in matplotlib.rcParamsDefault.items() if k != "backend"}
    return matplotlib.rc_context(default | RC)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of `width` × `height` inches that lays itself out, outside pyplot."""
    return Figure(figsize=(width, height), layout="constrained")


def head(figure: Figure, model: str, what: str, counts: str) -> None:
    """The title: which model, what is shown, and, on lines below, of how many."""
    figure.suptitle(f"{model}: {what}\n{counts}", x=0.01, ha="left", linespacing=1.4)


def letter(index: int) -> str:
    """The name of a panel: a, b, c, …"""
    return chr(ord("a") + index)


def count(n: int, noun: str) -> str:
    """`1 seed`, `4,608 units`."""
    return f"{n:,} {noun if n == 1 else noun + 's'}"


def seeds_told(seeds: Mapping[str, int]) -> str:
    """How many noise seeds, by rule where rules differ."""
    if len(set(seeds.values())) == 1:
        return f"n = {count(next(iter(seeds.values())), 'noise seed')}"
    return "noise seeds: " + ", ".join(f"{n} ({rule})" for rule, n in seeds.items())


def number(value: float | None, digits: int = 2) -> str:
    """A value with a true minus sign; a dash for none."""
    if value is None or not np.isfinite(value):
        return NOTHING
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def limits(values: ArrayLike) -> tuple[float, float, int]:
    """Axis limits for `values`, and how many of them lie outside.

    All lie inside, unless the outermost 1% would stretch the axis to more than three times
    the rest; then they are left out, and the caller says so.
    """
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return 0.0, 1.0, 0
    low, high = finite.min(), finite.max()
    inner_low, inner_high = np.quantile(finite, [0.005, 0.995])
    inner = inner_high - inner_low
    if inner > 0 and high - low > 3 * inner:
        low, high = max(low, inner_low - 0.2 * inner), min(high, inner_high + 0.2 * inner)
    outside = int(((finite < low) | (finite > high)).sum())
    pad = 0.04 * (high - low) or 0.04 * abs(high) or 1.0
    return float(low - pad), float(high + pad), outside


def note(axes: Axes, text: str, x: float = 0.98, y: float = 0.02) -> None:
    """A remark in a corner of the axes, in axes coordinates; none where `text` is empty."""
    if not text:
        return
    axes.text(
        x,
        y,
        text,
        transform=axes.transAxes,
        ha="right" if x > 0.5 else "left",
        va="top" if y > 0.5 else "bottom",
        fontsize=SMALL,
        color=GREY,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8},
        zorder=5,
    )
