"""Per-sample gradients of a linear layer, from its input and its output's gradient.

For y = x Wᵀ + b, with x of shape [B, T, d] and g = ∂L/∂y of shape [B, T, p], sample s has
the weight gradient G_s = g_sᵀ x_s of shape [p, d] and the bias gradient Σ_t g_st. Nothing
here holds more than `CHUNK_BYTES` of them at a time.

Sources: Goodfellow 2015 (arXiv:1510.01799); Dangel et al. 2020 (arXiv:1912.10985) for
diagonals from layer inputs and output gradients.
"""

from collections.abc import Iterator

from torch import Tensor

from paramscope.persample.precision import accumulator, wide

CHUNK_BYTES = 64 * 2**20


def squared_sum(x: Tensor, g: Tensor, chunk_bytes: int = CHUNK_BYTES) -> Tensor:
    """Σ_s G_s², elementwise, [p, d], in float32 at least."""
    total = accumulator(g, g.shape[-1], x.shape[-1])
    for gradients in _gradients(x, g, chunk_bytes):
        total += gradients.square_().sum(0)
    return total


def token_squared_sum(x: Tensor, g: Tensor) -> Tensor:
    """Σ over samples and tokens of (g_t x_tᵀ)², [p, d]: Σ_s G_s² without its cross terms.

    Equal in expectation where each token's gradient has mean zero and no two are correlated.
    """
    x, g = wide(x).flatten(0, 1), wide(g).flatten(0, 1)
    return g.square().T @ x.square()


def bias_squared_sum(g: Tensor) -> Tensor:
    """Σ_s (Σ_t g_st)², [p]."""
    return wide(g).sum(1).square().sum(0)


def bias_token_squared_sum(g: Tensor) -> Tensor:
    """Σ over samples and tokens of g_t², [p]."""
    return wide(g).square().sum((0, 1))


def _gradients(x: Tensor, g: Tensor, chunk_bytes: int) -> Iterator[Tensor]:
    """Per-sample weight gradients, [b, p, d], as many samples at a time as fit."""
    sample_bytes = g.shape[-1] * x.shape[-1] * 4
    samples = max(1, chunk_bytes // sample_bytes)
    for xs, gs in zip(x.split(samples), g.split(samples), strict=True):
        yield wide(gs.transpose(1, 2) @ xs)
