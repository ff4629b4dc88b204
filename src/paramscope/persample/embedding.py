"""Per-sample gradients of an embedding, from its ids and its output's gradient.

For y_t = E[i_t], with ids i of shape [B, T] and g = ∂L/∂y of shape [B, T, d], row v of
sample s's gradient is Σ over t with i_st = v of g_st: only rows that the sample uses are
non-zero, and only those are made.
"""

import torch
from torch import Tensor

from paramscope.persample.precision import accumulator, wide


def squared_sum(ids: Tensor, g: Tensor, rows: int) -> Tensor:
    """Σ_s G_s², [rows, d], in float32 at least."""
    samples = torch.arange(len(ids), device=ids.device)[:, None]
    used, place = torch.unique(samples * rows + ids, return_inverse=True)
    gradients = accumulator(g, len(used), g.shape[-1])
    gradients.index_add_(0, place.flatten(), wide(g).flatten(0, 1))
    total = accumulator(g, rows, g.shape[-1])
    return total.index_add_(0, used % rows, gradients.square_())


def token_squared_sum(ids: Tensor, g: Tensor, rows: int) -> Tensor:
    """Σ over samples and tokens of g_t², by row, [rows, d]."""
    total = accumulator(g, rows, g.shape[-1])
    return total.index_add_(0, ids.flatten(), wide(g).square().flatten(0, 1))
