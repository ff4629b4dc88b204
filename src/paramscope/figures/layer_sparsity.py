"""Zeros in the pruned layers, block by block: asked for against got."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from paramscope.figures.pruned import Look, Run, by_density, looks
from paramscope.figures.style import DOUBLE, GREY, INK, count, head, new_figure, styled
from paramscope.names import OUTSIDE

LAYERS = ("layer", "tensor", "n_weights", "n_kept", "density_asked")  # the columns needed
WIDTH = 0.72  # of a block's place, that runs are spread over
MOST_NAMES = 16
ASKED: dict[str, Any] = {"color": INK, "linewidth": 0.8}


@styled
def layer_sparsity(layers: Mapping[Run, pd.DataFrame], model: str) -> Figure:
    """Two panels over blocks, a mark a method and density.

    The share of zeros in a block's pruned weights, a bar from its least to its most sparse
    tensor and a stroke for what was asked; and how many weights more or fewer than asked were
    kept in the block.

    Args:
        layers: by method and density: `LAYERS`, a row a tensor.
        model: what the title calls the model.

    Raises:
        ArtifactError: no runs, or one without rows.
    """
    densities = by_density(layers, "layers")
    methods = looks(method for method, _ in layers)
    shares = {run: block_shares(rows) for run, rows in layers.items()}
    blocks = sorted({block for table in shares.values() for block in table.index})
    worst = max(float((table["kept"] - table["asked"]).abs().max()) for table in shares.values())
    tensors = max(len(rows) for rows in layers.values())
    figure = new_figure(DOUBLE, 4.9)
    head(
        figure,
        model,
        "zeros by block, asked and got",
        f"{count(len(layers), 'pruned model')}, {count(len(blocks), 'block')}, "
        f"{count(tensors, 'tensor')}; furthest from what was asked: "
        f"{worst:,.{1 if worst < 100 else 0}f} weights a block",
    )
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1.7, 1])
    for runs in densities.values():
        for run in runs:
            place = list(methods).index(run[0])
            shift = WIDTH * ((place + 0.5) / len(methods) - 0.5)
            places = np.array([blocks.index(block) for block in shares[run].index], float)
            _zeros(top, shares[run], places + shift, methods[run[0]], run, WIDTH / len(methods))
            _excess(bottom, shares[run], places + shift, methods[run[0]], run)
    bottom.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    _frame(top, bottom, shares, worst, blocks)
    figure.legend(
        handles=[
            *(Line2D([], [], label=look.name, **_mark(look)) for look in methods.values()),
            Line2D([], [], label="asked", **ASKED),
            Line2D([], [], color=GREY, linewidth=1.6, alpha=0.5, label="range over tensors"),
        ],
        loc="outside lower center",
        ncols=7,
    )
    return figure


def block_shares(rows: pd.DataFrame) -> pd.DataFrame:
    """By block: zeros and zeros_asked, shares; kept and asked, weights; low and high, tensors'."""
    table = rows.assign(
        asked=rows["n_weights"] * rows["density_asked"],
        zeros=1 - rows["n_kept"] / rows["n_weights"],
    )
    found = table.groupby("layer").agg(
        weights=("n_weights", "sum"),
        kept=("n_kept", "sum"),
        asked=("asked", "sum"),
        low=("zeros", "min"),
        high=("zeros", "max"),
    )
    return found.assign(
        zeros=1 - found["kept"] / found["weights"],
        zeros_asked=1 - found["asked"] / found["weights"],
    )


def _zeros(
    axes: Axes, table: pd.DataFrame, places: np.ndarray, look: Look, run: Run, width: float
) -> None:
    """A run's shares of zeros: asked for, over the tensors of a block, and of the block."""
    gid = f"{run[0]} {run[1]:g}"
    axes.hlines(
        table["zeros_asked"],
        places - width / 2,
        places + width / 2,
        zorder=1,
        gid=f"asked {gid}",
        **ASKED,
    )
    axes.vlines(
        places,
        table["low"],
        table["high"],
        color=look.colour,
        linewidth=1.6,
        alpha=0.5,
        zorder=2,
        gid=f"range {gid}",
    )
    axes.plot(places, table["zeros"], zorder=3, gid=f"zeros {gid}", **_mark(look))


def _excess(axes: Axes, table: pd.DataFrame, places: np.ndarray, look: Look, run: Run) -> None:
    excess = table["kept"] - table["asked"]
    axes.plot(places, excess, zorder=3, gid=f"excess {run[0]} {run[1]:g}", **_mark(look))


def _mark(look: Look) -> dict[str, Any]:
    return look.line() | {"linestyle": "", "markersize": 3.4}


def _frame(
    top: Axes,
    bottom: Axes,
    shares: Mapping[Run, pd.DataFrame],
    worst: float,
    blocks: list[int],
) -> None:
    """Titles, limits and ticks; `worst` is the furthest that a block is from what was asked."""
    top.set_title("a  Zeros in the block's pruned weights")
    bottom.set_title("b  Weights kept beyond those asked, a block")
    top.set_ylabel("Share of zeros")
    bottom.set_ylabel("Kept − asked")
    lowest = min(float(table[["low", "zeros_asked"]].min().min()) for table in shares.values())
    top.set_ylim(max(lowest - 0.06, -0.03), 1.03)
    top.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    top.yaxis.set_major_formatter(PercentFormatter(1))
    bottom.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,.6g}".replace("-", "−"))
    )
    bottom.set_ylim(-1.15 * max(worst, 1), 1.15 * max(worst, 1))
    stride = -(-len(blocks) // MOST_NAMES)
    bottom.set_xticks(
        range(0, len(blocks), stride),
        ["outside" if n == OUTSIDE else str(n) for n in blocks[::stride]],
    )
    bottom.set_xlim(-0.6, len(blocks) - 0.4)
    bottom.set_xlabel("Block")
    top.tick_params(labelbottom=False)
