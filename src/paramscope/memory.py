"""Keeping to a limit of memory, and to what there is."""

import gc
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import psutil
import torch

from paramscope.errors import DeviceError, RequestError

R = TypeVar("R")
TOLD = (  # how errors of torch and its libraries word it, and Python's where a stack has no room
    "can't allocate memory",
    "Cannot allocate memory",
    "out of memory",
    "bad_alloc",
    "STATUS_ALLOC_FAILED",
    "can't start new thread",
)


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


@dataclass
class Microbatch:
    """Sequences a forward: as many as asked for, and half of them each time that memory runs out.

    Attributes:
        asked: how many were asked for.
        name: what they are called in a record, an option's name.
        mend: what takes less memory where one is too many already, in words.
        taken: how many it is by now.

    Raises:
        RequestError: fewer than one is asked for.
    """

    asked: int
    name: str = "batch"
    mend: str = "take a device with more"
    taken: int = field(init=False)

    def __post_init__(self) -> None:
        if self.asked < 1:
            raise RequestError(f"{self.name} is {self.asked}; give 1 or more")
        self.taken = self.asked

    def fit(self, run: Callable[[int], R], most: int | None = None) -> R:
        """`run(taken)`, begun anew with half of it each time that memory runs out.

        Whatever `run` changes, its start has to undo. `most` is all that there is to take.

        Raises:
            DeviceError: one sequence does not fit either.
        """
        while True:
            size = min(self.taken, most or self.taken)
            try:
                return run(size)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            if size == 1:  # the error and what it held are gone here
                raise DeviceError(f"out of memory with one sequence a forward; {self.mend}")
            self.taken = size // 2
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            many = "1 sequence" if self.taken == 1 else f"{self.taken} sequences"
            print(f"out of memory: going on with {many} a forward", flush=True)

    def lower(self, taken: int | None) -> None:
        """Take no more than an earlier process came down to."""
        self.taken = min(self.taken, taken or self.taken)


def fitting(batch_size: int | Microbatch, run: Callable[[int], R], most: int) -> R:
    """`run` of so many sequences, at most `most`; fewer only of a Microbatch, as by its `fit`."""
    if isinstance(batch_size, Microbatch):
        return batch_size.fit(run, most)
    return run(min(batch_size, most))


def pieces(
    n: int, batch_size: int | Microbatch, run: Callable[[slice], R]
) -> Iterator[tuple[slice, R]]:
    """The places 0 to n, a batch at a time and in order, each with what `run` makes of it.

    Where memory runs out a Microbatch is halved: the batch that failed is begun anew, and those
    before it stand.

    Raises:
        RequestError: batches of less than one.
        DeviceError: as `Microbatch.fit`.
    """
    if not isinstance(batch_size, Microbatch) and batch_size < 1:
        raise RequestError(f"batches of {batch_size}; give 1 or more")
    start = 0
    while start < n:

        def piece(size: int, start: int = start) -> tuple[slice, R]:
            place = slice(start, start + size)
            return place, run(place)

        done = fitting(batch_size, piece, n - start)
        yield done
        start = done[0].stop


def halved(*microbatches: Microbatch) -> dict[str, dict[str, int]]:
    """For a record, by name: what was asked for and what was taken at last, where they differ."""
    return {
        each.name: {"asked": each.asked, "taken": each.taken}
        for each in microbatches
        if each.taken < each.asked
    }
