"""Leading eigenpairs of a symmetric operator by Lanczos with full reorthogonalisation.

Source: Lanczos 1950; Golub and Van Loan, Matrix Computations, 4th ed., section 10.3. Without
reorthogonalisation copies of converged eigenvalues appear; with it the basis stays orthogonal
to rounding at the price of keeping it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from paramscope.errors import RequestError


@dataclass(frozen=True)
class Eigenpairs:
    """k eigenpairs of largest magnitude.

    Attributes:
        values: [k], by falling magnitude.
        vectors: [N, k], orthonormal.
        residuals: ‖Hv − λv‖, [k]; each eigenvalue is within its residual of a true one.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor


@dataclass(frozen=True)
class LanczosState:
    """What n products have given, and all that the next one needs.

    Attributes:
        alphas: the tridiagonal matrix's diagonal, n numbers.
        betas: below it, n numbers, the last of which leads to the next vector.
        basis: [n + 1, N], orthonormal rows, the last of which is the next vector.
    """

    alphas: Sequence[float]
    betas: Sequence[float]
    basis: Tensor


def lanczos(
    product: Callable[[Tensor], Tensor],
    start: Tensor,
    k: int,
    steps: int | None = None,
    *,
    basis_device: torch.device | None = None,
    checkpoint: Callable[[LanczosState], None] | None = None,
    resume: LanczosState | None = None,
) -> Eigenpairs:
    """The k eigenpairs of largest magnitude of the operator `product`, from `start` [N].

    Takes `steps` products, 2k + 10 unless told, or fewer where the basis closes. The basis,
    `steps` vectors, is kept and worked with on `basis_device`, by default the start's.

    `checkpoint` gets the state after every product but the last; its basis is a view of one
    that grows, to be copied or written within the call. From such a state, given as `resume`
    with the same arguments, the rest is the same to the last bit.

    Raises:
        RequestError: `resume` comes from another start, or has as many products as `steps`.
    """
    steps = min(steps or 2 * k + 10, len(start))
    home = basis_device or start.device
    basis = torch.zeros(steps, len(start), dtype=start.dtype, device=home)
    basis[0] = (start / start.norm()).to(home)
    alphas: list[float] = []
    betas: list[float] = []
    if resume is not None:
        _check(resume, basis)
        alphas, betas = list(resume.alphas), list(resume.betas)
        basis[: len(alphas) + 1] = resume.basis.to(home)
    for step in tqdm(
        range(len(alphas), steps), "Lanczos", steps, initial=len(alphas), unit="product"
    ):
        image = product(basis[step].to(start.device)).to(home)
        alphas.append(float(image @ basis[step]))
        known = basis[: step + 1]
        for _ in range(2):  # twice is enough (Parlett 1980)
            image = image - known.T @ (known @ image)
        betas.append(float(image.norm()))
        if betas[-1] <= 1e-6 * max(map(abs, alphas)) or step + 1 == steps:
            break
        basis[step + 1] = image / betas[-1]
        if checkpoint is not None:
            checkpoint(LanczosState(tuple(alphas), tuple(betas), basis[: step + 2]))
    n = len(alphas)
    tridiagonal = torch.diag(torch.tensor(alphas, dtype=torch.float64))
    off = torch.tensor(betas[: n - 1], dtype=torch.float64)
    tridiagonal += torch.diag(off, 1) + torch.diag(off, -1)
    values, coordinates = torch.linalg.eigh(tridiagonal)
    chosen = values.abs().argsort(descending=True)[:k]
    coordinates = coordinates[:, chosen]
    vectors = basis[:n].T @ coordinates.to(basis)
    return Eigenpairs(values[chosen], vectors, betas[n - 1] * coordinates[-1].abs())


def _check(resume: LanczosState, basis: Tensor) -> None:
    """Whether `resume` can go on in `basis`, whose first row is the start."""
    n = len(resume.alphas)
    if n >= len(basis):
        raise RequestError(f"a basis of {n} products can't be resumed for {len(basis)} steps")
    if resume.basis.shape != (n + 1, basis.shape[1]) or len(resume.betas) != n:
        raise RequestError("the saved Lanczos basis is of another size than the operator's")
    if not torch.equal(resume.basis[0].to(basis), basis[0]):
        raise RequestError("the saved Lanczos basis has another start")
