"""What a benchmark aims at beside what it reached, and how repeated measurements are told."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Goal:
    """Something measured and the most (or least) that it should be.

    Attributes:
        what: in words, its unit with it.
        subject: the model it was measured on.
        reached: None where it could not be told.
    """

    what: str
    subject: str
    limit: float
    reached: float | None
    at_least: bool = False

    def record(self) -> dict:
        """As it is written, with whether it was met."""
        if self.reached is None:
            return asdict(self) | {"met": None}
        above = self.reached >= self.limit
        return asdict(self) | {"met": above if self.at_least else self.reached <= self.limit}


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = np.quantile(np.asarray(values), (0.25, 0.5, 0.75))
    return {"median": float(middle), "low": float(low), "high": float(high)}
