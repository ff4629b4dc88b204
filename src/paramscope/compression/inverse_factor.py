"""The upper Cholesky factor of a matrix's inverse, made in the matrix's own upper triangle.

A symmetric H says everything in its lower triangle, so its upper one is free to hold
U with UᵀU = H⁻¹: no second matrix of that size is ever made, and none of the inverse itself.
From H = R Rᵀ with R upper, which is a Cholesky factorisation taken from the last column to the
first, U = R⁻¹. Both steps go tile by tile.
"""

import torch
from torch import Tensor

from paramscope.rehearsal import rounds

TILE = 128


def tiles(n: int) -> list[tuple[int, int]]:
    """The borders of the tiles of `n` columns."""
    return [(start, min(start + TILE, n)) for start in range(0, n, TILE)]


def mirror_(matrix: Tensor) -> None:
    """Copy the strict lower triangle of `matrix` [n, n] onto its strict upper one."""
    for a, b in rounds(tiles(len(matrix)), 1):
        matrix[a:b, b:] = matrix[b:, a:b].T
        below = matrix[a:b, a:b].tril(-1)
        matrix[a:b, a:b].tril_().add_(below.T)


def inverse_factor_(matrix: Tensor) -> bool:
    """Replace the upper triangle of H [n, n], diagonal included, by U with UᵀU = H⁻¹.

    The strict lower triangle stays as it is. Returns whether H was positive definite to working
    precision; where it was not, the upper triangle is lost.
    """
    return _factor_(matrix) and _invert_(matrix)


def _factor_(matrix: Tensor) -> bool:
    """The upper triangle of H becomes R with R Rᵀ = H."""
    borders = tiles(len(matrix))
    for k, (a, b) in rounds([*enumerate(borders)][::-1]):
        own = matrix[a:b, a:b]
        whole = own.triu() + own.triu(1).T
        lower, failed = torch.linalg.cholesky_ex(whole.flip(0, 1))
        if int(failed) or not bool(lower.isfinite().all()):
            return False
        R = lower.flip(0, 1)
        own.tril_(-1).add_(R)
        above = matrix[:a, a:b]
        above.copy_(torch.linalg.solve_triangular(R.T, above, upper=False, left=False))
        for c, e in rounds(borders[:k], 1):
            part = above[c:e]
            matrix[:c, c:e].addmm_(above[:c], part.T, alpha=-1)
            matrix[c:e, c:e].sub_((part @ part.T).triu_())
    return True


def _invert_(matrix: Tensor) -> bool:
    """The upper triangle, R, becomes R⁻¹."""
    borders = tiles(len(matrix))
    for k, (a, b) in rounds([*enumerate(borders)]):
        own = matrix[a:b, a:b]
        one = torch.eye(b - a, dtype=matrix.dtype, device=matrix.device)
        inverse = torch.linalg.solve_triangular(own.triu(), one, upper=True)
        own.tril_(-1).add_(inverse)
        column = matrix[:a, a:b] @ inverse
        for c, e in rounds(borders[:k], 1):  # downwards: a tile hangs on what is still R beneath it
            matrix[c:e, a:b] = -(matrix[c:e, c:e].triu() @ column[c:e])
            matrix[c:e, a:b].addmm_(matrix[c:e, e:a], column[e:], alpha=-1)
    return True
