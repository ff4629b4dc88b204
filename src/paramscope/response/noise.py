"""Noise in a class of units, and taking it out again to the last bit.

Each weight of the class gets w += s · RMS(its tensor) · z. The normals z of a tensor hang on
(run, tensor, noise seed) alone: classes, scales and signs share them (common random numbers),
so a difference between two classes or two scales is not a difference of luck.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from paramscope.artifacts.digest import seed_of
from paramscope.errors import ArtifactError
from paramscope.geometry.sparsity import unit_layers
from paramscope.persample.layers import is_conv1d


class NoiseSource:
    """The normals of one noise seed, made once a tensor and kept while the seed is at work."""

    def __init__(self, model: PreTrainedModel, run_seed: int, noise_seed: int) -> None:
        self.model, self.identity = model, (run_seed, "noise", noise_seed)
        self.made: dict[str, Tensor] = {}

    def unit_noise(self, name: str) -> Tensor:
        """RMS(tensor) · z for a whole parameter, of its shape."""
        if name not in self.made:
            parameter: Tensor = self.model.get_parameter(name).detach()
            run_seed, kind, noise_seed = self.identity
            generator = torch.Generator().manual_seed(seed_of(run_seed, kind, name, noise_seed))
            z = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            rms = parameter.double().square().mean().sqrt()
            self.made[name] = z.to(parameter) * rms.to(parameter)
        return self.made[name]


class UnitSet:
    """The units of one class as rows of parameters, in a model."""

    def __init__(self, model: PreTrainedModel, units: Mapping[str, Sequence[int]]) -> None:
        """`units` gives the rows of each weight tensor ("….fc1.weight").

        Raises:
            ArtifactError: a tensor or row that the model does not have.
        """
        self.model = model
        self.rows: dict[str, Tensor] = {}
        self.transposed: set[str] = set()
        layers = unit_layers(model)
        for tensor, rows in units.items():
            name = tensor.removesuffix(".weight")
            if name not in layers:
                raise ArtifactError(f"unit tensor {tensor} is not in this model")
            self._add(layers[name], tensor, torch.tensor(sorted(rows)))

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
        return parameter.T if name in self.transposed else parameter

    def noise(self, source: NoiseSource, name: str) -> Tensor:
        """The class's rows of `source`'s noise for one parameter."""
        noise = source.unit_noise(name)
        by_row = noise.mT if name in self.transposed else noise
        return by_row[self.rows[name]]

    def energy(self, source: NoiseSource) -> float:
        """Σ noise² at scale 1."""
        return sum(float(self.noise(source, name).double().square().sum()) for name in self.rows)

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
