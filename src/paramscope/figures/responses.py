"""What figures of perturbation responses share: order, words and axes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator
from numpy.typing import ArrayLike

from paramscope.errors import ArtifactError, RequestError
from paramscope.figures.classes import CLASSES, NAMES, checked, key
from paramscope.figures.style import GREY, INK, count, letter, number, seeds_told
from paramscope.names import CONTROLS, RANDOM, control_of

COLUMNS = (
    *("class", "sigma", "seed", "sign", "draw", "n_units"),
    *("ppl", "delta_log_ppl", "auc", "delta_auc"),
)  # what figures need of a table of responses
ISO_LOG_PPL = float(np.log(1.05))  # +5% perplexity, where classes are compared
CORE = 0.002  # of a response: about what noise in the measurement makes
PERPLEXITY = "Δ log perplexity"
PERPLEXITY_UNIT = "(nats / token, √ scale)"
AUC = "Δ AUC, loss attack"
AUC_UNIT = "(√ scale)"
ISO_LINE: dict[str, Any] = {"color": INK, "linewidth": 0.6, "linestyle": (0, (7, 2, 1.5, 2))}
SIGMA = "σ (noise RMS / weight RMS)"


def by_rule(paths: Sequence[Path]) -> dict[str, Path]:
    """Tables of responses by partition rule, which is the file's name without its suffix.

    Raises:
        RequestError: two files of one name.
    """
    found = {path.stem: path for path in paths}
    if len(found) < len(paths):
        raise RequestError("two tables of responses have one file name; give each rule once")
    return found


def in_order(responses: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The tables by rule, controls last.

    Raises:
        ArtifactError: no table, one without rows, or one with a class that no figure knows.
    """
    if not responses:
        raise ArtifactError("no responses to draw; give a table for one rule or more")
    for rule, table in responses.items():
        if table.empty:
            raise ArtifactError(f"the responses of rule {rule} have no rows; rerun prm_responses")
        checked(table["class"], f"rule {rule}")
    return dict(sorted(responses.items(), key=lambda item: item[0] in CONTROLS))


def rules_and_controls(
    tables: Mapping[str, pd.DataFrame],
) -> tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame]]:
    """The tables that get a panel, and by rule that of its control, where there is one.

    A control has a panel only where there is nothing else.
    """
    shown = {rule: table for rule, table in tables.items() if rule not in CONTROLS}
    if not shown:
        return dict(tables), {}
    own = {rule: tables.get(control_of(rule), tables.get(RANDOM)) for rule in shown}
    return shown, {rule: table for rule, table in own.items() if table is not None}


def counts(tables: Mapping[str, pd.DataFrame]) -> str:
    """How many noise seeds, and draws of a control's partition."""
    shown, controls = rules_and_controls(tables)
    told = [seeds_told({rule: int(table["seed"].nunique()) for rule, table in shown.items()})]
    draws = max((int(table["draw"].nunique()) for table in controls.values()), default=0)
    if draws:
        told.append(count(draws, "control draw"))
    return " · ".join(told)


def sigmas(tables: Mapping[str, pd.DataFrame]) -> list[float]:
    """Every noise level in any table, ascending."""
    return sorted({float(sigma) for table in tables.values() for sigma in table["sigma"]})


def baseline(tables: Mapping[str, pd.DataFrame]) -> str:
    """Perplexity and AUC of the model without noise, which every row implies."""
    rows = pd.concat(list(tables.values()))
    with np.errstate(all="ignore"):  # a row where the model broke down implies nothing
        ppl = (rows["ppl"] / np.exp(rows["delta_log_ppl"])).median()
    auc = (rows["auc"] - rows["delta_auc"]).median()
    return f"without noise: perplexity {number(ppl, 1)}, AUC {number(auc, 3)}"


def class_sizes(table: pd.DataFrame) -> dict[str, int]:
    """Units in each class, the mean over draws; a class without rows has none."""
    mean = table.groupby("class")["n_units"].mean().round()
    return {label: int(mean.get(label, 0)) for label in CLASSES}


def name_panel(axes: Axes, index: int, rule: str, table: pd.DataFrame) -> None:
    """Above the axes: letter, rule, and the classes' keys and units, empty ones said so."""
    nothing = "not measured" if rule in CONTROLS else "n = 0: empty"
    axes.legend(
        handles=[
            key(label, f"{NAMES[label]} ({count(n, 'unit') if n else nothing})")
            for label, n in class_sizes(table).items()
        ],
        title=f"{letter(index)}  {rule}{' (control)' if rule in CONTROLS else ''}",
        loc="lower left",
        bbox_to_anchor=(0, 1),
        alignment="left",
        borderpad=0,
        borderaxespad=0.4,
    )


def response_scale(axes: Axes, side: str, low: float, high: float, room: float = 0.11) -> None:
    """Give an axis from `low` to `high` a square-root scale, to both sides of 0.

    A response proportional to σ² is then a straight line over σ, and two responses that are
    proportional to each other a straight line from the origin; but for values well below
    CORE, where the scale is linear. Ticks are at least `room` of the axis apart.
    """
    getattr(axes, f"set_{side}scale")("function", functions=(root, square))
    getattr(axes, f"set_{side}lim")(low, high)
    axis: Any = getattr(axes, f"{side}axis")
    axis.set_ticks(_ticks(low, high, room))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))
    axis.set_minor_locator(NullLocator())


def span(inside: ArrayLike, around: ArrayLike = ()) -> tuple[float, float]:
    """Limits on a square-root scale that hold 0, all of `inside`, and of `around` what is near.

    One wide interval must not flatten all curves: what reaches further than .4 of the
    extent of `inside` is cut off.
    """
    inner = np.append(root(np.asarray(inside, dtype=float)), 0.0)
    low, high = float(inner.min()), float(inner.max())
    reach = 0.4 * (high - low) or 0.1
    outer = root(np.asarray(around, dtype=float))
    outer = np.clip(outer[np.isfinite(outer)], low - reach, high + reach)
    low, high = min([low, *outer]), max([high, *outer])
    pad = 0.04 * (high - low) or 0.1
    return float(square(low - pad)), float(square(high + pad))


def root(values: Any) -> Any:
    """Signed square roots, all but linear for values well below CORE."""
    return np.sign(values) * (np.sqrt(np.abs(values) + CORE) - np.sqrt(CORE))


def square(values: Any) -> Any:
    """The inverse of `root`."""
    return np.sign(values) * (np.square(np.abs(values) + np.sqrt(CORE)) - CORE)


def _ticks(low: float, high: float, room: float) -> list[float]:
    """0 and round numbers to both sides, as many as have room, the outermost first."""
    size = [digit * 10.0**power for power in range(4, -6, -1) for digit in (5, 3, 2, 1)]
    apart = room * (root(high) - root(low))
    ticks = [0.0]
    for tick in (sign * value for value in size for sign in (1, -1)):
        near = min(abs(root(tick) - root(other)) for other in ticks)
        if low <= tick <= high and near >= apart:
            ticks.append(tick)
    return sorted(ticks)


def iso_key() -> Line2D:
    """The legend handle of the line at +5% perplexity."""
    return Line2D([], [], label="+5% perplexity", **ISO_LINE)


def control_key(text: str) -> Line2D:
    """The legend handle of the random control."""
    return Line2D([], [], color=GREY, linewidth=0.8, label=text)
