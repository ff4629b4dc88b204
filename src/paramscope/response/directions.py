"""Noise in a class of directions, and the class taken out; either way every bit comes back.

A layer's weight is W = U_S C U_Aᵀ. Noise goes into the coefficients of the class, C += σ ·
RMS(W) · z (or another kind of `noise`), with the z of `noise`: since both bases are orthogonal
it has the energy that noise of the same scale has in as many entries of W. Biases are in no
class.
"""

import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from paramscope.curvature.kfac import factored_layers
from paramscope.errors import ArtifactError, RequestError
from paramscope.geometry.directions import CODES, Labelled, random_labels
from paramscope.persample.layers import is_conv1d
from paramscope.persample.precision import wide
from paramscope.response.noise import NoiseSource


class DirectionSet:
    """The directions of one class, in a model."""

    def __init__(
        self,
        model: PreTrainedModel,
        directions: Mapping[str, Labelled],
        label: str,
        *,
        draw: int | None = None,
        seed: int = 0,
    ) -> None:
        """`draw` takes a random class of the same size in each matrix, by `seed`.

        Raises:
            RequestError: no such label.
            ArtifactError: a layer that the model does not have, or has in another shape.
        """
        if label not in CODES:
            raise RequestError(f"no class {label}; take one of {', '.join(CODES)}")
        self.model = model
        self.masks: dict[str, Tensor] = {}
        self.bases: dict[str, tuple[Tensor, Tensor]] = {}
        self.curvature: dict[str, float] = {}  # summed over the class
        self.transposed: set[str] = set()
        layers = factored_layers(model)
        for layer, labelled in directions.items():
            if layer not in layers:
                raise ArtifactError(f"layer {layer} of the directions is not in this model")
            name = f"{layer}.weight"
            if is_conv1d(layers[layer]):
                self.transposed.add(name)
            labels = labelled.labels
            if labels.shape != self._view(name).shape:
                raise ArtifactError(
                    f"{layer}: directions of a weight {tuple(labels.shape)}, but the model's is "
                    f"{tuple(self._view(name).shape)}; make them from this model, without biases"
                )
            if draw is not None:
                labels = random_labels(layer, labels, draw, seed)
            like = wide(self._view(name)[:0])
            both = labelled.directions
            self.bases[name] = both.U_S.to(like), both.U_A.to(like)
            mask = labels == CODES[label]
            self.curvature[name] = float(both.curvature[mask].sum(dtype=torch.float64))
            self.masks[name] = mask.to(like.device)
        self._source: weakref.ref[NoiseSource] | None = None
        self._noise: dict[str, Tensor] = {}

    @property
    def n_units(self) -> int:
        """Directions in the class, each of one coefficient."""
        return self.n_parameters

    @property
    def n_parameters(self) -> int:
        """Coefficients in the class."""
        return sum(int(mask.sum()) for mask in self.masks.values())

    def noise(self, source: NoiseSource, name: str) -> Tensor:
        """The class's coefficients of `source`'s noise for one weight, [p, d], 0 elsewhere."""
        noise = source.unit_noise(name)
        by_row = noise.mT if name in self.transposed else noise
        return wide(by_row) * self.masks[name]

    def energy(self, source: NoiseSource) -> float:
        """Σ noise² at scale 1, of coefficients and weights alike."""
        return sum(float(self.noise(source, name).double().square().sum()) for name in self.masks)

    def expected_energy(self, source: NoiseSource) -> float:
        """What `energy` is on average over noise seeds."""
        return sum(
            source.deviation(name) ** 2 * int(mask.sum()) for name, mask in self.masks.items()
        )

    def predicted(
        self,
        source: NoiseSource,
        diagonal: Mapping[str, Tensor] | None = None,
        error: Mapping[str, Tensor] | None = None,
    ) -> tuple[float, float]:
        """Change of the mean loss at scale 1 that curvature foretells, and nan for its error.

        ½ Σ h c² over the class, from the curvature h that the directions come with. `diagonal`
        and `error` are there for the likeness to a set of units: a diagonal in the basis of
        the weights says nothing of these directions.
        """
        halves = {name: 0.5 * source.deviation(name) ** 2 for name in self.curvature}
        return sum(halves[name] * h for name, h in self.curvature.items()), math.nan

    @contextmanager
    def perturbed(self, source: NoiseSource, scale: float) -> Iterator[None]:
        """Add `scale` times the noise within the block; afterwards every bit is as before."""
        made = self._in_weights(source)
        with self._changed(lambda name, weight: weight + scale * made[name]):
            yield

    @contextmanager
    def removed(self, share: float = 1.0) -> Iterator[None]:
        """Shrink the class's coefficients by `share` within the block; 1 takes them out.

        Afterwards every bit is as before.
        """

        def shrunk(name: str, weight: Tensor) -> Tensor:
            U_S, U_A = self.bases[name]
            inside = (U_S.T @ weight @ U_A) * self.masks[name]
            return weight - share * (U_S @ inside @ U_A.T)

        with self._changed(shrunk):
            yield

    def _view(self, name: str) -> Tensor:
        parameter: Tensor = self.model.get_parameter(name).detach()
        return parameter.T if name in self.transposed else parameter

    def _in_weights(self, source: NoiseSource) -> dict[str, Tensor]:
        """U_S N U_Aᵀ by weight; kept while the source is the latest, for other scales and signs."""
        if self._source is None or self._source() is not source:
            made = {
                name: U_S @ self.noise(source, name) @ U_A.T
                for name, (U_S, U_A) in self.bases.items()
            }
            self._noise = made
            self._source = weakref.ref(source, lambda _: made.clear())
        return self._noise

    @contextmanager
    def _changed(self, change: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
        kept = {name: self._view(name).clone() for name in self.masks}
        try:
            for name, weight in kept.items():
                self._view(name).copy_(change(name, wide(weight)))
            yield
        finally:
            for name, weight in kept.items():
                self._view(name).copy_(weight)
