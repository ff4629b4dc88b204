"""Masks at one bit a weight."""

import numpy as np
import torch
from torch import Tensor


def pack(mask: Tensor) -> Tensor:
    """A mask's bits in row-major order, the first lowest in its byte: uint8 [⌈n/8⌉], on the CPU."""
    return torch.from_numpy(np.packbits(mask.cpu().flatten().numpy(), bitorder="little"))


def unpack(bits: Tensor, shape: torch.Size | list[int]) -> Tensor:
    """The mask of that shape again, bool, on the CPU."""
    count = int(np.prod(shape))
    values = np.unpackbits(bits.numpy(), count=count, bitorder="little")
    return torch.from_numpy(values.view(np.bool_)).reshape(shape)
