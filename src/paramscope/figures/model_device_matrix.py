"""Which strategy to take for each task, model and device of a plan, and whether it fits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Patch, Rectangle
from matplotlib.textpath import TextToPath

from paramscope.artifacts.plans import CHANGED, TASKS, checked, recommended, taken_bytes
from paramscope.errors import ArtifactError
from paramscope.figures.dpsgd import wrapped
from paramscope.figures.style import (
    DOUBLE,
    NOTHING,
    SMALL,
    head,
    letter,
    new_figure,
    styled,
)
from paramscope.units import amount

# Greens of ColorBrewer's Set2, a yellow and a vermilion: told apart with any colour vision,
# and by hatches and words without colour.
LOOKS: dict[str, dict[str, Any]] = {
    "fits": {"facecolor": "#66C2A5"},
    "mended": {"facecolor": "#D3EEE4"},
    "tight": {"facecolor": "#FFE48F", "hatch": "//"},
    "no": {"facecolor": "#E0876A", "hatch": "\\\\"},
    "": {"facecolor": "white", "hatch": "...."},
}
MEANING = {
    "fits": "fits as asked for",
    "mended": "fits with a change",
    "tight": "within the margin alone",
    "no": "no change makes it fit; ×: the least as asked",
    "": "not in the plan",
}
CHANGES = {  # as typed, and in a cell
    "--optimizer plain": "plain",
    "--dtype bfloat16": "bf16",
    "--checkpointing": "ckpt",
    "--graph layerwise": "layerwise",
}
SHORTER = {"magnitude": "magn.", "hutchinson": "hutch."}  # where a cell is too narrow
COLUMNS = 2  # panels side by side
LINE, PAD = 0.118, 0.055  # inches, of a line of type, and what a cell has more
MARGIN = 0.012  # inches that a cell's text keeps free on each side
HEADER = 0.55  # inches above a panel
BETWEEN = 0.12  # inches that a panel leaves free beside it


@dataclass(frozen=True)
class Cell:
    """What is told of a task on a model and a device.

    Attributes:
        state: of artifacts.plans.STATES; empty where no strategy of the task is in the plan.
        words: what the cell says; lines may be broken between them.
    """

    state: str
    words: tuple[str, ...]


@styled
def model_device_matrix(rows: pd.DataFrame) -> Figure:
    """A panel a task, a row a model, a column a device: what to take, and its share of memory.

    A cell is coloured by the state of what `artifacts.plans.recommended` takes, and tells that
    strategy (where the task has several), its change and what it takes of what the device can
    be planned with; where nothing fits, how many times the device that is which asks for least.

    Args:
        rows: a plan's.

    Raises:
        ArtifactError: rows that are no plan, or none of a task.
    """
    checked(rows)
    tasks = [task for task, of in TASKS.items() if rows["strategy"].isin(of).any()]
    if not tasks:
        raise ArtifactError("the plan has no strategy of a task; add one, such as training")
    models, devices = (list(dict.fromkeys(rows[name])) for name in ("model", "device"))
    cells = {
        (task, model, device): cell(of_device, task)
        for (model, device), of_device in rows.groupby(["model", "device"], sort=False)
        for task in tasks
    }
    columns = min(COLUMNS, len(tasks))
    names = max(_width(model) for model in models)
    room = (DOUBLE - names - BETWEEN * columns) / (columns * len(devices)) - 2 * MARGIN
    texts = {at: packed(found.words, room) for at, found in cells.items()}
    lines = [tasks[i : i + columns] for i in range(0, len(tasks), columns)]
    heights = [
        [
            PAD + LINE * max(1 + texts.get((task, model, device), "").count("\n")
                             for task in line for device in devices)
            for model in models
        ]
        for line in lines
    ]  # fmt: skip
    told = _changes_told(rows)
    body = sum(map(sum, heights)) + HEADER * len(lines)
    figure = new_figure(DOUBLE, 1.0 + body + 0.14 * len(told.splitlines()))
    first = rows.iloc[0]
    head(
        figure,
        "Memory plan",
        "what to take for each task, by model and device",
        f"{first['dtype']}, batch {first['batch']} × {first['length']:,} tokens unless changed; "
        "%, ×: of what a plan can use of the device",
    )
    usable = rows.drop_duplicates("device").set_index("device")["usable_bytes"]
    below = [device.replace("-", "\n", 1) for device in devices]
    heads = [
        f"{name}\n{amount(usable[device])}" for name, device in zip(below, devices, strict=True)
    ]
    ratios = [sum(height) for height in heights]
    grid = figure.subplots(len(lines), columns, squeeze=False, height_ratios=ratios)
    for i, task in enumerate(tasks):
        axes = grid.flat[i]
        edges = np.concatenate([[0.0], np.cumsum(heights[i // columns])])
        for row, model in enumerate(models):
            for column, device in enumerate(devices):
                at = (task, model, device)
                _cell(axes, column, edges[row : row + 2], cells.get(at), texts.get(at, NOTHING))
        _axes(axes, edges, models if i % columns == 0 else [], heads if i < columns else below)
        axes.set_title(f"{letter(i)}  {_task_told(task)}")
    for axes in grid.flat[len(tasks) :]:
        axes.set_axis_off()
    states = {found.state for found in cells.values()}
    figure.legend(
        handles=[
            Patch(label=MEANING[state], edgecolor="white", linewidth=0, **look)
            for state, look in LOOKS.items()
            if state in states
        ],
        title=told or None,
        title_fontproperties={"size": SMALL},
        alignment="left",
        loc="outside lower left",
        ncols=4 if len(states) < 5 else 3,
    )
    return figure


def cell(of_device: pd.DataFrame, task: str) -> Cell:
    """What is told of a task, of one model's and device's rows."""
    planned = of_device[of_device["strategy"].isin(TASKS[task])]
    if planned.empty:
        return Cell("", (NOTHING,))
    usable = int(planned["usable_bytes"].iloc[0])
    row = recommended(of_device, task)
    if row is None:
        least = planned["total_bytes"].min()
        return Cell("no", ("no", f"{times(least / usable)}" if usable else NOTHING))
    strategy = str(row["strategy"]).rpartition("-")[2] if len(TASKS[task]) > 1 else ""
    changes = [_short(change) for change in typed(row["mend"])] if row["state"] in CHANGED else []
    words = [word for word in (strategy, *changes) if word]
    words[:-1] = [f"{word}," for word in words[:-1]]
    share = taken_bytes(row) / usable
    return Cell(str(row["state"]), (*words, f"{share:.0%}" if share >= 0.005 else "<1%"))


def typed(mend: str) -> list[str]:
    """A mend's changes, each as it is typed: `--dtype bfloat16`."""
    return [f"--{change.strip()}" for change in f" {mend}".split(" --")[1:]]


def times(ratio: float) -> str:
    """`3.4×`, or whole ones from 10 on."""
    return f"{ratio:.1f}×" if ratio < 9.95 else f"{ratio:,.0f}×"


def packed(words: Sequence[str], room: float) -> str:
    """Words on as few lines as `room` inches allow; a wider word is cut and ends in a dot."""
    lines = [_cut(words[0], room)]
    for word in words[1:]:
        joined = f"{lines[-1]} {word}"
        if _width(joined) <= room:
            lines[-1] = joined
        else:
            lines.append(_cut(word, room))
    return "\n".join(lines)


def _cut(word: str, room: float) -> str:
    if _width(word) <= room:
        return word
    word = word.removesuffix(",")
    word = SHORTER.get(word, word)
    n = next((n for n in range(len(word), 1, -1) if _width(word[:n] + ".") <= room), 1)
    return word if _width(word) <= room else f"{word[:n]}."


def _short(change: str) -> str:
    if change.startswith("--chunk-tokens"):
        return "chunk"
    return CHANGES.get(change, change.removeprefix("--"))


def _width(text: str) -> float:
    """Inches that a text of the smallest type takes."""
    points, _, _ = TextToPath().get_text_width_height_descent(
        text, FontProperties("DejaVu Sans", size=SMALL), ismath=False
    )
    return float(points) / 72


def _cell(axes: Axes, column: int, edges: Any, found: Cell | None, text: str) -> None:
    state = found.state if found else ""
    top, bottom = edges
    axes.add_patch(
        Rectangle((column, top), 1, bottom - top, edgecolor="white", linewidth=1.0,
                  gid=f"state {state}", **LOOKS[state])
    )  # fmt: skip
    axes.text(
        column + 0.5, (top + bottom) / 2, text, ha="center", va="center", fontsize=SMALL,
        linespacing=1.1, gid="cell",
        bbox={"facecolor": LOOKS[state]["facecolor"], "edgecolor": "none", "pad": 0.4},
    )  # fmt: skip


def _axes(axes: Axes, edges: Any, models: list[str], heads: list[str]) -> None:
    axes.set_xlim(0, len(heads))
    axes.set_ylim(edges[-1], 0)
    axes.set_yticks((edges[:-1] + edges[1:])[: len(models)] / 2, models)
    axes.xaxis.tick_top()
    axes.set_xticks(np.arange(len(heads)) + 0.5, heads)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _task_told(task: str) -> str:
    """The task, and its strategy where it has but one, of another name."""
    only = TASKS[task][0] if len(TASKS[task]) == 1 else task
    return task if only == task else f"{task} ({only})"


def _changes_told(rows: pd.DataFrame) -> str:
    """What the short words of changes stand for, of those that there are."""
    changes = sorted({change for mend in rows["mend"].dropna() for change in typed(mend)})
    told = [f"{_short(change)}: {change}" for change in changes if _short(change) != change[2:]]
    return wrapped([";  ".join(told)]) if told else ""
