"""What estimators of the curvature cost, in gradients, and how near they come for it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from paramscope.errors import ArtifactError
from paramscope.figures.benchmark_contenders import (
    BY_ENTRY,
    DRAWS,
    MATRICES,
    OURS,
    RANK,
    Look,
    contenders,
    look_of,
    memory,
)
from paramscope.figures.style import (
    DOUBLE,
    GREY,
    SMALL,
    count,
    head,
    letter,
    new_figure,
    note,
    styled,
)

RUNS = (
    "contender",
    "of",
    "unit",
    "budget",
    "repeat",
    "gradients",
    "rmse",
    "spearman_hessian",
    "n_entries",
)
SUMMARY = (
    "contender",
    "gradients_per_unit",
    "peak_ratio_tracked",
    "peak_ratio_rss",
    "gradients_98",
    "extrapolated_98",
    "gradients_to_ggn4",
    "extrapolated_ggn4",
)
ROW = 0.185  # inches: a contender's row


@styled
def benchmark_curvature(runs: pd.DataFrame, summary: pd.DataFrame, model: str = "") -> Figure:
    """Error and rank over cost, and each contender's numbers and peak memory.

    Dots are runs, lines join the medians over repeats by budget. Diamonds on a dotted level
    are where the summary says that a contender reaches it, hollow where that is extrapolated.
    Contenders whose budget is entries are exact, one at a time, and have no curve.

    Args:
        runs: the columns RUNS, a row a run of a contender at a budget.
        summary: the columns SUMMARY, a row a contender; gradients_98 and gradients_to_ggn4 are
            missing where they are never reached.
        model: what the title says the runs were on; nothing where empty.

    Raises:
        ArtifactError: no runs, other contenders in the summary than in the runs, two runs of
            one contender, budget and repeat, a cost that is not positive, or a diagonal that
            is neither G's nor H's.
    """
    _check(runs, summary)
    facts = summary.set_index("contender").loc[list(dict.fromkeys(runs["contender"]))]
    first = runs.drop_duplicates("contender").set_index("contender")
    costs = [name for name in SUMMARY if name.startswith(("gradients", "peak"))]
    facts = facts.astype(dict.fromkeys(costs, float)).assign(of=first["of"], unit=first["unit"])
    looks = look_of(facts)
    height = ROW * (len(facts) + 1)
    figure = new_figure(DOUBLE, 4.2 + height)
    repeats = runs.groupby(["contender", "budget"]).size()
    of = f" on {model}" if model else ""
    head(
        figure,
        "Curvature estimators",
        f"accuracy for cost{of}",
        f"{count(len(facts), 'contender')} · n = {runs['n_entries'].max():,} entries ·"
        f" {_range(repeats)} runs of each budget · unit of cost: one gradient of the same loss",
    )
    rows = figure.add_gridspec(2, 1, height_ratios=[2.5, height])
    top, bottom = rows[0].subgridspec(1, 2), rows[1].subgridspec(1, 2, width_ratios=[1.6, 1])
    curves = runs[runs["unit"] != BY_ENTRY].assign(away=1 - runs["spearman_hessian"])
    ours = curves[(curves["contender"] == OURS) & (curves["budget"] == DRAWS)]["rmse"]
    error, rank = figure.add_subplot(top[0]), figure.add_subplot(top[1])
    reached = {
        name: list(zip(facts.index, facts[f"gradients_{name}"], facts[flag], strict=True))
        for name, flag in (("98", "extrapolated_98"), ("to_ggn4", "extrapolated_ggn4"))
    }
    level = float(ours.median()) if len(ours) else None
    _curves(error, curves, "rmse", looks, level, reached["to_ggn4"])
    error.set_title(f"{letter(0)}  Error, against each one's own exact diagonal")
    error.set_ylabel("Relative RMSE")
    _told(error, level, f"{OURS},\n{DRAWS} draws")
    _curves(rank, curves, "away", looks, 1 - RANK, reached["98"])
    rank.set_title(f"{letter(1)}  Rank, against the true Hessian")
    rank.set_ylabel("1 − Spearman with exact H")
    _told(rank, 1 - RANK, f"ρ = {RANK:g}")
    table, bars = figure.add_subplot(bottom[0]), figure.add_subplot(bottom[1])
    facts = facts.sort_values("peak_ratio_tracked", kind="stable")
    contenders(table, facts, looks, letter(2))
    memory(bars, facts, looks, letter(3))
    return figure


def _check(runs: pd.DataFrame, summary: pd.DataFrame) -> None:
    if not len(runs):
        raise ArtifactError("the benchmark's table has no runs; rerun the benchmark")
    if (
        set(runs["contender"]) != set(summary["contender"])
        or summary["contender"].duplicated().any()
    ):
        raise ArtifactError(
            "the benchmark's runs and its summary are of different contenders; rerun it"
        )
    if runs.duplicated(["contender", "budget", "repeat"]).any():
        raise ArtifactError("two runs of the benchmark are of one contender, budget and repeat")
    if not (np.isfinite(runs["gradients"]) & (runs["gradients"] > 0)).all():
        raise ArtifactError("the benchmark holds a cost that is not positive; rerun it")
    unknown = sorted(set(runs["of"]) - set(MATRICES))
    if unknown:
        raise ArtifactError(f"the benchmark is of unknown diagonal(s): {', '.join(unknown)}")


def _range(values: pd.Series) -> str:
    low, high = values.min(), values.max()
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _curves(
    axes: Axes,
    runs: pd.DataFrame,
    name: str,
    looks: Mapping[str, Look],
    level: float | None,
    reached: list[tuple[Any, Any, Any]],
) -> None:
    """Column `name` over cost by contender, and the costs at which it reaches `level`."""
    drawn = runs[np.isfinite(runs[name]) & (runs[name] > 0)]
    if level is not None:
        axes.axhline(level, color=GREY, linestyle=":", linewidth=1, zorder=0, gid="level")
    ends = {}
    for contender, of_contender in drawn.groupby("contender", sort=False):
        look = looks[str(contender)].line()
        axes.plot(
            of_contender["gradients"],
            of_contender[name],
            gid=f"runs {contender}",
            **look | {"linestyle": "", "markersize": 2.6, "alpha": 0.35},
        )
        median = of_contender.groupby("budget")[["gradients", name]].median()
        axes.plot(
            median["gradients"],
            median[name],
            linewidth=1.8 if contender == OURS else 1.2,
            zorder=3,
            gid=f"median {contender}",
            **look,
        )
        ends[contender] = median.iloc[-1]
    for contender, cost, extrapolated in reached:
        if level is None or contender not in ends or not cost > 0:
            continue
        colour = looks[contender].colour
        if extrapolated:
            end = ends[contender]
            axes.plot([end["gradients"], cost], [end[name], level], color=colour, lw=0.7, ls=":")
        axes.plot(
            cost,
            level,
            "d",
            color=colour,
            markersize=5,
            markerfacecolor="white" if extrapolated else colour,
            markeredgewidth=0.8,
            zorder=4,
            gid=f"reached {contender}",
        )
    missing = len(runs) - len(drawn)
    note(axes, f"{count(missing, 'run')} not on a log axis, left out" if missing else "", y=0.96)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        near = np.log10(high / low) < 2
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if near else (1,), numticks=8))
        axis.set_major_formatter(FuncFormatter(_plain))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("Cost (gradients, CPU time)")


def _plain(value: float, _: Any = None) -> str:
    """0.01, 1, 1,000, and powers beyond, which are shorter there."""
    if value > 1000:
        return f"$10^{{{np.log10(value):.0f}}}$"
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _told(axes: Axes, level: float | None, text: str) -> None:
    """Name a dotted level beside the axes, right of all curves."""
    if level is not None:
        place = axes.get_yaxis_transform()
        style: dict[str, Any] = {"fontsize": SMALL, "color": GREY, "va": "center"}
        axes.text(1.01, level, text, transform=place, **style)
