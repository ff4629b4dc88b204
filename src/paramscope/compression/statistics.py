"""What a method knows of a layer's inputs: squares by column, or all second moments."""

import warnings
from typing import Protocol

import torch
from torch import Tensor

from paramscope.compression.inverse_factor import inverse_factor_, mirror_, tiles
from paramscope.errors import RequestError
from paramscope.rehearsal import rounds

ATTEMPTS = 8  # from .01 of the mean to a hundred thousand times it: nothing is left of H then


class Statistic(Protocol):
    """Sums over a layer's input rows, of which no row is kept."""

    def add(self, rows: Tensor) -> None:
        """Count the inputs of n more tokens, [n, d]."""

    @property
    def squares(self) -> Tensor:
        """Σ x², [d]."""


class Squares:
    """Σ x² of each column, [d]."""

    def __init__(self, width: int, device: torch.device, dtype: torch.dtype) -> None:
        self.squares = torch.zeros(width, dtype=dtype, device=device)

    def add(self, rows: Tensor) -> None:
        """Count the inputs of n more tokens, [n, d]."""
        self.squares += rows.to(self.squares.dtype).square().sum(0)


class SecondMoments:
    """Σ x xᵀ, and in place beside it the factor of its inverse.

    SparseGPT's H is this times 2/n. A common factor changes neither masks nor weights: damping
    is relative to H, scores share the factor, and updates are quotients.

    Attributes:
        matrix: [d, d]; its strict lower triangle is Σ x xᵀ. So is its diagonal until `factor`,
            which puts U there and above. Not to be read above the diagonal before.
        rows: tokens counted.
    """

    def __init__(self, width: int, device: torch.device, dtype: torch.dtype) -> None:
        self.matrix = torch.zeros(width, width, dtype=dtype, device=device)
        self.rows = 0
        self._factored: tuple[Tensor, float] | None = None

    def add(self, rows: Tensor) -> None:
        """Count the inputs of n more tokens, [n, d]: half the products, H being symmetric."""
        rows = rows.to(self.matrix.dtype)
        for a, b in rounds(tiles(len(self.matrix)), 1):
            self.matrix[a:, a:b].addmm_(rows[:, a:].T, rows[:, a:b])
        self.rows += len(rows)

    @property
    def squares(self) -> Tensor:
        """Σ x², [d]."""
        return self.matrix.diagonal() if self._factored is None else self._factored[0]

    def full(self) -> Tensor:
        """Σ x xᵀ as a matrix of its own, [d, d]."""
        copy = self.matrix.clone()
        copy.diagonal().copy_(self.squares)
        mirror_(copy)
        return copy

    def factor(self, share: float) -> tuple[Tensor, float]:
        """U with UᵀU the inverse of the damped matrix, and the damping that it took.

        A share of the mean of the diagonal's live entries is added to the diagonal; a dead one,
        of an input that is always 0, gets that mean for its own. Ten times as much is added,
        with a warning, as long as the factorisation fails.

        Returns:
            The matrix whose upper triangle is U, [d, d], and the share. What stands below U's
            diagonal is not U's.

        Raises:
            RequestError: no damping makes the matrix positive definite.
        """
        if self._factored is not None:
            return self.matrix, self._factored[1]
        squares = self.matrix.diagonal().clone()
        live = squares > 0
        mean = squares[live].mean() if bool(live.any()) else squares.new_ones(())
        for _ in range(ATTEMPTS):
            mirror_(self.matrix)
            self.matrix.diagonal().copy_(torch.where(live, squares, mean) + share * mean)
            if inverse_factor_(self.matrix):
                self._factored = squares, share
                return self.matrix, share
            warnings.warn(
                f"second moments are not positive definite at damping {share:g}; "
                f"trying {10 * share:g}",
                RuntimeWarning,
                stacklevel=2,
            )
            share *= 10
        raise RequestError(
            f"second moments of {self.rows} tokens have no Cholesky factor at any damping; "
            "give more calibration text, or compute in float64"
        )

    def energy(self, weight: Tensor) -> float:
        """‖W X‖² = tr(W Σxxᵀ Wᵀ) of `weight` [p, d]."""
        weight = weight.to(self.matrix.dtype)
        total = 0.0
        for a, b in rounds(tiles(len(self.matrix)), 1):
            own = weight[:, a:b]
            half = self.matrix[a:b, a:b].tril(-1).mul_(2)
            half.diagonal().copy_(self.squares[a:b])
            product = own @ half
            product.addmm_(weight[:, b:], self.matrix[b:, a:b], alpha=2)
            total += float(product.mul_(own).sum(dtype=torch.float64))
        return max(total, 0.0)
