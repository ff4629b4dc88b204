"""Which entries of which parameters a unit is: an output row, a tensor, or an MLP's neuron.

A row is "….fc1.weight:12", row 12 of a weight with its bias. A tensor is "….fc1.weight", all
rows. A neuron is "….layers.0.neuron:12": the row of every layer that reads the MLP's input
(two where it is gated) with its bias, and the column of the layer that writes its output. That
layer's bias is in no neuron.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from paramscope.errors import ArtifactError, RequestError
from paramscope.geometry.sparsity import unit_layers, unit_names
from paramscope.models.blocks import blocks
from paramscope.names import block_number
from paramscope.persample.layers import is_conv1d

Granularity = Literal["row", "tensor", "neuron"]
GRANULARITIES: tuple[Granularity, ...] = ("row", "tensor", "neuron")
NEURON = "neuron"
# Names of the layers that read an MLP's input, and of the one that writes its output.
MLPS = (
    (("fc1",), "fc2"),
    (("c_fc",), "c_proj"),
    (("gate_proj", "up_proj"), "down_proj"),
    (("dense_h_to_4h",), "dense_4h_to_h"),
)
Index = tuple[int | slice, ...]


@dataclass(frozen=True)
class Group:
    """Units that are laid out alike.

    Attributes:
        granularity: of the units.
        name: what stands before the colon in its units' names; a tensor's own.
        kind: the layer's own name ("fc1"), or "neuron".
        parts: parameters, each with the axis along which its units lie.
        size: places along those axes: its units, unless all of them are one tensor.
    """

    granularity: Granularity
    name: str
    kind: str
    parts: tuple[tuple[str, int], ...]
    size: int

    @property
    def whole(self) -> bool:
        """Whether all of it is one unit."""
        return self.granularity == "tensor"

    @property
    def layer(self) -> int:
        """The block that the group stands in."""
        return block_number(f"{self.name}.")

    @property
    def units(self) -> list[str]:
        """The units' names."""
        return [self.name] if self.whole else unit_names(self.name, self.size)

    def gather(self, values: Mapping[str, Tensor]) -> Tensor:
        """Parameter-shaped values of each unit's entries, [units, entries], float64, on the CPU."""
        columns = [
            values[name].movedim(axis, 0).reshape(self.size, -1) for name, axis in self.parts
        ]
        gathered = torch.cat([column.to("cpu", torch.float64) for column in columns], 1)
        return gathered.reshape(1, -1) if self.whole else gathered


def groups(model: PreTrainedModel, granularity: Granularity) -> list[Group]:
    """All units of a granularity, a group a tensor; a group a block for neurons.

    Raises:
        RequestError: no such granularity, or neurons of a model whose MLPs are not known.
    """
    if granularity not in GRANULARITIES:
        raise RequestError(f"no granularity {granularity}; take {', '.join(GRANULARITIES)}")
    if granularity == NEURON:
        return _neurons(model)
    return [_layer(name, module, granularity) for name, module in unit_layers(model).items()]


def indices(model: PreTrainedModel, unit: str) -> list[tuple[str, Index]]:
    """The entries of a unit of any granularity: parameter names with an index into each.

    `model.get_parameter(name)[index]` is a view of the unit's entries there.

    Raises:
        ArtifactError: a unit that the model does not have.
    """
    group, position = _Finder(model).find(unit)
    if group.whole:
        return [(name, (slice(None),)) for name, _ in group.parts]
    return [(name, (*[slice(None)] * axis, position)) for name, axis in group.parts]


def places(model: PreTrainedModel, units: Sequence[str]) -> dict[str, tuple[int, Tensor]]:
    """The entries of many units of one granularity: by parameter an axis and places along it.

    `model.get_parameter(name).index_select(axis, places)` are the units' entries there. Places
    are in order, int64, on the CPU.

    Raises:
        ArtifactError: a unit that the model does not have, or that comes twice.
        RequestError: units of granularities that overlap.
    """
    finder = _Finder(model)
    found: dict[str, tuple[int, list[int]]] = {}
    for unit in units:
        group, position = finder.find(unit)
        for name, axis in group.parts:
            known, taken = found.setdefault(name, (axis, []))
            if known != axis:
                raise RequestError(f"unit {unit} overlaps others: take units of one granularity")
            taken += range(group.size) if group.whole else [position]
    for name, (_, taken) in found.items():
        if len(set(taken)) < len(taken):
            raise ArtifactError(f"some entries of {name} are in more than one of the units")
    return {name: (axis, torch.tensor(sorted(taken))) for name, (axis, taken) in found.items()}


class _Finder:
    """A model's groups by name, neurons looked for on demand."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.layers = {f"{name}.weight": module for name, module in unit_layers(model).items()}
        self.neurons: dict[str, Group] | None = None
        self.known: dict[str, Group] = {}

    def find(self, unit: str) -> tuple[Group, int]:
        """The group of a unit, and its place there."""
        name, _, number = unit.partition(":")
        key = name if number else unit + "*"
        group = self.known.get(key) or self._group(name, whole=not number)
        if group is None or (number and not (number.isdecimal() and int(number) < group.size)):
            raise ArtifactError(f"unit {unit} is not in this model")
        self.known[key] = group
        return group, int(number or 0)

    def _group(self, name: str, whole: bool) -> Group | None:
        if name in self.layers:
            granularity: Granularity = "tensor" if whole else "row"
            return _layer(name.removesuffix(".weight"), self.layers[name], granularity)
        if whole or not name.endswith(f".{NEURON}"):
            return None
        if self.neurons is None:
            self.neurons = {group.name: group for group in _neurons(self.model)}
        return self.neurons.get(name)


def _layer(name: str, module: nn.Module, granularity: Granularity) -> Group:
    rows = module.get_parameter("weight").shape[row_axis(module)]
    kind = name.rpartition(".")[2]
    return Group(granularity, f"{name}.weight", kind, tuple(_rows(name, module)), rows)


def _rows(name: str, module: nn.Module) -> list[tuple[str, int]]:
    """A layer's parameters with the axis of their rows."""
    weight = (f"{name}.weight", row_axis(module))
    return [weight] if module.bias is None else [weight, (f"{name}.bias", 0)]


def row_axis(module: nn.Module) -> int:
    """The axis of a weight along which its output rows lie."""
    return 1 if is_conv1d(module) else 0


def _neurons(model: PreTrainedModel) -> list[Group]:
    layers = unit_layers(model)
    found = []
    for block, inside in blocks(model):
        mlps = [
            (prefix, readers, writer)
            for prefix in {name.rpartition(".")[0] for name in layers}
            for readers, writer in MLPS
            if f"{prefix}.".startswith(f"{block}.")
            and all(f"{prefix}.{name}" in layers for name in (*readers, writer))
        ]
        if len(mlps) != 1:
            raise RequestError(
                f"block {block} of {type(inside).__name__} has {len(mlps)} MLPs of a known make "
                "where neurons need one; take granularity row or tensor"
            )
        prefix, readers, writer = mlps[0]
        parts = [part for n in readers for part in _rows(f"{prefix}.{n}", layers[f"{prefix}.{n}"])]
        down = layers[f"{prefix}.{writer}"]
        column = 1 - row_axis(down)
        parts.append((f"{prefix}.{writer}.weight", column))
        width = down.get_parameter("weight").shape[column]
        found.append(Group("neuron", f"{block}.{NEURON}", NEURON, tuple(parts), width))
    return found
