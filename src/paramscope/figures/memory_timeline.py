"""Memory by part over the operations of one training iteration, a panel a variant."""

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from paramscope.artifacts.profiles import Profile, devices_told, told, workload_told
from paramscope.errors import ArtifactError
from paramscope.figures.dpsgd import drawable, part_handles, part_style, refusals, wrapped
from paramscope.figures.pruned import panels
from paramscope.figures.style import DOUBLE, GREY, INK, SMALL, head, letter, new_figure, styled
from paramscope.names import DPSGD_PARTS
from paramscope.units import POWERS, unit_of

COLUMNS = 3  # as `panels` has them
ENDS = {"after_forward": "forward", "after_backward": "backward", "after_step": "step"}
OPERATION = 22  # characters
GAP = 0.03  # of the axes' width between two phases' names


@styled
def memory_timeline(profiles: Iterable[Profile], workload: str) -> Figure:
    """Stacked areas of live memory by part, one scale for all panels, the peak marked.

    Above each panel stand its peak with the operation that reached it, and the phases, whose
    bounds are dotted lines. Refused variants are named below.

    Args:
        profiles: records of one workload, in any order.
        workload: its name.

    Raises:
        ArtifactError: as `drawable`, or a timeline that is empty or whose parts don't add up.
    """
    shown, refused = drawable(profiles, workload)
    for profile in shown:
        _check(profile)
    highest = max(max(profile["timeline"]["live_bytes"]) for profile in shown)
    size, unit = unit_of(highest)
    rows = -(-len(shown) // COLUMNS)
    notes = wrapped(refusals(refused))
    figure = new_figure(DOUBLE, 1.45 + 1.55 * rows + 0.14 * len(notes.splitlines()))
    head(
        figure,
        workload,
        "memory over one training iteration",
        f"{workload_told(shown[0])}\n"
        f"{devices_told(shown)}; 1 {unit} = {POWERS[unit]} bytes; ▼: peak",
    )
    grid = panels(figure, len(shown), sharey=True)
    for index, (axes, profile) in enumerate(zip(grid, shown, strict=True)):
        _areas(axes, profile, size)
        axes.set_title(
            f"{letter(index)}  {told(profile)}\n{_peak_told(profile, size, unit)}", pad=13
        )
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axes.tick_params(labelleft=index % COLUMNS == 0)
        if index % COLUMNS == 0:
            axes.set_ylabel(f"Memory ({unit})")
        if index + COLUMNS >= len(shown):
            axes.set_xlabel("Operation of the iteration")
    grid[0].set_ylim(0, 1.12 * highest / size)
    figure.legend(
        handles=part_handles(shown),
        title=notes or None,
        title_fontproperties={"size": SMALL},
        alignment="left",
        loc="outside lower left",
        ncols=4,
    )
    _name_phases(figure, dict(zip(grid, shown, strict=True)))
    return figure


def _areas(axes: Axes, profile: Profile, size: float) -> None:
    """The parts stacked, phases' bounds and the peak's mark."""
    timeline = profile["timeline"]
    x = _operations(profile)
    low = np.zeros(len(x))
    for part in DPSGD_PARTS:
        values = _part(profile, part) / size
        if values.any():
            axes.fill_between(
                x, low, low + values, step="post", gid=part,
                **part_style(part) | {"linewidth": 0},
            )  # fmt: skip
        low = low + values
    axes.plot(x, low, color=INK, linewidth=0.5, drawstyle="steps-post", gid="live")
    axes.set_xlim(0, max(x[-1], 1))
    bounds = [end for _, _, end in phases(profile)[:-1]]
    axes.vlines(
        bounds, 0, 1, transform=axes.get_xaxis_transform(), color=INK, linewidth=0.6,
        linestyle=(0, (1, 1.5)), gid="phases",
    )  # fmt: skip
    at = timeline["peak_at"]
    axes.annotate(
        "▼", (x[at], low[at]), (0, -1), textcoords="offset points", ha="center", va="bottom",
        fontsize=SMALL, gid="peak",
    )  # fmt: skip


def phases(profile: Profile) -> list[tuple[str, float, float]]:
    """Name, first and last operation of each phase of the iteration, in order of time."""
    x = _operations(profile)
    marks = sorted(profile["timeline"]["phases"], key=lambda mark: mark["at"])
    named = [(re.sub(r"^iter\d+_", "", mark["name"]), x[mark["at"]]) for mark in marks]
    return [(ENDS[name], start, end) for (_, start), (name, end) in pairwise(named) if name in ENDS]


def spread(centres: Sequence[float], widths: Sequence[float], gap: float) -> list[float]:
    """Centres of names in a row, moved as little as keeps them apart and within 0 to 1.

    Those that don't fit stand `gap` apart from the left on.
    """
    placed: list[float] = []
    low = 0.0
    for centre, width in zip(centres, widths, strict=True):
        placed.append(max(centre, low + width / 2))
        low = placed[-1] + width / 2 + gap
    high = 1.0
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], high - widths[index] / 2)
        high = placed[index] - widths[index] / 2 - gap
    if placed and placed[0] < widths[0] / 2:
        starts = np.cumsum([0.0, *(width + gap for width in widths[:-1])])
        return [float(start + width / 2) for start, width in zip(starts, widths, strict=True)]
    return placed


def _name_phases(figure: Figure, drawn: dict[Axes, Profile]) -> None:
    """Names above the panels, over their phases as far as there is room; fixes the layout."""
    figure.draw_without_rendering()
    for axes, profile in drawn.items():
        last = axes.get_xlim()[1]
        found = phases(profile)
        texts = [
            axes.text(0, 1.02, name, transform=axes.transAxes, ha="center", va="bottom",
                      fontsize=SMALL, color=GREY, gid="phase")
            for name, _, _ in found
        ]  # fmt: skip
        wide = axes.get_window_extent().width
        widths = [text.get_window_extent().width / wide for text in texts]
        centres = [(start + end) / 2 / last for _, start, end in found]
        for text, x in zip(texts, spread(centres, widths, GAP), strict=True):
            text.set_x(x)


def _part(profile: Profile, part: str) -> NDArray[np.float64]:
    """Bytes of one part at each point; zeros where it is not told."""
    timeline = profile["timeline"]
    zeros = [0] * len(timeline["live_bytes"])
    return np.asarray(timeline["by_part"].get(part, zeros), dtype=float)


def _operations(profile: Profile) -> list[float]:
    first = profile["timeline"]["operation_index"][0]
    return [float(index - first) for index in profile["timeline"]["operation_index"]]


def _peak_told(profile: Profile, size: float, unit: str) -> str:
    """The iteration's peak, and the operation where it is also the whole run's."""
    timeline, peak = profile["timeline"], profile["peak"]
    here = timeline["live_bytes"][timeline["peak_at"]]
    if here != peak["bytes"]:
        return f"{here / size:,.4g} {unit}; whole run: {peak['bytes'] / size:,.4g} {unit}"
    name = re.sub(r"^aten[.:]+|\.default$", "", peak["operation"])
    short = name if len(name) <= OPERATION else f"{name[: OPERATION - 1]}…"
    return f"{here / size:,.4g} {unit} in {short}"


def _check(profile: Profile) -> None:
    timeline, variant = profile["timeline"], profile["variant"]
    if not (timeline and timeline["live_bytes"]):
        raise ArtifactError(f"the profile of {variant} has no timeline; profile it anew")
    unknown = sorted(set(timeline["by_part"]) - set(DPSGD_PARTS))
    if unknown:
        raise ArtifactError(
            f"the timeline of {variant} has unknown parts: {', '.join(unknown)}; profile it anew"
        )
    total = np.sum([_part(profile, part) for part in DPSGD_PARTS], axis=0)
    if (total != np.asarray(timeline["live_bytes"])).any():
        raise ArtifactError(
            f"the parts of {variant}'s timeline don't add up to its live bytes; profile it anew"
        )
