"""What kernels hold for themselves while they run, which no dispatched operation shows.

On a CPU torch's profiler shows these allocations, so they are counted by the kernel's own
formula. Of the kernels on the way of a language model flash attention has such scratch,
log_softmax copies what is not contiguous, and MKL's QR of a tall matrix works in 16 numbers a
row where it has more than one thread. In half precision two things are left out that hang on the
processor: packed copies of keys and values in the forward, and oneDNN's products in the backward.

On CUDA flash attention, which half precision takes, sums the queries' gradient in float32: sizes
up to whole tiles, in blocks of torch's allocator. Fake CPU tensors stand for it. In float32 torch
takes another kernel there, whose workspace is not counted.

Source: torch 2.13's aten/src/ATen/native/cpu/FlashAttentionKernel.cpp and native/SoftMax.cpp;
the tests hold these formulas to the profiler. For CUDA mha_bwd in
native/transformers/cuda/flash_attn/flash_api.cpp; held to no GPU.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from paramscope.tracker.storages import Rounding, rounded

KEYS = 512  # kv_split_size
MKL_QR = 16
CUDA_QUERIES = 128  # a tile's
QUERIES = ((768, 256), (192, 64), (0, 32))  # from so many queries on, q_split_size


def scratch_bytes(
    func: Callable[..., Any], args: Sequence[Any], rounding: Rounding = "none"
) -> int:
    """Bytes that the kernel of an operation holds beside its arguments and results.

    On a CPU each of torch's threads has scratch of its own.

    Args:
        func: the operation.
        args: its arguments by position.
        rounding: "cuda" for the kernels of a GPU.
    """
    rule = (CUDA_SCRATCH if rounding == "cuda" else SCRATCH).get(func)
    return 0 if rule is None else rule(args)


def _forward(args: Sequence[Any]) -> int:
    query, key, *_ = args
    rows, columns = _tile(query, key)
    products, weights = _widths(query)
    width, maximum_and_sum = int(query.shape[-1]), 2
    wide = rows * (columns + maximum_and_sum + width)
    return torch.get_num_threads() * (wide * products + rows * columns * weights)


def _backward(args: Sequence[Any]) -> int:
    gradient, query, key, *_ = args
    rows, columns = _tile(query, key)
    products, weights = _widths(query)
    weights_and_gradients = 2 * rows * columns
    own = weights_and_gradients * (products + weights)
    held = torch.get_num_threads() * own + rows * products
    if not gradient.transpose(1, 2).is_contiguous():
        held += gradient.numel() * gradient.element_size()  # a copy that is
    return held


def _cuda_backward(args: Sequence[Any]) -> int:
    query = args[1]
    if not _is_half(query):
        return 0
    B, H, T, D = query.shape
    tiles = B * H * -(-T // CUDA_QUERIES) * CUDA_QUERIES
    columns = 32 if D <= 128 else 64
    sums = tiles * -(-D // columns) * columns
    return sum(rounded(4 * size, "cuda") for size in (tiles, sums))


def _log_softmax(args: Sequence[Any]) -> int:
    x: Tensor = args[0]
    return 0 if x.is_contiguous() else x.numel() * x.element_size()


def _qr(args: Sequence[Any]) -> int:
    tall: Tensor = args[0]
    work = MKL_QR * tall.shape[-2] if torch.get_num_threads() > 1 else 0
    return work * tall.element_size()


def _tile(query: Tensor, key: Tensor) -> tuple[int, int]:
    queries, keys = query.shape[-2], key.shape[-2]
    split = next(size for least, size in QUERIES if queries >= least)
    return min(split, queries), min(KEYS, keys)


def _widths(query: Tensor) -> tuple[int, int]:
    """Bytes of a number that is summed up, and of one in half precision, 0 where none is."""
    return (4, 2) if _is_half(query) else (query.element_size(), 0)


def _is_half(x: Tensor) -> bool:
    return x.dtype in (torch.bfloat16, torch.float16)


_aten = torch.ops.aten
SCRATCH: Mapping[Callable[..., Any], Callable[[Sequence[Any]], int]] = MappingProxyType(
    {
        _aten._scaled_dot_product_flash_attention_for_cpu.default: _forward,
        _aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _backward,
        _aten._log_softmax.default: _log_softmax,
        _aten.linalg_qr.default: _qr,
    }
)
CUDA_SCRATCH: Mapping[Callable[..., Any], Callable[[Sequence[Any]], int]] = MappingProxyType(
    {
        _aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _cuda_backward,
        _aten._scaled_dot_product_flash_attention_backward.default: _cuda_backward,
    }
)
