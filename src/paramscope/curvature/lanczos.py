"""Leading eigenpairs of a symmetric operator by Lanczos with full reorthogonalisation.

Source: Lanczos 1950; Golub and Van Loan, Matrix Computations, 4th ed., section 10.3. Without
reorthogonalisation copies of converged eigenvalues appear; with it the basis stays orthogonal
to rounding at the price of keeping it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import trange


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


def lanczos(
    product: Callable[[Tensor], Tensor], start: Tensor, k: int, steps: int | None = None
) -> Eigenpairs:
    """The k eigenpairs of largest magnitude of the operator `product`, from `start` [N].

    Takes `steps` products, 2k + 10 unless told, or fewer where the basis closes.
    """
    steps = min(steps or 2 * k + 10, len(start))
    basis = torch.zeros(steps, len(start), dtype=start.dtype, device=start.device)
    alphas: list[float] = []
    betas: list[float] = []
    vector = start / start.norm()
    for step in trange(steps, desc="Lanczos", unit="product"):
        basis[step] = vector
        image = product(vector)
        alphas.append(float(image @ vector))
        for _ in range(2):  # twice is enough (Parlett 1980)
            image = image - basis[: step + 1].T @ (basis[: step + 1] @ image)
        betas.append(float(image.norm()))
        if betas[-1] <= 1e-6 * max(map(abs, alphas)):
            break
        vector = image / betas[-1]
    n = len(alphas)
    tridiagonal = torch.diag(torch.tensor(alphas, dtype=torch.float64))
    off = torch.tensor(betas[: n - 1], dtype=torch.float64)
    tridiagonal += torch.diag(off, 1) + torch.diag(off, -1)
    values, coordinates = torch.linalg.eigh(tridiagonal)
    chosen = values.abs().argsort(descending=True)[:k]
    coordinates = coordinates[:, chosen]
    vectors = basis[:n].T @ coordinates.to(basis)
    return Eigenpairs(values[chosen], vectors, betas[n - 1] * coordinates[-1].abs())
