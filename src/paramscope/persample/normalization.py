"""Per-sample gradients of a normalisation's gain and shift.

For y = x̂ ∘ w + b, with x̂ the normalised input [B, T, d] and g = ∂L/∂y, sample s has the
gain gradient Σ_t g_st ∘ x̂_st and the shift gradient Σ_t g_st, both [d].
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from paramscope.persample.precision import wide


def layer_normalized(x: Tensor, eps: float) -> Tensor:
    """x with mean 0 and variance 1 over its last axis (Ba et al. 2016, arXiv:1607.06450)."""
    return F.layer_norm(wide(x), x.shape[-1:], eps=eps)


def rms_normalized(x: Tensor, eps: float) -> Tensor:
    """x over its root mean square (Zhang and Sennrich 2019, arXiv:1910.07467)."""
    x = wide(x)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def by_token(x: Tensor) -> Tensor:
    """[B, T, …, d] as [B, T, d]: a norm on each head is applied several times a token."""
    return x if x.ndim == 3 else x.flatten(2, -2).sum(2)


def gain_squared_sum(normalized: Tensor, g: Tensor) -> Tensor:
    """Σ_s (Σ_t g ∘ x̂)², [d]."""
    return by_token(wide(g) * normalized).sum(1).square().sum(0)


def gain_token_squared_sum(normalized: Tensor, g: Tensor) -> Tensor:
    """Σ over samples and tokens of (g ∘ x̂)², [d]."""
    return by_token(wide(g) * normalized).square().sum((0, 1))


def gain_gradients(normalized: Tensor, g: Tensor) -> Tensor:
    """Σ_t g ∘ x̂ of each sample, [B, d], over every axis between sample and entry."""
    return shift_gradients(wide(g) * normalized)


def shift_gradients(g: Tensor) -> Tensor:
    """Σ_t g of each sample, [B, d], over every axis between sample and entry."""
    return wide(g).sum(tuple(range(1, g.dim() - 1)))
