"""Memory that no tracker of dispatched operations sees, as named rows, each with its source.

A row whose size only a run tells is None; the functions `measured_*` tell it after one. The
allocator's rounding of each block is no row: the tracker counts it (`storages.rounded`).

Sources are torch 2.13's: its allocator (c10/core/AllocatorConfig.h for the sizes,
c10/cuda/CUDACachingAllocator.cpp for `get_allocation_size`, `get_free_block`, `should_split`),
without PYTORCH_ALLOC_CONF, and aten/src/ATen/cuda/CublasHandlePool.cpp.
"""

import os
import re
import subprocess
import sys
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from paramscope.errors import DeviceError
from paramscope.nvml import gpu_memory
from paramscope.planner.known_devices import Device
from paramscope.tracker.storages import CUDA_BLOCK_BYTES, rounded

MIB = 2**20

SMALL_BYTES = MIB  # kSmallSize: the largest request that shares a small segment
SMALL_SEGMENT_BYTES = 2 * MIB  # kSmallBuffer
LARGE_SEGMENT_BYTES = 20 * MIB  # large_segment_size's default
OWN_SEGMENT_BYTES = 10 * MIB  # kMinLargeAlloc: from here on a request has its own segment,
SEGMENT_STEP_BYTES = 2 * MIB  # kRoundLarge: of whole steps

# parseChosenWorkspaceSize: ":4096:2:16:8" in KiB, and 32 MiB on Hopper. torch.cuda's own
# memory_allocated told the first after one Linear on an A10G (pytorch/pytorch#95668).
WORKSPACE_BYTES = {7: 8320 * 1024, 8: 8320 * 1024, 9: 32 * MIB}

MALLOC_SHARE = 0.2  # of live tensors

Seen = Literal["allocated", "reserved", "device", "process"]


@dataclass(frozen=True)
class Term:
    """A part of memory that dispatch does not show.

    Attributes:
        name: what it is.
        bytes: its size; None where only a run tells.
        seen_in: the narrowest measure that it is in: what torch tells as allocated, as reserved,
            or only what the device's driver, or the system of the process, tells.
        source: where the size is from, or how to have it.
    """

    name: str
    bytes: int | None
    seen_in: Seen
    source: str


def terms(
    device: Device,
    backward: bool = True,
    blocks: Sequence[int] | None = None,
    context_bytes: int | None = None,
    process_bytes: int | None = None,
    environ: Mapping[str, str] = os.environ,
    live_bytes: int | None = None,
) -> tuple[Term, ...]:
    """The rows of a device's kind.

    `live_bytes` is what tensors hold at the peak. `blocks` are the sizes in bytes of the storages
    that are live then, in the order in which they were allocated; without them the allocator's
    reserve is None. `context_bytes` and `process_bytes` are measured ones. `backward` is whether
    the stage has a backward, and `environ` where CUBLAS_WORKSPACE_CONFIG is looked up.
    """
    if device.kind == "cuda":
        return _cuda_terms(device, backward, blocks, context_bytes, environ)
    return (
        Term(
            "Python and libraries",
            process_bytes,
            "process",
            "given, or resident memory after the imports (measured_process_bytes)",
        ),
        Term(
            "malloc's reserve",
            None if live_bytes is None else round(MALLOC_SHARE * live_bytes),
            "process",
            "at most, of live tensors: freed memory that glibc keeps, of blocks below its mmap "
            "threshold, which moves up to 32 MiB (mallopt(3), M_MMAP_THRESHOLD); 10 to 13% were "
            "seen in training OPT-125M, 20% in masked finetuning of OPT-350M in bfloat16",
        ),
    )


def _cuda_terms(
    device: Device,
    backward: bool,
    blocks: Sequence[int] | None,
    context_bytes: int | None,
    environ: Mapping[str, str],
) -> tuple[Term, ...]:
    workspace = workspace_bytes(device.capability, environ.get("CUBLAS_WORKSPACE_CONFIG"))
    handles = 2 if backward else 1
    reserve = None
    if blocks is not None and workspace is not None:
        held = [*blocks, *[workspace] * handles]
        reserve = reserved_bytes(held) - sum(rounded(size, "cuda") for size in held)
    return (
        Term(
            "CUDA context",
            context_bytes,
            "device",
            "given, or after a run what NVML tells of the process less what torch reserves "
            "(measured_context_bytes); 287 MB seen, 667 MB with all kernels loaded "
            "(pytorch/pytorch#86509)",
        ),
        Term(
            "cuBLAS workspace",
            None if workspace is None else handles * workspace,
            "allocated",
            f"{handles} of parseChosenWorkspaceSize (ATen/cuda/CublasHandlePool.cpp): one a "
            "thread and stream, and the backward has its own thread; cuBLASLt shares them "
            "(torch.backends.cuda.blas_workspace_size)",
        ),
        Term(
            "allocator reserve",
            reserve,
            "reserved",
            "segments of 2 and 20 MiB less the blocks in them, as if these had been allocated "
            "anew in their order (CUDACachingAllocator.cpp); what earlier blocks left is not in it",
        ),
    )


def workspace_bytes(capability: int | None, config: str | None = None) -> int | None:
    """Bytes of one cuBLAS workspace, by the major number of the GPU's compute capability.

    `config` is what CUBLAS_WORKSPACE_CONFIG says, as pairs :KiB:count; it goes before the
    capability. None for a capability that is not told, and for those above 9, of which
    torch's versions differ (pytorch/pytorch#175344, #182669).
    """
    pairs = re.findall(r":([0-9]+):([0-9]+)", config or "")
    if pairs:
        return sum(int(size) * 1024 * int(count) for size, count in pairs)
    return None if capability is None else WORKSPACE_BYTES.get(capability)


def segment_bytes(size: int) -> int:
    """Bytes that the allocator asks of the driver for a request that no free block can serve."""
    size = rounded(size, "cuda")
    if size <= SMALL_BYTES:
        return SMALL_SEGMENT_BYTES
    if size < OWN_SEGMENT_BYTES:
        return LARGE_SEGMENT_BYTES
    return -(-size // SEGMENT_STEP_BYTES) * SEGMENT_STEP_BYTES


def reserved_bytes(sizes: Iterable[int]) -> int:
    """Bytes of all segments, after requests of `sizes` bytes in their order and no free.

    Each request takes the smallest free block that serves it, of those for requests of its
    kind (small, up to 1 MiB, or large), else a new segment. What is left of a block stays free
    where it has 512 bytes or more (small), or more than 1 MiB (large); else it is lost.
    """
    free: dict[bool, list[int]] = {True: [], False: []}
    total = 0
    for size in sizes:
        if not size:
            continue
        size = rounded(size, "cuda")
        small = size <= SMALL_BYTES
        fitting = bisect_left(free[small], size)
        if fitting < len(free[small]):
            block = free[small].pop(fitting)
        else:
            block = segment_bytes(size)
            total += block
        left = block - size
        stays = left >= CUDA_BLOCK_BYTES if small else left > SMALL_BYTES
        if stays:
            insort(free[small], left)
    return total


def measured_context_bytes(device: torch.device) -> int | None:
    """What this process holds of a GPU beside torch's allocator, by NVML; None where not told.

    Kernels are loaded when they are first called: ask after the stage's operations have run.
    """
    processes = (gpu_memory(device) or {}).get("processes") or {}
    held = processes.get(str(os.getpid()))
    return None if held is None else max(0, int(held) - torch.cuda.memory_reserved(device))


def measured_process_bytes(modules: Sequence[str] = ("paramscope.models.load",)) -> int:
    """Resident bytes of a fresh Python that has imported `modules`: what a stage begins with.

    Raises:
        DeviceError: they can't be imported.
    """
    code = (
        "import importlib, sys, psutil\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(psutil.Process().memory_info().rss)"
    )
    command = [sys.executable, "-c", code, *modules]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        cause = (run.stderr.strip().splitlines() or [f"exit {run.returncode}"])[-1]
        raise DeviceError(
            f"what Python and its libraries take can't be measured: {cause}; "
            "install the package whole, or give the figure"
        )
    return int(run.stdout.split()[-1])
