"""What memory holds at the peak of training, by part and variant, against non-private training."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from paramscope.artifacts.profiles import (
    Profile,
    devices_told,
    memory_ratio,
    told,
    vanilla_of,
    workload_told,
)
from paramscope.figures.dpsgd import (
    PREDICTED,
    drawable,
    part_handles,
    part_style,
    refusals,
    wrapped,
)
from paramscope.figures.style import DOUBLE, GREY, INK, NOTHING, SMALL, head, new_figure, styled
from paramscope.names import DPSGD_PARTS
from paramscope.units import POWERS, unit_of

THICK = 0.68  # of a row
FEWEST = 4  # rows that there is room for
NET: dict[str, Any] = {"marker": "D", "color": INK, "markersize": 3.2, "linestyle": "none"}
COLUMN_ENDS = (46, 76)  # pt right of the second panel: where its two columns of numbers end
WHOLE = 0.995  # of a peak; a greater share with a name is not remarked on


@styled
def memory_breakdown_comparison(profiles: Iterable[Profile], workload: str) -> Figure:
    """Two panels, a row a variant: the parts of its peak, and by part what differs from vanilla's.

    Parts greater than vanilla's stand right of 0, smaller ones left, their sum is the diamond.
    The second panel is left out where there is nothing to compare with vanilla. Refused variants
    are named below.

    Args:
        profiles: records of one workload, in any order.
        workload: its name.

    Raises:
        ArtifactError: as `drawable`.
    """
    shown, refused = drawable(profiles, workload)
    vanilla = vanilla_of(shown)
    notes = _notes(shown, refused, vanilla)
    figure = new_figure(
        DOUBLE, 1.75 + 0.215 * max(len(shown), FEWEST) + 0.14 * len(notes.splitlines())
    )
    size, unit = unit_of(max(profile["peak"]["bytes"] for profile in shown))
    head(
        figure,
        workload,
        "what memory holds at the peak of a training iteration",
        f"{workload_told(shown[0])}\n{devices_told(shown)}; 1 {unit} = {POWERS[unit]} bytes",
    )
    compared = any(p is not vanilla and memory_ratio(p, vanilla) is not None for p in shown)
    whole, *others = figure.subplots(1, 2 if compared else 1, sharey=True, squeeze=False)[0]
    _peaks(whole, shown, size, unit)
    if vanilla and compared:
        _extras(others[0], shown, vanilla)
    _rows(whole, shown)
    for axes in (whole, *others):
        axes.tick_params(axis="y", length=0)
    handles: list[Patch | Line2D] = [*part_handles(shown)]
    if compared:
        handles.append(Line2D([], [], label="difference in all", **NET))
    if any(profile["predicted"] for profile in shown):
        handles.append(Patch(label="predicted", **PREDICTED | {"facecolor": "white"}))
    figure.legend(
        handles=handles,
        title=notes or None,
        title_fontproperties={"size": SMALL},
        alignment="left",
        loc="outside lower left",
        ncols=5,
    )
    return figure


def _peaks(axes: Axes, shown: list[Profile], size: float, unit: str) -> None:
    """Stacked bars, the total at each one's end."""
    left = np.zeros(len(shown))
    for part in DPSGD_PARTS:
        widths = np.array([profile["breakdown"][part] / size for profile in shown])
        axes.barh(range(len(shown)), widths, THICK, left, gid=part, label=part, **part_style(part))
        left += widths
    _outline(axes, shown, np.zeros(len(shown)), left)
    for row, profile in enumerate(shown):
        total = profile["peak"]["bytes"] / size
        axes.annotate(
            f"{total:,.4g}",
            (total, row),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=SMALL,
            gid="total",
        )
    axes.set_xlim(0, 1.16 * left.max())
    axes.set_xlabel(f"Memory at the peak ({unit})")
    axes.set_title("a  Parts of the peak")


def _extras(axes: Axes, shown: list[Profile], vanilla: Profile) -> None:
    """Bars right of 0 for what is more than vanilla's, left of 0 for what is less."""
    compared = [memory_ratio(profile, vanilla) is not None for profile in shown]
    extra = {
        part: np.array(
            [
                (profile["breakdown"][part] - vanilla["breakdown"][part]) * known
                for profile, known in zip(shown, compared, strict=True)
            ],
            dtype=float,
        )
        for part in DPSGD_PARTS
    }
    more = sum(np.maximum(values, 0) for values in extra.values())
    less = sum(np.minimum(values, 0) for values in extra.values())
    size, unit = unit_of(max(np.max(more), -np.min(less)))
    ends = [np.zeros(len(shown)), np.zeros(len(shown))]
    for part, values in extra.items():
        for end, side in zip(ends, (np.minimum(values, 0), np.maximum(values, 0)), strict=True):
            axes.barh(range(len(shown)), side / size, THICK, end, gid=part, **part_style(part))
            end += side / size
    _outline(axes, shown, *ends)
    for row, profile in enumerate(shown):
        net = profile["peak"]["bytes"] - vanilla["peak"]["bytes"]
        ratio = memory_ratio(profile, vanilla)
        if ratio is not None and profile is not vanilla:
            axes.plot(net / size, row, gid="net", zorder=4, markeredgecolor="white",
                      markeredgewidth=0.5, **NET)  # fmt: skip
        told_difference = f"{_signed(net / size)} {unit}" if ratio is not None else NOTHING
        told_ratio = f"×{ratio:.2f}" if ratio is not None else ""
        for text, column in zip(
            ("", "×1") if profile is vanilla else (told_difference, told_ratio),
            COLUMN_ENDS,
            strict=True,
        ):
            axes.annotate(
                text, (1, row), (column, 0), xycoords=axes.get_yaxis_transform(),
                textcoords="offset points", ha="right", va="center", fontsize=SMALL, gid="extra",
                annotation_clip=False,
            )  # fmt: skip
    axes.axvline(0, color=INK, linewidth=0.6, zorder=3)
    low, high = ends[0].min(), ends[1].max()
    room = 0.05 * (high - low) or 1.0
    axes.set_xlim(low - room, high + room)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.set_xlabel(f"Difference to vanilla's peak ({unit})")
    axes.set_title("b  More (right) and less (left) than vanilla")


def _outline(axes: Axes, shown: list[Profile], low: Any, high: Any) -> None:
    """A dashed frame around the bars of what was predicted."""
    for row, profile in enumerate(shown):
        if profile["predicted"] and high[row] > low[row]:
            axes.barh(
                row, high[row] - low[row], THICK, low[row], fill=False, zorder=3.5,
                gid="predicted", **PREDICTED,
            )  # fmt: skip


def _rows(axes: Axes, shown: list[Profile]) -> None:
    axes.set_yticks(range(len(shown)), [told(profile) for profile in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    for label, profile in zip(axes.get_yticklabels(), shown, strict=True):
        label.set_color(GREY if profile["predicted"] else INK)


def _notes(shown: list[Profile], refused: list[Profile], vanilla: Profile | None) -> str:
    """What the figure leaves out or can't say, on lines."""
    notes = refusals(refused)
    if vanilla is None:
        notes.append("no profile of vanilla, so nothing is compared with it")
    for profile in shown:
        if vanilla and memory_ratio(profile, vanilla) is None:
            notes.append(f"{told(profile)}: other type of device than vanilla's, not compared")
        if profile["explained"] is not None and profile["explained"] < WHOLE:
            share = f"{100 * profile['explained']:.3g}%"
            notes.append(
                f"{told(profile)}: the parts are {share} of what the device's allocator held"
            )
    return wrapped(notes)


def _signed(value: float) -> str:
    """Three digits or all whole ones, with the sign: `+12.3`, `−1,234`."""
    if not value:
        return "0"
    decimals = max(0, 2 - int(np.floor(np.log10(abs(value)))))
    return f"{value:+,.{min(decimals, 3)}f}".replace("-", "−")
