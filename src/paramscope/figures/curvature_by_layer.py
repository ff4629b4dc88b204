"""How curvature is spread over a model's depth and the kinds of its tensors."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter

from paramscope.errors import ArtifactError
from paramscope.figures.curvature_shares import (
    BIAS,
    FULL,
    HOLLOW,
    TINY,
    WEIGHT,
    layer_shares,
    model_shares,
    outside_layers,
)
from paramscope.figures.families import (
    COLOURS,
    FAMILIES,
    ROUNDING,
    family,
    module,
    short_names,
)
from paramscope.figures.style import (
    DOUBLE,
    GREY,
    INK,
    PALE,
    count,
    head,
    letter,
    new_figure,
    note,
    styled,
)
from paramscope.names import OUTSIDE

SUMMARY = ("tensor", "layer", "role", "n", "draws", "mean", "q05", "q95", "se_mean")
COLUMNS = 5  # at most
ROW, BOTTOM = 1.45, 2.4  # inches: a row of kinds; the row below them
MEAN = "Mean diag G (nats / parameter²)"


@styled
def curvature_by_layer(summary: pd.DataFrame, model: str) -> Figure:
    """A panel a kind of tensor: mean curvature over layers; what is outside; shares of the trace.

    Lines are means over a tensor's entries, bars ± the mean standard error of an entry; the
    band is from the 5% to the 95% quantile of a weight's entries. Biases are dashed, grey and
    hollow, pale lines the weights of the other kinds. A mean that is 0 but for rounding, or
    negative, is told instead of drawn.

    Args:
        summary: the columns SUMMARY, a row a tensor; `layer` is -1 outside the blocks,
            `se_mean` missing for a single draw.
        model: what the title calls the model.

    Raises:
        ArtifactError: no rows, two tensors of one module and role in a layer, values that are
            not finite, an unknown role, or no positive mean.
    """
    tensors = _tensors(summary)
    blocks, outside = tensors[tensors["layer"] != OUTSIDE], tensors[tensors["layer"] == OUTSIDE]
    kinds = _kinds(blocks)
    colours = _shades(blocks, kinds)
    rows = -(-len(kinds) // COLUMNS)
    columns = -(-len(kinds) // max(rows, 1))
    figure = new_figure(DOUBLE, 1.2 + ROW * rows + BOTTOM)
    draws = sorted(set(tensors["draws"]))
    head(
        figure,
        model,
        "curvature by layer and kind of tensor",
        f"{count(int(tensors['n'].sum()), 'parameter')} in {count(len(tensors), 'tensor')},"
        f" {count(blocks['layer'].nunique(), 'layer')} · "
        + (count(draws[0], "draw") if len(draws) == 1 else f"{draws[0]} to {draws[-1]} draws"),
    )
    parts = figure.add_gridspec(2, 1, height_ratios=[max(ROW * rows, 0.01), BOTTOM])
    grid = parts[0].subgridspec(max(rows, 1), max(columns, 1))
    limits = _limits(tensors)
    for index, kind in enumerate(kinds):
        row, column = divmod(index, columns)
        axes = figure.add_subplot(grid[row, column])
        _over_depth(axes, blocks, kind)
        axes.set_title(f"{letter(index)}  {_wrapped(kind, 100 // columns - 4)}")
        _value_axis(axes, limits, "y")
        _depth_axis(axes, blocks)
        if column == 0:
            axes.set_ylabel(MEAN.replace(" (", "\n("))
        else:
            axes.tick_params(axis="y", which="both", labelleft=False)
        if row == rows - 1:
            axes.set_xlabel("Layer")
    bottom = parts[1].subgridspec(1, 3, width_ratios=[1, 1, 1.25])
    dots, bars, stack = (figure.add_subplot(bottom[n]) for n in range(3))
    outside_layers(dots, outside, letter(len(kinds)))
    _value_axis(dots, limits, "x")
    dots.set_xlabel(MEAN)
    model_shares(bars, tensors, letter(len(kinds) + 1))
    layer_shares(stack, blocks, colours, letter(len(kinds) + 2))
    figure.legend(handles=_keys(tensors, colours), loc="outside lower center", ncols=6)
    return figure


def _tensors(summary: pd.DataFrame) -> pd.DataFrame:
    """The summary with kind (the module's shortest name), family, trace, and `zero`."""
    if not len(summary):
        raise ArtifactError("the summary of the curvature has no rows; rerun the curvature")
    needed = summary[["n", "mean", "q05", "q95"]].to_numpy(dtype=float)
    if not np.isfinite(needed).all():
        raise ArtifactError(
            "the summary of the curvature holds values that are not finite; rerun the curvature"
        )
    unknown = sorted(set(summary["role"]) - {WEIGHT, BIAS})
    if unknown:
        raise ArtifactError(f"unknown role(s) of tensors: {', '.join(unknown)}")
    if not (summary["mean"] > 0).any():
        raise ArtifactError("no tensor has a positive mean curvature: there is nothing to draw")
    paths = [module(name) for name in summary["tensor"]]
    in_block = summary["layer"] != OUTSIDE
    names = short_names([path for path, inside in zip(paths, in_block, strict=True) if inside])
    tensors = summary.reset_index(drop=True).assign(
        kind=[
            names.get(path, path) if i else path for path, i in zip(paths, in_block, strict=True)
        ],
        family=[family(name) for name in summary["tensor"]],
        se_mean=summary["se_mean"].to_numpy(dtype=float),  # all None for a single draw
        trace=summary["n"].to_numpy() * summary["mean"].to_numpy(),
    )
    twice = tensors.duplicated(["layer", "kind", "role"])
    if twice.any():
        raise ArtifactError(
            f"two tensors are {tensors['tensor'][twice].iloc[0]} by layer, module and role"
        )
    mean = tensors["mean"]
    tensors["zero"] = mean.abs() <= ROUNDING * mean[mean > 0].median()
    return tensors


def _kinds(blocks: pd.DataFrame) -> list[str]:
    """Kinds within blocks, by family, in the model's order within one."""
    found = blocks[["family", "kind"]].drop_duplicates()
    return [kind for name in FAMILIES for kind in found.loc[found["family"] == name, "kind"]]


def _shades(blocks: pd.DataFrame, kinds: list[str]) -> dict[str, Any]:
    """A colour a kind: its family's, lighter for each further kind of the family."""
    of_kind = dict(zip(blocks["kind"], blocks["family"], strict=True))
    shades = {}
    for name in FAMILIES:
        members = [kind for kind in kinds if of_kind[kind] == name]
        for place, kind in enumerate(members):
            white = 0.7 * place / max(len(members) - 1, 2)
            shades[kind] = tuple((1 - white) * np.array(to_rgb(COLOURS[name])) + white)
    return shades


def _limits(tensors: pd.DataFrame) -> tuple[float, float]:
    """Limits that hold all means and, of the quantiles, what is within two decades of them."""
    real = tensors[~tensors["zero"] & (tensors["mean"] > 0)]
    low, high = real["mean"].min(), real["mean"].max()
    least = real.loc[real["q05"] > 0, "q05"].min()
    most = real["q95"].max()
    low, high = min(low, max(least, low / 100) if least > 0 else low), max(high, most)
    pad = (high / low) ** 0.05
    room = (high / low) ** (0.25 if tensors["zero"].any() else 0.0)  # for what is told of them
    return float(low / pad / room), float(high * pad)


def _over_depth(axes: Axes, blocks: pd.DataFrame, kind: str) -> None:
    drawn = blocks[~blocks["zero"] & (blocks["mean"] > 0)].sort_values("layer")
    for other, rows in drawn[drawn["role"] == WEIGHT].groupby("kind"):
        if other != kind:
            axes.plot(rows["layer"], rows["mean"], color=PALE, linewidth=0.7, zorder=0)
    drawn = drawn[drawn["kind"] == kind]
    weights = drawn[drawn["role"] == WEIGHT]
    of_kind = blocks[blocks["kind"] == kind]
    colour = COLOURS[of_kind["family"].iloc[0]]
    axes.fill_between(
        weights["layer"],
        weights["q05"].clip(lower=TINY),
        weights["q95"],
        color=colour,
        alpha=0.2,
        linewidth=0,
        zorder=1,
        gid=f"quantiles {kind}",
    )
    few = blocks["layer"].nunique() < 16
    for role, look in ((WEIGHT, {"color": colour, **FULL}), (BIAS, {"color": GREY, **HOLLOW})):
        rows = drawn[drawn["role"] == role]
        low = (rows["mean"] - rows["se_mean"]).clip(lower=TINY)
        axes.vlines(
            rows["layer"],
            low,
            rows["mean"] + rows["se_mean"],
            color=look["color"],
            linewidth=0.9,
            zorder=2,
            gid=f"error {role} {kind}",
        )
        axes.plot(
            rows["layer"],
            rows["mean"],
            markersize=3 if few else 1.6,
            zorder=3,
            gid=f"mean {role} {kind}",
            **look,
        )
    _remark(axes, of_kind)


def _remark(axes: Axes, rows: pd.DataFrame) -> None:
    """What of a kind is not on a logarithmic axis."""
    told = []
    for role in (WEIGHT, BIAS):
        of_role = rows[rows["role"] == role]
        zero = int(of_role["zero"].sum())
        if zero:
            where = "" if zero == len(of_role) else f"\nin {count(zero, 'layer')}"
            told.append(f"{role}: 0 but\nfor rounding{where}")
    negative = int((~rows["zero"] & (rows["mean"] <= 0)).sum())
    if negative:
        told.append(f"{count(negative, 'mean')} < 0,\nnot drawn")
    note(axes, "\n".join(told), y=0.04)


def _value_axis(axes: Axes, limits: tuple[float, float], side: str) -> None:
    getattr(axes, f"set_{side}scale")("log")
    getattr(axes, f"set_{side}lim")(*limits)
    axis = getattr(axes, f"{side}axis")
    axis.set_major_locator(LogLocator(numticks=5))
    axis.set_minor_formatter(NullFormatter())


def _depth_axis(axes: Axes, blocks: pd.DataFrame) -> None:
    layers = sorted(set(blocks["layer"]))
    axes.set_xticks(layers[:: max(1, -(-len(layers) // 5))])
    pad = max(0.25, 0.04 * len(layers))
    axes.set_xlim(layers[0] - pad, layers[-1] + pad)


def _wrapped(kind: str, width: int) -> str:
    """A name in lines of at most `width` characters, broken after `_` or `.` where it has one."""
    parts = re.findall(r"[^_.]*[_.]?", kind)
    lines = [""]
    for part in parts:
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n     ".join(lines)


def _keys(tensors: pd.DataFrame, colours: Mapping[str, Any]) -> list[Any]:
    """What lines, bars and bands are, and the colour of each kind."""
    roles: list[Any] = [Line2D([], [], color=INK, markersize=3, label="weight", **FULL)]
    if (tensors["role"] == BIAS).any():
        roles.append(Line2D([], [], color=GREY, markersize=3.5, label="bias", **HOLLOW))
    quantiles = Patch(color=INK, alpha=0.22, linewidth=0, label="weight, 5–95%")
    kinds = [Patch(color=colour, label=kind) for kind, colour in colours.items()]
    return [*roles, quantiles, *kinds]
