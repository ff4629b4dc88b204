"""What noise in each weight costs and takes, by layer and kind of weight."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from paramscope.errors import ArtifactError
from paramscope.figures.families import COLOURS, family
from paramscope.figures.style import (
    DOUBLE,
    GREY,
    PALE,
    count,
    head,
    letter,
    new_figure,
    styled,
)

COLUMNS = (
    *("tensor", "layer", "kind", "n_seeds", "predicted_delta_log_ppl", "delta_log_ppl"),
    *("delta_log_ppl_se", "delta_auc", "delta_auc_se", "delta_loss_gap", "delta_loss_gap_se"),
)
MARKERS = "osD^vP<>hX*d"
CLOSE = 0.25
WIDTH = 0.7  # of a layer's place, that kinds are spread over
OUTER = "outside"


@styled
def layer_responses(table: pd.DataFrame, model: str) -> Figure:
    """Three panels over layers, a point a weight with its standard error over noise seeds.

    Measured over predicted rise of log perplexity, with a band of a quarter around 1; and the
    loss gap and the AUC that noise takes a nat of log perplexity.

    Args:
        table: a row a weight, with the columns `COLUMNS`.
        model: what the title calls the model.

    Raises:
        ArtifactError: no rows.
    """
    if table.empty:
        raise ArtifactError("no responses of weights to draw; rerun tensor_responses")
    figure = new_figure(DOUBLE, 3.3)
    ratio = table["delta_log_ppl"] / table["predicted_delta_log_ppl"]
    near = float((np.abs(1 / ratio - 1) <= CLOSE).mean())
    head(
        figure,
        model,
        "noise in one weight at a time",
        f"{count(len(table), 'weight')}, {count(int(table['n_seeds'].iloc[0]), 'noise seed')}; "
        f"predictions within {CLOSE:.0%} of what was measured: {near:.0%}",
    )
    layers = sorted(table["layer"].unique())
    kinds = list(dict.fromkeys(table["kind"]))
    panels = figure.subplots(1, 3, sharex=True)
    cost = table["delta_log_ppl"]
    drawn = (
        ("Measured / predicted Δ log PPL", ratio,
         table["delta_log_ppl_se"] / table["predicted_delta_log_ppl"]),
        ("Loss gap taken a nat", -table["delta_loss_gap"] / cost,
         table["delta_loss_gap_se"] / cost.abs()),
        ("AUC taken a nat", -table["delta_auc"] / cost, table["delta_auc_se"] / cost.abs()),
    )  # fmt: skip
    for index, (axes, (title, values, errors)) in enumerate(zip(panels, drawn, strict=True)):
        axes.set_title(f"{letter(index)}  {title}")
        axes.axhline(0 if index else 1, color=GREY, linewidth=0.8, zorder=0)
        if not index:
            axes.axhspan(1 / (1 + CLOSE), 1 / (1 - CLOSE), color=PALE, alpha=0.6, zorder=0)
        _points(axes, table, values, errors, layers, kinds)
        axes.set_xticks(range(len(layers)), [OUTER if n < 0 else str(n) for n in layers])
        axes.set_xlabel("Layer")
    figure.legend(
        handles=[_key(table, kind, MARKERS[i % len(MARKERS)]) for i, kind in enumerate(kinds)],
        title="bars: standard error over noise seeds",
        loc="outside lower center",
        ncols=min(len(kinds), 7),
    )
    return figure


def _points(
    axes: Axes,
    table: pd.DataFrame,
    values: "pd.Series[float]",
    errors: "pd.Series[float]",
    layers: list[int],
    kinds: list[str],
) -> None:
    for i, kind in enumerate(kinds):
        rows = (table["kind"] == kind).to_numpy()
        shift = WIDTH * ((i + 0.5) / len(kinds) - 0.5)
        places = [layers.index(layer) + shift for layer in table.loc[rows, "layer"]]
        axes.errorbar(
            places,
            values[rows].to_numpy(np.float64),
            yerr=errors[rows].to_numpy(np.float64),
            fmt=MARKERS[i % len(MARKERS)],
            color=_colour(table, kind),
            ms=3.6,
            mec="white",
            mew=0.4,
            elinewidth=0.8,
            gid=f"{kind}",
        )


def _key(table: pd.DataFrame, kind: str, marker: str) -> Line2D:
    return Line2D([], [], color=_colour(table, kind), marker=marker, ls="", ms=4, label=kind)


def _colour(table: pd.DataFrame, kind: str) -> str:
    return COLOURS[family(str(table.loc[table["kind"] == kind, "tensor"].iloc[0]))]
