"""How well membership scores tell members from non-members, beside what text alone tells."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, NullFormatter

from paramscope.errors import ArtifactError
from paramscope.figures.style import (
    DOUBLE,
    GREY,
    INK,
    PALE,
    SMALL,
    count,
    head,
    letter,
    new_figure,
    number,
    styled,
)

DOCUMENTS = ("member", "probe", "loss")
# Okabe and Ito's palette (jfly.uni-koeln.de/color), and dashes that do without colour
LOOKS: dict[str, tuple[str, str, Any]] = {
    "loss": ("Loss", "#0072B2", "-"),
    "zlib": ("zlib", "#E69F00", (0, (1, 1))),
    "min_k": ("Min-K%", "#009E73", (0, (5, 1.5))),
    "min_k_plus_plus": ("Min-K%++", "#D55E00", (0, (3, 1, 1, 1))),
    "calibrated": ("Calibrated", "#CC79A7", (0, (8, 1.5, 1.5, 1.5))),
    "lira": ("LiRA", INK, "-"),
}
BLIND = {"zlib_length": "zlib length", "bag_of_words": "bag of words"}
SIDES = ((True, "members", "#882255", "-"), (False, "non-members", "#44AA99", (0, (4, 1.5))))
BINS = 24
ROOM = 1.7  # the height of the losses' panel, in that of the highest bar: the key is above
FALSE_POSITIVES = 0.05


@styled
def membership_scores(
    documents: pd.DataFrame, summary: Mapping[str, Any], gate: Mapping[str, Any], model: str
) -> Figure:
    """ROC curves of all scores, losses of members and non-members, and AUC beside the blind gate.

    Args:
        documents: the columns DOCUMENTS, a row a document; `loss` is the score, so negated.
        summary: n_members, n_nonmembers, bootstrap, scores (auc and tpr_5 with _low and _high,
            and tpr_1, which may be null), curves (fpr, tpr, low, high) and loss_gap.
        gate: passed, alpha, and the blind scores: name, auc and p_holm.
        model: what the title calls the model.

    Raises:
        ArtifactError: a table that the record is not of, or a score that has no name here.
    """
    judging = documents[~documents["probe"].astype(bool)]
    members = int(judging["member"].sum())
    counts = members, len(judging) - members
    if counts != (summary["n_members"], summary["n_nonmembers"]):
        raise ArtifactError(
            f"the record of the scores is of {summary['n_members']} members and "
            f"{summary['n_nonmembers']} non-members, their table of {counts[0]} and {counts[1]}; "
            "rerun membership"
        )
    unknown = [name for name in summary["scores"] if name not in LOOKS]
    if unknown:
        raise ArtifactError(f"the record holds scores unknown here: {', '.join(unknown)}")
    figure = new_figure(DOUBLE, 4.4)
    head(
        figure,
        model,
        "how well membership attacks tell members",
        f"judged on {count(counts[0], 'member')} and {count(counts[1], 'non-member')}"
        f" · 95% intervals from {count(summary['bootstrap'], 'resample')} of documents",
    )
    halves = figure.add_gridspec(1, 2, width_ratios=[1.35, 1])
    beside = halves[1].subgridspec(2, 1, height_ratios=[1, 1.25])
    _curves(figure.add_subplot(halves[0]), summary)
    _losses(figure.add_subplot(beside[0]), judging, summary["loss_gap"])
    _areas(figure.add_subplot(beside[1]), summary["scores"], gate)
    return figure


def _curves(axes: Axes, summary: Mapping[str, Any]) -> None:
    """ROC curves as the steps that they are, from one false positive on, and their numbers."""
    low = min(1 / summary["n_nonmembers"], 1 / summary["n_members"])
    rates = np.geomspace(low, 1, 50)
    axes.plot(rates, rates, color=GREY, linewidth=0.8, linestyle="--", zorder=2.45, gid="chance")
    axes.axvline(FALSE_POSITIVES, color=GREY, linewidth=0.8, linestyle=":", zorder=1)
    under = low / 10  # a rate of 0 is below the frame
    for name in _shown(summary["scores"]):
        _, colour, dashes = LOOKS[name]
        fpr, tpr, least, most = (
            np.asarray(summary["curves"][name][key]) for key in ("fpr", "tpr", "low", "high")
        )
        axes.fill_between(
            fpr,
            np.maximum(least, under),
            np.maximum(most, under),
            step="post",
            color=colour,
            alpha=0.07,
            linewidth=0,
            zorder=2,
            gid=f"band {name}",
        )
        steps = tpr > 0
        if not steps.all():  # the first rises from below the frame
            fpr, tpr = np.append(fpr[steps][:1], fpr[steps]), np.append(under, tpr[steps])
        axes.plot(
            fpr,
            tpr,
            color=colour,
            linestyle=dashes,
            drawstyle="steps-post",
            zorder=3,
            gid=f"curve {name}",
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, 1)
    axes.set_ylim(low / 1.15, 1.06)  # one true positive is off the axis
    percent = FuncFormatter(lambda rate, _: f"{100 * rate:g}%")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(percent)
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("False positive rate")
    axes.set_ylabel("True positive rate")
    axes.set_title(f"{letter(0)}  ROC curves, with bands over documents")
    _table(axes, summary["scores"])


def _table(axes: Axes, scores: Mapping[str, Mapping[str, Any]]) -> None:
    """The key, with AUC and true positive rates, below the diagonal where no curve should be."""
    columns = {"auc": ("AUC", 3), "tpr_5": ("TPR at\n5% FPR", 2)}
    if any(numbers.get("tpr_1") is not None for numbers in scores.values()):
        columns["tpr_1"] = ("TPR at\n1% FPR", 2)
    right = [0.99 - 0.145 * place for place in range(len(columns))][::-1]
    left = right[0] - 0.38
    rows = _shown(scores)
    height = 0.048
    top = 0.03 + height * len(rows)
    corner, size = (left - 0.01, 0.01), (1.01 - left, top + 2 * height)
    axes.add_patch(
        Rectangle(corner, *size, transform=axes.transAxes, fc="white", ec="none", zorder=2.4)
    )
    put: dict[str, Any] = {"transform": axes.transAxes, "fontsize": SMALL, "va": "center"}
    for x, (title, _) in zip(right, columns.values(), strict=True):
        axes.text(x, top + 0.6 * height, title, **(put | {"va": "bottom"}), ha="right", zorder=6)
    for place, name in enumerate(rows):
        y = top - height * place
        text, colour, dashes = LOOKS[name]
        axes.plot(
            [left, left + 0.085],
            [y, y],
            color=colour,
            linestyle=dashes,
            transform=axes.transAxes,
            zorder=6,
            gid=f"key {name}",
        )
        axes.text(left + 0.105, y, text, **put, zorder=6)
        for x, (key, (_, digits)) in zip(right, columns.items(), strict=True):
            axes.text(x, y, number(scores[name][key], digits), **put, ha="right", zorder=6)


def _losses(axes: Axes, judging: pd.DataFrame, gap: Mapping[str, Any]) -> None:
    """Densities of the documents' losses, and their means."""
    losses = -judging["loss"].astype(float)
    edges = np.linspace(losses.min(), losses.max(), BINS + 1)
    member = judging["member"].astype(bool)
    highest = 0.0
    for side, text, colour, dashes in SIDES:
        own = losses[member == side]
        look: dict[str, Any] = {"color": colour, "linestyle": dashes}
        density, _ = np.histogram(own, edges, density=True)
        axes.stairs(density, edges, fill=True, color=colour, alpha=0.18, gid=f"losses {text}")
        axes.stairs(density, edges, linewidth=1.1, label=text, **look)
        axes.axvline(own.mean(), ymax=1 / ROOM, linewidth=0.9, gid=f"mean {text}", **look)
        highest = max(highest, density.max())
    axes.set_ylim(0, ROOM * highest)
    axes.set_xlabel("Loss of a document (nats a token)")
    axes.set_ylabel("Density")
    told = f"{number(gap['value'])} [{number(gap['low'])}, {number(gap['high'])}]"
    axes.plot([], [], linestyle="", label=f"gap of means {told}")
    axes.legend(loc="upper left", borderpad=0, borderaxespad=0.2, labelspacing=0.3)
    axes.set_title(f"{letter(1)}  Losses, lines their means")


def _areas(axes: Axes, scores: Mapping[str, Mapping[str, Any]], gate: Mapping[str, Any]) -> None:
    """AUC with interval a row, then the blind scores with their p."""
    rows = _shown(scores)
    ticks = []
    for place, name in enumerate(rows):
        text, colour, _ = LOOKS[name]
        numbers = scores[name]
        axes.plot(
            [numbers["auc_low"], numbers["auc_high"]],
            [place, place],
            color=colour,
            gid=f"interval {name}",
        )
        axes.plot(numbers["auc"], place, "o", color=colour, markersize=4, gid=f"auc {name}")
        ticks.append((float(place), text))
    start = len(rows) + 1
    axes.axhline(start - 1.4, color=PALE, linewidth=0.8, zorder=0)
    verdict = "passed" if gate["passed"] else "FAILED"
    axes.text(
        0.98,
        start - 0.8,
        f"blind gate {verdict}",
        transform=axes.get_yaxis_transform(),
        ha="right",
        va="center",
        fontsize=SMALL,
        color=GREY,
    )
    for place, blind in enumerate(gate["scores"]):
        y = start + place
        axes.plot(
            blind["auc"],
            y,
            "D",
            color=GREY,
            markerfacecolor="white",
            markersize=4,
            markeredgewidth=0.9,
            gid=f"blind {blind['name']}",
        )
        high = blind["auc"] > 0.8  # no room to its right
        axes.text(
            blind["auc"] - 0.025 if high else max(blind["auc"], 0.5) + 0.025,
            y,
            f"p = {number(blind['p_holm'])}",
            ha="right" if high else "left",
            va="center",
            fontsize=SMALL,
            color=GREY,
        )
        ticks.append((y, BLIND.get(blind["name"], blind["name"])))
    values = [n[key] for n in scores.values() for key in ("auc_low", "auc_high")]
    values += [blind["auc"] for blind in gate["scores"]]
    axes.axvline(0.5, color=GREY, linewidth=0.8, linestyle="--", zorder=0, gid="chance")
    axes.set_xlim(min(0.4, min(values) - 0.03), 1.02)
    axes.set_ylim(start + len(gate["scores"]) - 0.4, -0.6)
    axes.set_yticks([y for y, _ in ticks], [text for _, text in ticks])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("AUC (chance: 0.5)")
    axes.set_title(f"{letter(2)}  AUC, beside text alone")


def _shown(scores: Mapping[str, Any]) -> list[str]:
    return [name for name in LOOKS if name in scores]
