"""Real runs of strategies: what torch's profiler and the system tell that they took.

Nothing of ours counts here, so that a plan can be held to it. A run has a process of its own, in
which nothing else has grown, with a fixed number of threads, each of which has scratch.
"""

import json
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import sdpa_kernel
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import PretrainedConfig

from paramscope.devices import choose_device
from paramscope.dpsgd.workloads import Workload, architecture
from paramscope.errors import DeviceError
from paramscope.planner.models import new_model
from paramscope.planner.options import Options
from paramscope.planner.runs import ALL_KERNELS, whole_text
from paramscope.planner.strategies import STRATEGIES
from paramscope.tracker import MemoryTracker

BEGUN = "strategy"  # the first event after the model's making, which takes memory of its own
NOTED = "numpy "  # events of NumPy's memory, their bytes after it
# Threads that wait in a loop take ten times as long where other work shares the cores.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Case:
    """A strategy on a model of some sizes.

    Attributes:
        strategy: its name.
        workload: the model, as many positions as `options.length`.
        options: how the strategy is run, with torch's own choices made (`estimate.resolved`).
    """

    strategy: str
    workload: Workload
    options: Options


@dataclass(frozen=True)
class Measured:
    """What a run took.

    Attributes:
        peak_bytes: what its tensors and kernels held at most, by torch's profiler.
        rss_bytes: of the process at most, by the system, Python and its libraries included.
    """

    peak_bytes: int
    rss_bytes: int


def run_alone(case: Case, threads: int) -> Measured:
    """Run a case twice in a process of its own: as it is for the system, then profiled.

    Raises:
        DeviceError: the process failed.
    """
    job = json.dumps({**asdict(case), "threads": threads})
    given = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)} | ENVIRONMENT
    command = [sys.executable, "-m", __name__]
    done = subprocess.run(
        command, input=job, capture_output=True, text=True, env=os.environ | given, check=False
    )
    if done.returncode:
        cause = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        raise DeviceError(f"the real run of {case.strategy} failed: {cause}; free memory for it")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def run(config: PretrainedConfig, strategy: str, options: Options) -> None:
    """Run a strategy on the CPU at random weights, as `estimate.measure` does, uncounted."""
    torch.manual_seed(0)
    with sdpa_kernel(ALL_KERNELS):
        model = new_model(config, getattr(torch, options.dtype))
        with record_function(BEGUN):
            text = whole_text(options, model.config.vocab_size)
        STRATEGIES[strategy].run(model, text, options, MemoryTracker(), lambda phase: None)


def profiled_peak(config: PretrainedConfig, strategy: str, options: Options) -> int:
    """The most bytes that a run's allocations came to, by torch's profiler, the model's included.

    What is held while the model is made does not count: it may be more than what comes after.
    NumPy's memory under tensors does, which the profiler alone does not show.
    """
    with (
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen,
        _numpy_noted(),
    ):
        run(config, strategy, options)
    assert seen.profiler is not None
    changes, begin = [], 0
    for event in seen.profiler.kineto_results.events():
        name, at = event.name(), event.start_ns()
        if name == "[memory]":
            changes.append((at, event.nbytes()))
        elif name.startswith(NOTED):
            changes.append((at, int(name.removeprefix(NOTED))))
        elif name == BEGUN:
            begin = at
    held = peak = 0
    for at, change in sorted(changes, key=lambda pair: pair[0]):
        held += change
        peak = max(peak, held) if at >= begin else peak
    return peak


@contextmanager
def _numpy_noted() -> Iterator[None]:
    """A block in which tensors in NumPy's memory leave events as they come and go."""
    made = torch.from_numpy

    def note(change: int) -> None:
        with record_function(f"{NOTED}{change}"):
            pass

    def noted(array: NDArray[Any]) -> Tensor:
        tensor = made(array)
        storage = tensor.untyped_storage()
        note(storage.nbytes())
        weakref.finalize(storage, note, -storage.nbytes()).atexit = False
        return tensor

    torch.from_numpy = noted  # type: ignore[assignment]  # torch names the argument otherwise
    try:
        yield
    finally:
        torch.from_numpy = made


def most_resident_bytes() -> int:
    """The most main memory that this process has had; what it has now, where that is not told."""
    try:
        words = Path("/proc/self/status").read_text(encoding="ascii").split()
    except OSError:
        return int(psutil.Process().memory_info().rss)
    # Not getrusage's peak, which a process inherits from the one that started it.
    return int(words[words.index("VmHWM:") + 1]) * 1024


def _main() -> None:
    """Do the job on standard input, and tell what was measured in the last line of output."""
    job = json.load(sys.stdin)
    choose_device("cpu", job["threads"])
    config, options = architecture(Workload(**job["workload"])), Options(**job["options"])
    run(config, job["strategy"], options)
    resident = most_resident_bytes()
    peak = profiled_peak(config, job["strategy"], options)
    print(json.dumps(asdict(Measured(peak, resident))))


if __name__ == "__main__":
    _main()
