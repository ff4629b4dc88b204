"""Sums are kept in float32 at least, whatever the model's own format."""

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or float64 where it has that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def accumulator(like: Tensor, *shape: int) -> Tensor:
    """Zeros of `shape` on `like`'s device, in the format of `wide(like)`."""
    return torch.zeros(
        shape, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device
    )
