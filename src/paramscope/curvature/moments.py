"""Mean and spread over draws, entry by entry, merged over shards."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from paramscope.errors import ArtifactError

NOTHING = 1e-10  # of the largest tensor's mean: below is rounding, as in a key's bias


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of draws, per parameter entry.

    Attributes:
        count: draws.
        mean: their mean by tensor name, each of its parameter's shape.
        squares: Σ (draw − mean)², likewise; empty for fewer than two draws.
        random: whether chance is in them; if not, one "draw" is the answer itself.
    """

    count: int
    mean: Mapping[str, Tensor]
    squares: Mapping[str, Tensor]
    random: bool = True

    def standard_error(self) -> dict[str, Tensor]:
        """Standard error of the mean from the draws' spread; NaN for a single random draw."""
        if not self.random:
            return {name: torch.zeros_like(x) for name, x in self.mean.items()}
        if self.count < 2:
            return {name: torch.full_like(x, torch.nan) for name, x in self.mean.items()}
        scale = self.count * (self.count - 1)
        return {name: (x / scale).sqrt() for name, x in self.squares.items()}

    def worst_error(self) -> float:
        """The largest over tensors of mean standard error over mean; infinite if not known.

        Tensors whose curvature is nothing but rounding are left out.
        """
        if self.random and self.count < 2:
            return float("inf")
        error = self.standard_error()
        means = {name: float(x.double().mean()) for name, x in self.mean.items()}
        least = NOTHING * max(means.values())
        return max(
            float(error[name].double().mean()) / mean
            for name, mean in means.items()
            if mean > least
        )


def moments(draws: Sequence[Mapping[str, Tensor]], random: bool = True) -> Moments:
    """Moments of whole draws, in their order.

    Raises:
        ArtifactError: a draw holds NaN or infinity.
    """
    for draw in draws:
        for name, value in draw.items():
            if not value.isfinite().all():
                raise ArtifactError(
                    f"the curvature of {name} is not finite: the model overflows on this text; "
                    "try --dtype float32 or float64"
                )
    return merge([Moments(1, draw, {}, random) for draw in draws])


def merge(parts: Iterable[Moments]) -> Moments:
    """Moments of all draws of the parts, combined in order (Chan, Golub and LeVeque 1983).

    Parts without draws, of shards that had nothing left to do, are passed over.
    """
    return reduce(_combined, (part for part in parts if part.count))


def _combined(a: Moments, b: Moments) -> Moments:
    n = a.count + b.count
    mean, squares = {}, {}
    for name in a.mean:
        delta = b.mean[name] - a.mean[name]
        mean[name] = a.mean[name] + delta * (b.count / n)
        spread = delta.square_().mul_(a.count * b.count / n)
        for part in (a, b):
            if part.squares:
                spread += part.squares[name]
        squares[name] = spread
    return Moments(n, mean, squares, a.random)


def to_content(part: Moments) -> dict[str, Tensor | int | bool]:
    """A shard's moments as the flat content of a Torch file."""
    mean = {f"mean/{name}": value for name, value in part.mean.items()}
    squares = {f"squares/{name}": value for name, value in part.squares.items()}
    return {"count": part.count, "random": part.random, **mean, **squares}


def from_content(content: Mapping[str, Tensor | int | bool]) -> Moments:
    """The inverse of `to_content`."""

    def under(prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): value
            for name, value in content.items()
            if name.startswith(prefix) and isinstance(value, Tensor)
        }

    count, random = int(content["count"]), bool(content["random"])
    return Moments(count, under("mean/"), under("squares/"), random)
