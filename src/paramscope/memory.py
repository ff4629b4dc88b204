"""Keeping to a limit of memory, and to what there is."""

import gc
import resource
from collections.abc import Callable
from typing import TypeVar

import psutil
import torch

from paramscope.errors import DeviceError

R = TypeVar("R")
TOLD = ("can't allocate memory", "out of memory", "bad_alloc")  # how torch's errors word it


def limit_memory(gigabytes: float, device: torch.device) -> None:
    """Let this process hold at most `gigabytes` (10⁹ bytes) of data; 0 sets no limit.

    On a CPU the system keeps the limit (RLIMIT_DATA: all private memory, Python's and the
    libraries' too, without files that are mapped to be read). On CUDA torch's allocator keeps
    it; the context, some .5 GB, comes on top.

    Raises:
        DeviceError: the process holds more already, or a GPU has less.
    """
    if not gigabytes:
        return
    limit = int(gigabytes * 1e9)
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        if limit > total:
            raise DeviceError(f"--memory-gb {gigabytes:g}: {device} has {total / 1e9:.1f} GB")
        torch.cuda.set_per_process_memory_fraction(limit / total, device)
        return
    # Not getrusage's peak, which a process inherits from the one that started it.
    memory = psutil.Process().memory_info()
    held = getattr(memory, "data", memory.rss)
    if held > limit:
        raise DeviceError(
            f"--memory-gb {gigabytes:g}: Python and its libraries hold {held / 1e9:.2f} GB before "
            "any work; give more"
        )
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU, a CPU or in Python itself."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in TOLD)


def fitting(run: Callable[[int], R], batch_size: int) -> R:
    """`run(batch_size)`, begun anew with half the batch each time that memory runs out.

    Raises:
        DeviceError: a batch of one does not fit either.
    """
    while True:
        try:
            return run(batch_size)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        if batch_size == 1:  # the error and what it held are gone here
            raise DeviceError(
                "out of memory with one sequence a forward; --graph layerwise takes less, and so "
                "do fewer --draws, a smaller --length or --dtype bfloat16"
            )
        batch_size //= 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(f"out of memory: beginning anew with {batch_size} sequences a forward", flush=True)
