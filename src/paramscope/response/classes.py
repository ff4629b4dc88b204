"""The classes that noise goes into: units of a partition, or directions of the curvature."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import pandas as pd
from torch import Tensor
from transformers import PreTrainedModel

from paramscope.artifacts.tables import read_table
from paramscope.artifacts.tensors import read_tensors
from paramscope.geometry.directions import CODES, Labelled, labelled_from_content
from paramscope.response.directions import DirectionSet
from paramscope.response.noise import NoiseSource, UnitSet


class ClassSet(Protocol):
    """One class: how much it holds, and noise in it."""

    @property
    def n_units(self) -> int:
        """Units in the class, or directions."""

    @property
    def n_parameters(self) -> int:
        """Weights and biases in the class, or coefficients."""

    def energy(self, source: NoiseSource) -> float:
        """Σ noise² at scale 1."""

    def expected_energy(self, source: NoiseSource) -> float:
        """What `energy` is on average over noise seeds."""

    def predicted(
        self, source: NoiseSource, diagonal: Mapping[str, Tensor], error: Mapping[str, Tensor]
    ) -> tuple[float, float]:
        """Change of the mean loss at scale 1 that curvature foretells, and its error."""

    def perturbed(self, source: NoiseSource, scale: float) -> AbstractContextManager[None]:
        """Add `scale` times the noise within the block; afterwards every bit is as before."""


class Classes(Protocol):
    """A partition in a model, of one or more draws.

    Attributes:
        draws: how many.
        labels: classes that have something in them.
    """

    draws: int
    labels: tuple[str, ...]

    def of(self, draw: int) -> Mapping[str, ClassSet]:
        """The classes of a draw, by label."""


class UnitClasses:
    """The classes of a table of units of any granularity: columns unit, label, draw."""

    def __init__(self, model: PreTrainedModel, partition: pd.DataFrame) -> None:
        self.model, self.partition = model, partition
        self.draws = int(partition["draw"].max()) + 1
        self.labels = tuple(sorted(partition["label"].unique()))

    def of(self, draw: int) -> Mapping[str, ClassSet]:
        """The classes of a draw, by label."""
        drawn = self.partition[self.partition["draw"] == draw]
        return {
            str(label): UnitSet.named(self.model, units.tolist())
            for label, units in drawn.groupby("label")["unit"]
        }


class DirectionClasses:
    """The classes of eigen-directions of each weight's curvature; one draw."""

    draws = 1

    def __init__(self, model: PreTrainedModel, labelled: Mapping[str, Labelled]) -> None:
        self.model, self.labelled = model, labelled
        sets = {label: DirectionSet(model, labelled, label) for label in CODES}
        self.sets = {label: one for label, one in sets.items() if one.n_parameters}
        self.labels = tuple(sorted(self.sets))

    def of(self, draw: int) -> Mapping[str, ClassSet]:
        """The classes, by label."""
        return self.sets


def read_classes(path: Path, model: PreTrainedModel) -> Classes:
    """The classes of a file: a table of units, or a Torch file of directions."""
    if path.suffix == ".pt":
        return DirectionClasses(model, labelled_from_content(read_tensors(path)))
    return UnitClasses(model, read_table(path, ["unit", "label", "draw"]))
