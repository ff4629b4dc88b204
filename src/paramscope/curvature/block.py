"""Diagonal blocks of the Gauss–Newton matrix: one a chosen unit, all of its parameters' pairs.

A unit is an output row of a linear layer with its bias. Its block is the mean over draws of
Σ_s g_su g_suᵀ, with g_su the row's own gradient in sequence s: what `ggn` squares, so that the
blocks' diagonals are `ggn`'s entries of the same draws to the last bits of rounding.

Source: block-diagonal curvature, Martens and Grosse 2015 (arXiv:1503.05671), with units for
layers as in LeCun et al. 1998 (Efficient BackProp).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from paramscope.curvature.passes import Passes
from paramscope.errors import RequestError
from paramscope.models.sequences import Sequences
from paramscope.persample.graphs import Graph
from paramscope.persample.layers import is_conv1d, is_linear
from paramscope.persample.linear import with_one
from paramscope.persample.precision import accumulator, wide


@dataclass(frozen=True)
class Row:
    """An output row of a weight, with its bias where there is one.

    Attributes:
        layer: the layer's name.
        row: the output's index.
        size: its parameters, the block's side.
    """

    layer: str
    row: int
    size: int

    @property
    def unit(self) -> str:
        """The unit's name, as in the table of units."""
        return f"{self.layer}.weight:{self.row}"


def rows_of(model: PreTrainedModel, units: Sequence[str]) -> list[Row]:
    """The rows that units such as `model.decoder.layers.0.fc1.weight:7` name.

    Raises:
        RequestError: no units; one that names no row of a linear layer; or a row of the head,
            whose weights are the embedding's, too.
    """
    if not units:
        raise RequestError("no unit to make a block of; name one, as LAYER.weight:ROW")
    layers = dict(model.named_modules())
    rows = []
    for unit in units:
        tensor, _, row = unit.rpartition(":")
        layer = tensor.removesuffix(".weight")
        module = layers.get(layer)
        if module is None or not (
            is_linear(module) and tensor.endswith(".weight") and row.isdigit()
        ):
            raise RequestError(f"unit '{unit}' is no row of a linear layer: give LAYER.weight:ROW")
        if module is model.get_output_embeddings():
            raise RequestError(f"unit '{unit}' is of the head; blocks are of the layers before it")
        outputs, inputs = module.weight.shape[:: -1 if is_conv1d(module) else 1]
        if int(row) >= outputs:
            raise RequestError(f"unit '{unit}': {layer} has {outputs} rows")
        rows.append(Row(layer, int(row), inputs + (module.bias is not None)))
    return rows


def block_bytes(rows: Sequence[Row], draws: int, element_bytes: int = 4) -> int:
    """Memory that the blocks of that many draws take."""
    return draws * element_bytes * sum(row.size**2 for row in rows)


def ggn_blocks(
    model: PreTrainedModel,
    sequences: Sequences,
    rows: Sequence[Row],
    draws: range,
    *,
    seed: int,
    batch_size: int,
    graph: Graph = "whole",
) -> list[dict[str, Tensor]]:
    """Each row's block over `sequences`, once a draw, by unit: [size, size], the bias last.

    Raises:
        UnknownLayerError, RequestError: as `ggn_draws`.
    """
    passes = Passes(model, sequences, batch_size, graph)
    by_layer: dict[str, list[Row]] = {}
    for row in rows:
        by_layer.setdefault(row.layer, []).append(row)
    like = next(model.parameters())
    totals = [{row.unit: accumulator(like, row.size, row.size) for row in rows} for _ in draws]

    def take(k: int, name: str, module: nn.Module, a: Tensor, g: Tensor) -> None:
        if name in by_layer:
            _add(by_layer[name], module, a, g, name in passes.local, totals[k])

    for drawn in passes.batches(draws, seed, "GGN blocks"):
        drawn.backward(take)
    for total in totals:
        for block in total.values():
            block /= sequences.n_predicted
    return totals


def _add(
    rows: Sequence[Row],
    module: nn.Module,
    a: Tensor,
    g: Tensor,
    local: bool,
    into: Mapping[str, Tensor],
) -> None:
    x = wide(a) if module.bias is None else with_one(wide(a))
    for row in rows:
        by_token = wide(g[:, :, row.row, None]) * x  # [B, T, size]
        gradients = by_token.flatten(0, 1) if local else by_token.sum(1)
        into[row.unit].addmm_(gradients.T, gradients)
