"""The storages under tensors, and the bytes that an allocator gives them."""

import weakref
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, UntypedStorage
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from paramscope.errors import RequestError

Rounding = Literal["none", "cuda"]

CUDA_BLOCK_BYTES = 512  # kMinBlockSize in c10/cuda/CUDACachingAllocator.cpp (torch 2.13)


class Counted:
    """A storage that is counted.

    Attributes:
        asked: its bytes.
        bytes: what they take up, rounded.
        category: what they are.
        since: number of the event from which on they have been that.
        gone: tells when the storage is freed.
    """

    __slots__ = ("asked", "bytes", "category", "gone", "since")

    def __init__(self, category: str, since: int, gone: "weakref.ref[UntypedStorage]") -> None:
        self.asked = self.bytes = 0
        self.category, self.since, self.gone = category, since, gone


def storages_of(values: Iterable[object], device_type: str | None = None) -> list[UntypedStorage]:
    """The storages of all tensors in `values`, nested ones and a sparse tensor's parts included.

    A storage comes once a tensor that has it; tensors on devices of another type than
    `device_type` are left out, and so are those that have no memory (meta tensors).

    Raises:
        RequestError: a tensor of a layout whose parts are not known, such as `sparse_csr`.
    """
    found: list[UntypedStorage] = []
    for value in values:
        if isinstance(value, Tensor):
            if device_type is not None and value.device.type != device_type:
                continue  # asked of the tensor: a fake one's storage is on no device
            if _without_memory(value):
                continue
            if value.layout is torch.strided:
                found.append(value.untyped_storage())
            elif value.layout is torch.sparse_coo:
                found += storages_of((value._indices(), value._values()), device_type)
            else:
                raise RequestError(
                    f"tensors of layout {value.layout} can't be counted; make them dense"
                )
        elif isinstance(value, list | tuple):
            found += storages_of(value, device_type)
        elif not isinstance(value, PLAIN):
            leaves = tree_leaves(value)
            if len(leaves) != 1 or leaves[0] is not value:
                found += storages_of(leaves, device_type)
    return found


def _without_memory(tensor: Tensor) -> bool:
    """Whether it has sizes alone; forward mode makes meta and zero tensors for tangents of zero.

    To ask a fake tensor whether it is meta takes an operation, through every dispatch mode.
    """
    meta = tensor.fake_device.type == "meta" if isinstance(tensor, FakeTensor) else tensor.is_meta
    return meta or tensor._is_zerotensor()


# Most of an operation's arguments: told apart first, since looking for leaves takes longer.
PLAIN = (int, float, str, type(None), torch.dtype, torch.device, torch.layout)


def rounded(size: int, rounding: Rounding) -> int:
    """Bytes that an allocation of `size` bytes takes up.

    "cuda" is how torch's caching allocator rounds a request: up to whole blocks of 512 bytes,
    none for none (`round_size` in c10/cuda/CUDACachingAllocator.cpp, without the option
    roundup_power2_divisions). What a larger cached block leaves unsplit, up to 1 MiB, and
    what the allocator keeps in reserve depend on its past and are not in it.
    """
    if rounding == "cuda":
        return -(-size // CUDA_BLOCK_BYTES) * CUDA_BLOCK_BYTES
    return size
