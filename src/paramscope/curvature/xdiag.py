"""Diagonal of the true Hessian by XDiag: low rank exactly, the rest by probes left out in turn.

With m = probes / 2 sign vectors ω_i, Y = HΩ and Q an orthonormal basis of Y, Q Qᵀ H is H as far
as it has low rank, and Hutchinson's estimate of the diagonal of what is left, (I − Q Qᵀ) H,
needs probes that Q knows nothing of. XDiag leaves out each ω_i in turn: with Q_i the basis made
from the others, the estimate is the mean over i of

    diag(Q_i Q_iᵀ H) + ω_i ∘ (I − Q_i Q_iᵀ) H ω_i,

which is unbiased, and exact where the rank of H is below m. It costs no products beyond HΩ and
HQ. With Y = QR, Q_i Q_iᵀ = Q (I − s_i s_iᵀ) Qᵀ where s_i is the direction of R⁻ᵀ e_i: R⁻ᵀ e_i is
orthogonal to every column of R but the i-th. Since Hω_i = QR e_i and s_iᵀ R e_i = 1/‖R⁻ᵀ e_i‖,

    (I − Q_i Q_iᵀ) H ω_i = Q s_i / ‖R⁻ᵀ e_i‖   and   diag(Q_i Q_iᵀ H) = Σ_j (QM_i)_j ∘ (HQ)_j

with M_i = I − s_i s_iᵀ. Where Y lacks full rank a pseudoinverse stands for the inverse, and a
probe that the others span changes nothing when it is left out: s_i = 0.

Source: Epperly, Tropp and Webber 2024, "XTrace: Making the most of every sample in stochastic
trace estimation" (arXiv:2301.07825).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from paramscope.artifacts.digest import seed_of
from paramscope.curvature.hutchinson import rademacher
from paramscope.curvature.products import HessianProduct
from paramscope.errors import RequestError
from paramscope.models.sequences import Sequences
from paramscope.rehearsal import rounds


def xdiag_draws(
    model: PreTrainedModel,
    sequences: Sequences,
    draws: range,
    *,
    seed: int,
    batch_size: int,
    probes: int = 16,
) -> list[dict[str, Tensor]]:
    """diag H over `sequences`, once a draw: by parameter name, each of its parameter's shape.

    A draw takes `probes` products with H, half of them on sign vectors and half on the basis
    that those span, and is independent of every other. A probe serves all sequences. A draw's
    value hangs on (seed, sequence names, draw number) and `probes`, not on the batch size.

    Needs `vector_bytes` for N parameters beside the model: about N · probes numbers.

    Raises:
        RequestError: `probes` is odd, below 2, or above N.
    """
    product = HessianProduct(model, sequences, batch_size)
    check_probes(probes, product.size)
    dtype = torch.promote_types(product.parameters[0].dtype, torch.float32)
    device = product.parameters[0].device
    size = vector_bytes(product.size, probes, dtype)
    label = f"XDiag draws {draws.start}-{draws.stop - 1}, {size / 2**20:,.0f} MiB of vectors"
    estimates = []
    with tqdm(total=len(draws) * probes, desc=label, unit="product") as progress:

        def counted(vector: Tensor) -> Tensor:
            progress.update()
            return product(vector)

        for draw in draws:
            identity = seed_of(seed, "xdiag", *sequences.names, draw)
            signs = rademacher(product.size * (probes // 2), identity).view(probes // 2, -1)
            diagonal = xdiag(counted, signs.to(device), dtype)
            shaped = product.shaped(diagonal[:, None])
            estimates.append({name: value[0] for name, value in shaped.items()})
    return estimates


def xdiag(product: Callable[[Tensor], Tensor], signs: Tensor, dtype: torch.dtype) -> Tensor:
    """XDiag of the symmetric operator `product` on [N], from sign vectors [m, N]; [N].

    Takes m products on the signs and as many more as the images' rank.
    """
    images = torch.empty(signs.shape, dtype=dtype, device=signs.device)
    for i in rounds(range(len(signs)), 1):
        images[i] = product(signs[i].to(dtype))
    basis, r = torch.linalg.qr(images.T)  # [N, m], [m, m]
    del images
    u, scale, vh = torch.linalg.svd(r)
    rank = int((scale > len(signs) * torch.finfo(dtype).eps * scale[0]).sum())
    basis = basis @ u[:, :rank]  # so that R = diag(scale) Vᵀ, [rank, m]
    vh = vh[:rank]
    dual = vh / scale[:rank, None]  # R⁺ᵀ, its columns R⁻ᵀ e_i
    norms = dual.norm(dim=0)
    # 1 where the others do not span a probe's image (exactly, but for rounding), below it else.
    alone = vh.square().sum(0) > 1 - 1e-3
    s = torch.where(alone, dual / norms, 0)  # [rank, m]
    left_out = torch.where(alone, 1 / norms, 0)
    m = len(signs)
    mean_m = torch.eye(rank, dtype=dtype, device=basis.device) - s @ s.T / m
    diagonal = torch.zeros(signs.shape[1], dtype=dtype, device=basis.device)
    for row, direction, length in zip(signs, s.T, left_out, strict=True):
        diagonal += row * (basis @ (direction * (length / m)))
    for j in rounds(range(rank), 1):
        diagonal += (basis @ mean_m[:, j]) * product(basis[:, j])
    return diagonal


def vector_bytes(size: int, probes: int, dtype: torch.dtype) -> int:
    """Bytes of the vectors of one draw at the peak: signs, images and their basis."""
    return size * probes // 2 * (1 + 2 * dtype.itemsize)


def check_probes(probes: int, size: int) -> None:
    """Whether XDiag can take so many products.

    Raises:
        RequestError: it can't.
    """
    if probes < 2 or probes % 2:
        raise RequestError(f"xdiag takes an even number of probes, at least 2, not {probes}")
    if probes > size:
        raise RequestError(
            f"xdiag with {probes} probes needs as many parameters, and the model has {size};"
            " lower the probes, or take the method `exact`"
        )
