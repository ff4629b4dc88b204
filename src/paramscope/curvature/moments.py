"""Mean and spread over draws, entry by entry, merged over shards."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of draws, per parameter entry.

    Attributes:
        count: draws.
        mean: their mean by tensor name, each of its parameter's shape.
        squares: Σ (draw − mean)², likewise.
    """

    count: int
    mean: Mapping[str, Tensor]
    squares: Mapping[str, Tensor]

    def standard_error(self) -> dict[str, Tensor]:
        """Standard error of the mean from the draws' spread; NaN for a single draw."""
        scale = self.count * (self.count - 1)
        if not scale:
            return {name: torch.full_like(x, torch.nan) for name, x in self.mean.items()}
        return {name: (x / scale).sqrt() for name, x in self.squares.items()}


def moments(draws: Sequence[Mapping[str, Tensor]]) -> Moments:
    """Moments of whole draws, in their order."""
    return merge([Moments(1, d, {n: torch.zeros_like(x) for n, x in d.items()}) for d in draws])


def merge(parts: Iterable[Moments]) -> Moments:
    """Moments of all draws of the parts, combined in order (Chan, Golub and LeVeque 1983)."""
    return reduce(_combined, parts)


def _combined(a: Moments, b: Moments) -> Moments:
    n = a.count + b.count
    mean, squares = {}, {}
    for name in a.mean:
        delta = b.mean[name] - a.mean[name]
        mean[name] = a.mean[name] + delta * (b.count / n)
        spread = delta.square() * (a.count * b.count / n)
        squares[name] = a.squares[name] + b.squares[name] + spread
    return Moments(n, mean, squares)


def to_content(part: Moments) -> dict[str, Tensor | int]:
    """A shard's moments as the flat content of a Torch file."""
    mean = {f"mean/{name}": value for name, value in part.mean.items()}
    squares = {f"squares/{name}": value for name, value in part.squares.items()}
    return {"count": part.count, **mean, **squares}


def from_content(content: Mapping[str, Tensor | int]) -> Moments:
    """The inverse of `to_content`."""

    def under(prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): value
            for name, value in content.items()
            if name.startswith(prefix) and isinstance(value, Tensor)
        }

    return Moments(int(content["count"]), under("mean/"), under("squares/"))
