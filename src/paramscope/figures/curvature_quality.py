"""How near the curvature's estimate comes to exact entries, and what nearness costs in draws."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator
from numpy.typing import NDArray

from paramscope.errors import ArtifactError
from paramscope.figures.curvature_errors import GROUPS, by_layer, over_draws, ranks
from paramscope.figures.families import COLOURS, FAMILIES, MARKERS, ROUNDING, family, key
from paramscope.figures.style import (
    DOUBLE,
    GREY,
    PALE,
    SMALL,
    count,
    head,
    letter,
    new_figure,
    note,
    number,
    styled,
)
from paramscope.names import block_number

CHECKED = ("tensor", "index", "estimate", "standard_error", "exact_ggn", "exact_hessian")
UNIT = "(nats / parameter²)"
NEGATIVE = 0.4  # the length of a decade of negative H, in decades of positive H
AROUND_ZERO = 0.4  # half the length of the linear stretch around 0, in the same
Frame = tuple[float, float]


@styled
def curvature_quality(
    checked: pd.DataFrame, groups: pd.DataFrame, quality: Mapping[str, Any], model: str
) -> Figure:
    """The estimate against exact G and H, its error over draws, and by layer and family.

    Panels a and b share one frame, which the entries of G span; an entry outside of it is
    drawn hollow at its edge and counted. The Hessian's axis is logarithmic to either side of
    a linear stretch around 0, so that its negative entries are seen.

    Args:
        checked: the columns CHECKED, a row a sampled parameter.
        groups: the columns GROUPS, a row a group of draws.
        quality: sequences, draws, n, spearman_ggn, spearman_hessian,
            median_relative_error_ggn, median_relative_error_hessian and r_gap.
        model: what the title calls the model.

    Raises:
        ArtifactError: a table without rows or with values that are not finite, no positive
            entry of G or estimate, or a record that is not of the table.
    """
    entries = _entries(checked, groups, quality)
    figure = new_figure(DOUBLE, 6.2)
    rho = {name: number(quality[f"spearman_{name}"], 3) for name in ("ggn", "hessian")}
    head(
        figure,
        model,
        "estimated curvature against exact entries",
        f"n = {len(entries):,} entries"
        f" · {count(quality['sequences'], 'sequence')} · {count(quality['draws'], 'draw')}"
        f" · Spearman {rho['ggn']} with G, {rho['hessian']} with H",
    )
    rows = figure.add_gridspec(2, 1, height_ratios=[1.25, 1])
    top, bottom = rows[0].subgridspec(1, 2), rows[1].subgridspec(1, 3)
    against_ggn = figure.add_subplot(top[0])
    against_hessian = figure.add_subplot(top[1], sharey=against_ggn)
    frame = _frame(entries)
    _against_ggn(against_ggn, entries, frame, quality)
    _against_hessian(against_hessian, entries, frame, quality)
    over_draws(figure.add_subplot(bottom[0]), groups, letter(2))
    ranks(figure.add_subplot(bottom[1]), groups, entries, letter(3))
    by_layer(figure.add_subplot(bottom[2]), entries, letter(4))
    n = entries["family"].value_counts()
    figure.legend(
        handles=[key(name, f"{name} (n = {n[name]:,})") for name in FAMILIES if name in n],
        loc="outside lower center",
        ncols=len(FAMILIES),
        handlelength=1,
        columnspacing=1.5,
    )
    return figure


def _entries(
    checked: pd.DataFrame, groups: pd.DataFrame, quality: Mapping[str, Any]
) -> pd.DataFrame:
    """The entries with layer, family, `error` (relative) and `zero` (G is 0 but for rounding)."""
    for name, table, columns in (("spot check", checked, CHECKED), ("draws", groups, GROUPS)):
        if not len(table):
            raise ArtifactError(f"the table of the {name} has no rows; rerun the spot check")
        values = table[list(columns)].select_dtypes("number").to_numpy(dtype=float)
        if not np.isfinite(values).all():
            raise ArtifactError(
                f"the table of the {name} holds values that are not finite; rerun the spot check"
            )
    if quality["n"] != len(checked):
        raise ArtifactError(
            f"the record of the spot check is of {quality['n']} entries, its table of"
            f" {len(checked)}; rerun the spot check"
        )
    if not ((checked["exact_ggn"] > 0) & (checked["estimate"] > 0)).any():
        raise ArtifactError("no sampled entry has both G and its estimate > 0: nothing to compare")
    entries = checked.reset_index(drop=True).assign(
        layer=[block_number(name) for name in checked["tensor"]],
        family=[family(name) for name in checked["tensor"]],
    )
    exact = entries["exact_ggn"]
    entries["zero"] = exact.abs() <= ROUNDING * exact[exact > 0].median()
    entries["error"] = (entries["estimate"] / exact.where(~entries["zero"]) - 1).abs()
    return entries


def _frame(entries: pd.DataFrame) -> Frame:
    """Limits that hold G and the estimates, rounding left out, and the largest H."""
    real = entries[~entries["zero"]]
    values = real[["estimate", "exact_ggn"]].to_numpy()
    low, high = values[values > 0].min(), max(values.max(), real["exact_hessian"].max())
    pad = (high / low) ** 0.05
    return float(low / pad), float(high * pad)


def _scatter(axes: Axes, entries: pd.DataFrame, x: str, across: Frame, frame: Frame) -> int:
    """The estimate over column `x` in the families' marks; how many are at the frame's edge."""
    places, heights = entries[x].clip(*across), entries["estimate"].clip(*frame)
    outside = (places != entries[x]) | (heights != entries["estimate"])
    for name in FAMILIES:
        for hollow in (False, True):
            shown = (entries["family"] == name) & (outside == hollow)
            if not shown.any():
                continue
            if not hollow:
                axes.errorbar(
                    places[shown],
                    heights[shown],
                    yerr=entries.loc[shown, "standard_error"],
                    fmt="none",
                    ecolor=COLOURS[name],
                    elinewidth=0.6,
                    alpha=0.4,
                    zorder=1,
                )
            axes.plot(
                places[shown],
                heights[shown],
                linestyle="",
                marker=MARKERS[name],
                markersize=2.6,
                color=COLOURS[name],
                markerfacecolor="white" if hollow else COLOURS[name],
                markeredgewidth=0.6 if hollow else 0,
                alpha=1 if hollow else 0.7,
                clip_on=not hollow,
                zorder=4 if hollow else 3,
                gid=f"{'edge' if hollow else 'entry'} {name}",
            )
    axes.set_yscale("log")
    axes.set_ylim(*frame)
    return int(outside.sum())


def _against_ggn(
    axes: Axes, entries: pd.DataFrame, frame: Frame, quality: Mapping[str, Any]
) -> None:
    axes.set_xscale("log")
    axes.set_xlim(*frame)
    _equal(axes, frame)
    outside = _scatter(axes, entries, "exact_ggn", frame, frame)
    zero = int(entries["zero"].sum())
    told = [
        "bars: ± standard error",
        f"median relative error {_percent(quality['median_relative_error_ggn'])}",
        f"{zero:,} with G = 0 but for rounding" if zero else "",
        _told(outside),
    ]
    note(axes, "\n".join(filter(None, told)), y=0.04)
    axes.set_title(f"{letter(0)}  Estimate against Gauss–Newton")
    axes.set_xlabel(f"Exact diag G {UNIT}")
    axes.set_ylabel(f"Estimate {UNIT}")


def _against_hessian(
    axes: Axes, entries: pd.DataFrame, frame: Frame, quality: Mapping[str, Any]
) -> None:
    low, high = frame
    least = min(float(entries["exact_hessian"].min()), 0.0)
    across = (min(5 * least, -10 * low) if least < -low else -low, high)
    _two_sided(axes, low)
    axes.set_xlim(*across)
    axes.axvspan(-low, low, color=PALE, alpha=0.5, linewidth=0, zorder=0, gid="linear")
    _equal(axes, frame)
    outside = _scatter(axes, entries, "exact_hessian", across, frame)
    _decades(axes, across, low)
    axes.tick_params(axis="y", labelleft=False)
    negative = int((entries["exact_hessian"] < 0).sum())
    told = [
        f"median relative error {_percent(quality['median_relative_error_hessian'])}",
        f"R gap ‖H − G‖ / ‖H‖ {number(quality['r_gap'])}",
        f"{negative:,} with H < 0",
        _told(outside),
    ]
    note(axes, "\n".join(filter(None, told)), y=0.04)
    axes.set_title(f"{letter(1)}  Estimate against the Hessian")
    axes.set_xlabel("Exact diag H (linear in the grey stretch)")


def _two_sided(axes: Axes, low: float) -> None:
    """A scale that is logarithmic beyond ± `low`, denser below, and linear between."""

    def forward(values: NDArray[Any]) -> NDArray[Any]:
        size = np.abs(values) / low
        decades = np.log10(np.maximum(size, 1))
        side = np.where(values < 0, NEGATIVE, 1.0)
        return np.asarray(np.sign(values) * (AROUND_ZERO * np.minimum(size, 1) + side * decades))

    def back(places: NDArray[Any]) -> NDArray[Any]:
        size = np.abs(places)
        side = np.where(places < 0, NEGATIVE, 1.0)
        beyond = 10 ** (np.maximum(size - AROUND_ZERO, 0) / side)
        return np.asarray(np.sign(places) * low * np.minimum(size / AROUND_ZERO, 1) * beyond)

    axes.set_xscale("function", functions=(forward, back))


def _decades(axes: Axes, across: Frame, low: float) -> None:
    """Ticks at 0 and at round powers of ten to either side, as many as there is room for."""
    least, high = across
    first = int(np.ceil(np.log10(low) + 0.6))  # clear of the 0
    last = int(np.floor(np.log10(high)))
    step = max(1, -(-(last - first) // 3))
    powers = list(range(last, first - 1, -step))
    ticks = [(0.0, "0"), *((10.0**n, f"$10^{{{n}}}$") for n in powers)]
    if least < -10 * low:
        n = int(np.floor(np.log10(-least)))
        ticks.append((-(10.0**n), f"−$10^{{{n}}}$"))
    axes.set_xticks([place for place, _ in ticks], [text for _, text in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=SMALL)


def _equal(axes: Axes, frame: Frame) -> None:
    places = np.geomspace(*frame, 100)
    axes.plot(places, places, color=GREY, linewidth=0.8, linestyle="--", zorder=2, gid="equal")


def _told(outside: int) -> str:
    return f"hollow: {outside:,} outside the frame" if outside else ""


def _percent(share: float | None) -> str:
    return f"{number(None if share is None else 100 * share, 1)}%"
