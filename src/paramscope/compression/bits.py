"""Masks at one bit a weight."""

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import FakeTensor


def pack(mask: Tensor) -> Tensor:
    """A mask's bits in row-major order, the first lowest in its byte: uint8 [⌈n/8⌉], on the CPU."""
    if isinstance(mask, FakeTensor):
        return torch.empty(-(-mask.numel() // 8), dtype=torch.uint8)  # no values to pack
    return torch.from_numpy(np.packbits(mask.cpu().flatten().numpy(), bitorder="little"))


def unpack(bits: Tensor, shape: torch.Size | list[int]) -> Tensor:
    """The mask of that shape again, bool, on the CPU."""
    if isinstance(bits, FakeTensor):
        return torch.empty(shape, dtype=torch.bool)
    count = int(np.prod(shape))
    values = np.unpackbits(bits.numpy(), count=count, bitorder="little")
    return torch.from_numpy(values.view(np.bool_)).reshape(shape)
