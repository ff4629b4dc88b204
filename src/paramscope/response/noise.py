"""Noise in a class of units, and taking it out again to the last bit.

Each weight of the class gets w += σ · c · z, with c by the kind of noise: the RMS of the
weight's tensor (`relative`), 1 (`absolute`), or the RMS times what gives every class the same
Σ noise² (`equal_energy`). The normals z of a tensor hang on (run, tensor, noise seed) alone:
classes, scales and signs share them (common random numbers), so a difference between two
classes or two scales is not a difference of luck.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from paramscope.artifacts.digest import seed_of
from paramscope.errors import ArtifactError
from paramscope.geometry.granularity import places
from paramscope.geometry.sparsity import unit_layers
from paramscope.persample.layers import is_conv1d

Kind = Literal["relative", "absolute", "equal_energy"]
KINDS: tuple[Kind, ...] = ("relative", "absolute", "equal_energy")


class NoiseSource:
    """The normals of one noise seed, made once a tensor and kept while the seed is at work."""

    def __init__(
        self, model: PreTrainedModel, run_seed: int, noise_seed: int, kind: Kind = "relative"
    ) -> None:
        self.model, self.identity, self.kind = model, (run_seed, "noise", noise_seed), kind
        self.made: dict[str, Tensor] = {}

    def deviation(self, name: str) -> float:
        """The noise's standard deviation in a parameter at scale 1, energies not yet made equal."""
        if self.kind == "absolute":
            return 1.0
        parameter: Tensor = self.model.get_parameter(name).detach()
        return float(parameter.double().square().mean().sqrt())

    def unit_noise(self, name: str) -> Tensor:
        """The noise at scale 1 for a whole parameter, of its shape: RMS(tensor) · z, or z."""
        if name not in self.made:
            parameter: Tensor = self.model.get_parameter(name).detach()
            run_seed, kind, noise_seed = self.identity
            generator = torch.Generator().manual_seed(seed_of(run_seed, kind, name, noise_seed))
            z = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            deviation = torch.tensor(self.deviation(name), dtype=torch.float64)
            self.made[name] = z.to(parameter) * deviation.to(parameter)
        return self.made[name]


class UnitSet:
    """The units of one class as rows of parameters, in a model."""

    def __init__(self, model: PreTrainedModel, units: Mapping[str, Sequence[int]]) -> None:
        """`units` gives the rows of each weight tensor ("….fc1.weight").

        Raises:
            ArtifactError: a tensor or row that the model does not have.
        """
        self.model = model
        self.n_units = sum(len(rows) for rows in units.values())
        self.rows: dict[str, Tensor] = {}
        self.transposed: set[str] = set()
        layers = unit_layers(model)
        for tensor, rows in units.items():
            name = tensor.removesuffix(".weight")
            if name not in layers:
                raise ArtifactError(f"unit tensor {tensor} is not in this model")
            self._add(layers[name], tensor, torch.tensor(sorted(rows)))

    @classmethod
    def named(cls, model: PreTrainedModel, units: Sequence[str]) -> "UnitSet":
        """The units of these names, of any granularity.

        Raises:
            RequestError: a name that is no unit of the model, or units that overlap.
        """
        made = cls(model, {})
        for name, (axis, index) in places(model, units).items():
            made.rows[name] = index
            if axis == 1:
                made.transposed.add(name)
        made.n_units = len(units)
        return made

    def _add(self, module: nn.Module, tensor: str, rows: Tensor) -> None:
        conv = is_conv1d(module)
        size = self.model.get_parameter(tensor).shape[1 if conv else 0]
        if len(rows) and int(rows.max()) >= size:
            raise ArtifactError(f"unit {tensor}:{int(rows.max())} is not in this model")
        self.rows[tensor] = rows
        if conv:
            self.transposed.add(tensor)
        if module.bias is not None:
            self.rows[tensor.removesuffix("weight") + "bias"] = rows

    @property
    def n_parameters(self) -> int:
        """Weights and biases in the class."""
        return sum(self._view(name)[rows].numel() for name, rows in self.rows.items())

    def _view(self, name: str) -> Tensor:
        parameter: Tensor = self.model.get_parameter(name).detach()
        return self._by_row(name, parameter)

    def noise(self, source: NoiseSource, name: str) -> Tensor:
        """The class's rows of `source`'s noise for one parameter."""
        noise = source.unit_noise(name)
        by_row = noise.mT if name in self.transposed else noise
        return by_row[self.rows[name]]

    def energy(self, source: NoiseSource) -> float:
        """Σ noise² at scale 1."""
        return sum(float(self.noise(source, name).double().square().sum()) for name in self.rows)

    def expected_energy(self, source: NoiseSource) -> float:
        """What `energy` is on average over noise seeds."""
        return sum(
            source.deviation(name) ** 2 * self._view(name)[rows].numel()
            for name, rows in self.rows.items()
        )

    def predicted(
        self, source: NoiseSource, diagonal: Mapping[str, Tensor], error: Mapping[str, Tensor]
    ) -> tuple[float, float]:
        """Change of the mean loss at scale 1 that curvature foretells, and its standard error.

        ½ Σ h c² over the class, from the diagonal h of the curvature by parameter name: the mean
        over noise of ½ nᵀHn, since noise of different weights is independent. The errors of
        the entries are taken as independent.
        """
        change, variance = 0.0, 0.0
        for name, rows in self.rows.items():
            half = 0.5 * source.deviation(name) ** 2
            h, se = (self._by_row(name, x[name]).double()[rows] for x in (diagonal, error))
            change += half * float(h.sum())
            variance += half**2 * float(se.square().sum())
        return change, math.sqrt(variance)

    def _by_row(self, name: str, values: Tensor) -> Tensor:
        return values.T if name in self.transposed else values

    @contextmanager
    def perturbed(self, source: NoiseSource, scale: float) -> Iterator[None]:
        """Add `scale` times the noise within the block; afterwards every bit is as before."""
        kept = {name: self._view(name)[rows].clone() for name, rows in self.rows.items()}
        try:
            for name, rows in self.rows.items():
                self._view(name)[rows] = kept[name] + scale * self.noise(source, name)
            yield
        finally:
            for name, rows in self.rows.items():
                self._view(name)[rows] = kept[name]


class Energetic(Protocol):
    """What has an energy of noise to expect."""

    def expected_energy(self, source: NoiseSource) -> float:
        """Σ noise² at scale 1, on average over noise seeds."""


def factors(sets: Mapping[str, Energetic], source: NoiseSource) -> dict[str, float]:
    """What each class's noise is multiplied by: 1, or what makes their expected energies equal.

    Equal energies are the mean of those that the classes would have.
    """
    if source.kind != "equal_energy":
        return dict.fromkeys(sets, 1.0)
    energies = {label: units.expected_energy(source) for label, units in sets.items()}
    mean = sum(energies.values()) / len(energies)
    return {label: math.sqrt(mean / energy) for label, energy in energies.items()}
