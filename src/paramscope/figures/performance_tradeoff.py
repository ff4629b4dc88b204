"""Time of a training iteration against peak memory, a point a variant."""

from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paramscope.artifacts.profiles import (
    Profile,
    devices_told,
    memory_ratio,
    time_ratio,
    told,
    vanilla_of,
    variant_told,
    workload_told,
)
from paramscope.errors import ArtifactError
from paramscope.figures.dpsgd import drawable, method_style, refusals, wrapped
from paramscope.figures.point_labels import label_points
from paramscope.figures.pruned import log_axis
from paramscope.figures.style import DOUBLE, GREY, SMALL, head, new_figure, styled
from paramscope.units import POWERS, time_unit_of, unit_of

GUIDE: dict[str, Any] = {"color": GREY, "linewidth": 0.7, "linestyle": (0, (5, 2.5)), "zorder": 1}
BESIDE = 1.03  # room beside the points, so that an axis of alike ones shows no more than it should


@styled
def performance_tradeoff(profiles: Iterable[Profile], workload: str) -> Figure:
    """Median time over peak memory, both logarithmic, with bars from least to greatest time.

    Memory and the axis on the right are in units of vanilla's, where the guide lines cross;
    without vanilla memory is in bytes. Methods with options are hollow. What was refused, was
    only predicted, or can't be compared is named below.

    Args:
        profiles: records of one workload, in any order.
        workload: its name.

    Raises:
        ArtifactError: as `drawable`, or no variant was timed.
    """
    shown, refused = drawable(profiles, workload)
    vanilla = vanilla_of(profile for profile in shown if profile["timing"])
    timed, notes = _timed(shown, vanilla)
    if not timed:
        raise ArtifactError(f"no variant of {workload} was timed; profile one on the real device")
    if vanilla is None:
        notes.append("no timed profile of vanilla, so memory and time are not in its units")
    notes = [*refusals(refused), *notes]
    second, name = time_unit_of(min(profile["timing"]["low_s"] for profile in timed))
    size, unit = unit_of(max(profile["peak"]["bytes"] for profile in timed))
    base = size if vanilla is None else float(vanilla["peak"]["bytes"])
    x = [float(profile["peak"]["bytes"]) / base for profile in timed]
    low, y, high = (
        [float(profile["timing"][key]) / second for profile in timed]
        for key in ("low_s", "median_s", "high_s")
    )
    below = wrapped(notes)
    figure = new_figure(DOUBLE, 4.0 + 0.14 * len(below.splitlines()))
    head(
        figure,
        workload,
        "time against memory of private training",
        f"{workload_told(timed[0])}\n{devices_told(timed)}; medians of {_iterations(timed)} "
        "iterations, bars from least to greatest",
    )
    axes = figure.subplots()
    for profile, *point in zip(timed, x, low, y, high, strict=True):
        _point(axes, profile, *point)
    log_axis(axes, "x", [min(x) / BESIDE, *x, max(x) * BESIDE])
    log_axis(axes, "y", [*low, *high])
    axes.set_xlabel(f"Peak memory ({unit}, {POWERS[unit]} bytes)")
    axes.set_ylabel(f"Time an iteration ({name})")
    if below:
        figure.legend(
            handles=[],
            title=below,
            title_fontproperties={"size": SMALL},
            alignment="left",
            loc="outside lower left",
        )
    taken = [(at, from_, at, to) for at, from_, to in zip(x, low, high, strict=True)]
    if vanilla:
        time = float(vanilla["timing"]["median_s"]) / second
        taken += _guides(axes, time)
        beside = axes.twinx()
        beside.spines["right"].set_visible(True)
        log_axis(beside, "y", [value / time for value in (*low, *high)])  # the same limits
        beside.tick_params(axis="x", bottom=False, labelbottom=False)
        beside.set_ylabel(f"Time, vanilla's {time:,.4g} {name} = 1")
        axes.set_xlabel(f"Peak memory, vanilla's {base / size:,.4g} {unit} = 1")
    names = [variant_told(profile["variant"]) for profile in timed]
    label_points(figure, axes, x, y, names, taken=taken)
    return figure


def _guides(axes: Axes, time: float) -> list[tuple[float, float, float, float]]:
    """Lines at vanilla's memory and time, and where they run."""
    axes.axvline(1.0, gid="vanilla's memory", **GUIDE)
    axes.axhline(time, gid="vanilla's time", **GUIDE)
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    return [(1.0, bottom, 1.0, top), (left, time, right, time)]


def _timed(shown: list[Profile], vanilla: Profile | None) -> tuple[list[Profile], list[str]]:
    """The profiles that have a point, and why the others have none."""
    timed, notes = [], []
    for profile in shown:
        if not profile["timing"]:
            notes.append(f"{told(profile)}: no time, so no point")
        elif vanilla and None in (memory_ratio(profile, vanilla), time_ratio(profile, vanilla)):
            notes.append(f"{told(profile)}: on {profile['device']}, vanilla is not; no point")
        else:
            timed.append(profile)
    return timed, notes


def _point(axes: Axes, profile: Profile, x: float, low: float, median: float, high: float) -> None:
    style = method_style(profile["method"], hollow="+" in profile["variant"])
    bars = axes.vlines(x, low, high, color=style["color"], linewidth=0.9, zorder=3)
    bars.set_gid(f"range {profile['variant']}")
    axes.plot(x, median, gid=f"point {profile['variant']}", zorder=4, **style)


def _iterations(timed: list[Profile]) -> str:
    counts = sorted({profile["timing"]["n"] for profile in timed})
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
