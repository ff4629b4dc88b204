"""What each strategy of a plan takes of memory, by part, against what devices have."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from paramscope.artifacts.plans import CLOSED_FORM, PART_COLUMNS, TASKS, checked
from paramscope.errors import ArtifactError
from paramscope.figures.dpsgd import part_style, wrapped
from paramscope.figures.style import (
    DOUBLE,
    GREY,
    INK,
    NOTHING,
    PALE,
    SMALL,
    head,
    letter,
    new_figure,
    styled,
)
from paramscope.units import POWERS, amount, unit_of

BESIDE = "beside the tensors"  # workspaces; on a CPU Python and its libraries
ON_CPU = "total on a CPU"
COLUMNS = 3  # panels side by side
THICK = 0.7  # of a row
ROW, STAIR = 0.185, 0.135  # inches, of a strategy and of a device's name
FRAME = 0.75  # inches, of a panel's title and axis
LEGEND = 4  # columns
STEP = STAIR / ROW
ROOM = 1.22  # of the longest bar, for its number
NEAR = 1.7  # of the longest bar: a device with less has its line in the panel
MIDDLE = 0.42  # of a panel: a name stands left of a line further right
LINES: dict[str, Any] = {"cpu": (0, (3, 1.6)), "wsl": (0, (3, 1.6)), "cuda": "-"}
MARK: dict[str, Any] = {"marker": "d", "color": INK, "markersize": 3.6, "linestyle": "none",
                        "markerfacecolor": "white", "markeredgewidth": 0.8}  # fmt: skip
SEEN = 0.002  # of a bar: a lesser part is not in the legend
BEYOND = "#f1f1f1"


@styled
def memory_plan(rows: pd.DataFrame, models: Sequence[str]) -> Figure:
    """A panel a model, a bar a strategy: its peak by part, with what comes beside the tensors.

    A vertical line is what a plan can use of a device. Bars are as on a GPU where the plan has
    one, else as on a CPU; a diamond is the total on a CPU, which the dashed lines of such devices
    hold for. Closed forms are told below.

    Args:
        rows: a plan's.
        models: those shown, in their order.

    Raises:
        ArtifactError: rows that are no plan, a model that it lacks, or nothing to draw.
    """
    checked(rows)
    models = list(dict.fromkeys(models))
    shown = _of_models(rows, models)
    drawn = shown[shown["how"] != CLOSED_FORM]
    if drawn.empty:
        raise ArtifactError("a plan of closed forms alone has nothing to draw; add a strategy")
    strategies = in_order(drawn["strategy"])
    devices = drawn.drop_duplicates("device").sort_values("usable_bytes", kind="stable")
    lines = -(-len(models) // COLUMNS)
    below = wrapped(_closed_forms(shown, models))
    handles = _handles(drawn)
    told = len(below.splitlines()) - (-len(handles) // LEGEND)
    height = len(strategies) * ROW + len(devices) * STAIR + FRAME
    figure = new_figure(DOUBLE, 0.75 + lines * height + 0.145 * told)
    first = drawn.iloc[0]
    cuda = bool((devices["device_kind"] == "cuda").any())
    head(
        figure,
        "Memory plan",
        "what each strategy holds at its peak, and what devices have for it",
        f"{first['dtype']}, batch {first['batch']} × {first['length']:,} tokens, on a "
        f"{'GPU' if cuda else 'CPU'}; estimated, not run\n"
        "numbers: the bars' totals; lines: what a plan can use of each device",
    )
    grid = figure.subplots(lines, min(COLUMNS, len(models)), sharey=True, squeeze=False)
    for i, (axes, model) in enumerate(zip(grid.flat, models, strict=False)):
        own = drawn[drawn["model"] == model]
        _panel(axes, own, strategies, devices)
        axes.set_title(f"{letter(i)}  {model}{_count(own)}")
    for axes in grid.flat[len(models) :]:
        axes.set_axis_off()
    figure.legend(
        handles=handles,
        title=below or None,
        title_fontproperties={"size": SMALL},
        alignment="left",
        loc="outside lower left",
        ncols=LEGEND,
    )
    return figure


def in_order(strategies: Sequence[str] | pd.Series) -> list[str]:
    """Each once, by task and by place in it; those of no task last, as they come."""
    known = [strategy for task in TASKS.values() for strategy in task]
    once = list(dict.fromkeys(strategies))
    return [s for s in known if s in once] + [s for s in once if s not in known]


def of_kind(own: pd.DataFrame, *, cuda: bool) -> pd.DataFrame:
    """A row a strategy, on a GPU or else on a CPU: of the device where it takes most."""
    kind = own[(own["device_kind"] == "cuda") == cuda]
    most = kind.sort_values("total_bytes", ascending=False, kind="stable")
    return most.drop_duplicates("strategy").set_index("strategy")


def _of_models(rows: pd.DataFrame, models: Sequence[str]) -> pd.DataFrame:
    missing = [model for model in models if model not in set(rows["model"])]
    if missing or not models:
        raise ArtifactError(
            f"the plan has no model {', '.join(missing) or 'to show'}; "
            f"it has {', '.join(rows['model'].unique())}"
        )
    return rows[rows["model"].isin(models)]


def _panel(axes: Axes, own: pd.DataFrame, strategies: list[str], devices: pd.DataFrame) -> None:
    gpu, cpu = of_kind(own, cuda=True), of_kind(own, cuda=False)
    bars = (gpu if len(gpu) else cpu).reindex(strategies)
    marks = (cpu if len(gpu) else cpu.iloc[:0]).reindex(strategies)["total_bytes"]
    known = bars["total_bytes"].notna().to_numpy()
    size, unit = unit_of(bars["total_bytes"].max() if known.any() else 1.0)
    at, left = np.flatnonzero(known), np.zeros(int(known.sum()))
    looks = {column: (part, part_style(part)) for part, column in PART_COLUMNS.items()}
    looks["extra_bytes"] = (BESIDE, _beside_style())
    for column, (name, style) in looks.items():
        widths = bars[column].to_numpy()[known] / size
        axes.barh(at, widths, THICK, left, gid=name, zorder=2, **style)
        left += widths
    ends = bars["total_bytes"].to_numpy() / size
    if marks.notna().any():
        axes.plot(marks / size, np.arange(len(strategies)), gid=ON_CPU, zorder=4, **MARK)
        ends = np.fmax(ends, marks.to_numpy() / size)
    usable = devices["usable_bytes"].to_numpy() / size
    for row, (end, total) in enumerate(zip(ends, bars["total_bytes"] / size, strict=True)):
        axes.annotate(
            NOTHING if np.isnan(total) else _told(total),
            (0.0 if np.isnan(total) else end, row), (5, 0), textcoords="offset points",
            va="center", fontsize=SMALL, gid="total", zorder=5,
            bbox={"facecolor": BEYOND if end > usable.max() else "white", "edgecolor": "none",
                  "pad": 0.3},
        )  # fmt: skip
    longest = float(np.nanmax(ends)) if known.any() else 1.0
    seen = usable[usable <= NEAR * longest]
    right = max([ROOM * longest, *(1.04 * seen)])
    axes.set_xlim(0, right)
    top = -0.5 - STEP * (len(devices) + 0.3)
    axes.set_ylim(len(strategies) - 0.5, top)
    _devices(axes, devices, usable, right, len(strategies))
    _rows(axes, strategies)
    axes.set_xlabel(f"Memory ({unit}, {POWERS[unit]} bytes)")


def _devices(axes: Axes, devices: pd.DataFrame, usable: Any, right: float, bottom: int) -> None:
    """A line a device, up to its name: the least memory's highest, so that no line crosses one."""
    for i, (name, kind, at) in enumerate(
        zip(devices["device"], devices["device_kind"], usable, strict=True)
    ):
        y = -0.5 - STEP * (len(devices) - i - 0.5)
        text: dict[str, Any] = {
            "fontsize": SMALL, "va": "center", "gid": "device", "textcoords": "offset points",
            "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.6}, "zorder": 5,
        }  # fmt: skip
        if at > right:
            axes.annotate(f"{name} {_told(at)} →", (right, y), (0, 0), ha="right", color=GREY,
                          **text)  # fmt: skip
            continue
        axes.plot([at, at], [bottom - 0.5, y - STEP / 2], color=INK, linewidth=0.8, zorder=3,
                  linestyle=LINES[kind], gid=f"usable {name}")  # fmt: skip
        leftwards = at > MIDDLE * right
        axes.annotate(f"{name} {_told(at)}", (at, y), (-3 if leftwards else 3, 0),
                      ha="right" if leftwards else "left", **text)  # fmt: skip
    most = float(usable.max())
    if most < right:
        ground = Rectangle((most, -0.5), right - most, bottom, color=BEYOND, linewidth=0)
        ground.set(zorder=0, gid="beyond")
        axes.add_patch(ground)


def _rows(axes: Axes, strategies: list[str]) -> None:
    axes.set_yticks(range(len(strategies)), strategies)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_bounds(len(strategies) - 0.5, -0.5)
    tasks = [next((t for t, of in TASKS.items() if s in of), "") for s in strategies]
    for row, (one, other) in enumerate(pairwise(tasks)):
        if one != other:
            axes.axhline(row + 0.5, color=PALE, linewidth=0.6, zorder=0.5)


def _closed_forms(shown: pd.DataFrame, models: Sequence[str]) -> list[str]:
    """What the matrices that nothing runs would take, by strategy."""
    forms = shown[shown["how"] == CLOSED_FORM].drop_duplicates(["model", "strategy"])
    told = []
    for strategy, rows in forms.groupby("strategy", sort=False):
        by_model = rows.set_index("model")["peak_bytes"]
        sizes = [f"{model} {amount(by_model[model])}" for model in models if model in by_model]
        told.append(f"Not drawn, {strategy}: {', '.join(sizes)}")
    return told


def _handles(drawn: pd.DataFrame) -> list[Patch | Line2D]:
    """The legend of what there is to see."""
    handles: list[Patch | Line2D] = [
        Patch(label=part, **part_style(part))
        for part, column in PART_COLUMNS.items()
        if (drawn[column] > SEEN * drawn["total_bytes"]).any()
    ]
    if drawn["extra_bytes"].any():
        handles.append(Patch(label=BESIDE, **_beside_style()))
    kinds = set(drawn["device_kind"])
    if "cuda" in kinds:
        handles.append(_line("usable memory of a GPU", "cuda"))
    if kinds - {"cuda"}:
        handles.append(_line("usable memory of a CPU", "cpu"))
    if len(kinds - {"wsl"} | ({"cpu"} if "wsl" in kinds else set())) > 1:
        handles.append(Line2D([], [], label=ON_CPU, **MARK))
    handles.append(Patch(facecolor=BEYOND, label="more than any has"))
    return handles


def _line(label: str, kind: str) -> Line2D:
    return Line2D([], [], color=INK, linewidth=0.8, linestyle=LINES[kind], label=label)


def _beside_style() -> dict[str, Any]:
    return {"facecolor": "white", "edgecolor": INK, "linewidth": 0.5}


def _count(own: pd.DataFrame) -> str:
    """`, 125 M parameters`."""
    if own.empty:
        return ""
    N = own["parameters"].iloc[0]
    told = f"{_told(N / 1e9)} B" if N >= 1e9 else f"{_told(N / 1e6)} M" if N >= 1e6 else f"{N:,}"
    return f", {told} parameters"


def _told(value: float) -> str:
    """Three digits, or all whole ones."""
    decimals = 2 - int(np.floor(np.log10(value))) if value > 0 else 0
    return f"{value:,.{min(max(decimals, 0), 3)}f}"
