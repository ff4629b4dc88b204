"""What a process holds over an epoch."""

import psutil
import torch


class EpochMemory:
    """Bytes held at an epoch's start, at its end, and at most.

    On CUDA what torch's allocator has given out, whose peak is exact. On a CPU the process's
    resident memory, its peak the largest of the samples taken, once a step.

    Attributes:
        total_peak: the most over all epochs; set it to go on from another process's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._process = psutil.Process()
        self._before = self._peak = 0
        self.total_peak = 0

    def start(self) -> None:
        """Begin an epoch."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._before = self._peak = self._now()
        self.sample()

    def sample(self) -> None:
        """Look at what is held, where no exact peak is kept."""
        if self._device.type == "cuda":
            held = torch.cuda.max_memory_allocated(self._device)
        else:
            held = self._now()
        self._peak = max(self._peak, held)
        self.total_peak = max(self.total_peak, self._peak)

    def columns(self) -> dict[str, int]:
        """The epoch's memory as columns of epochs.parquet."""
        self.sample()
        return {
            "memory_before_bytes": self._before,
            "memory_consumed_bytes": self._now() - self._before,
            "memory_peak_bytes": self._peak,
            "memory_total_peak_bytes": self.total_peak,
        }

    def _now(self) -> int:
        if self._device.type == "cuda":
            return int(torch.cuda.memory_allocated(self._device))
        return int(self._process.memory_info().rss)
