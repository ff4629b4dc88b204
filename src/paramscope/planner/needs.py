"""What the stages of a run need of memory: strategies' estimates, and what is held beside them.

Main memory has the process, too: what Python and its libraries take before any work, measured
once, and what they load when they first compute. Text is counted by its characters, at what
tokenizing was seen to take.
"""

import hashlib
import json
import math
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig

from paramscope.artifacts.atomic import atomic
from paramscope.config.kinds import Checkpoint, Scratch
from paramscope.config.model import Config
from paramscope.dpsgd.workloads import Workload, architecture
from paramscope.errors import RequestError
from paramscope.models.load import Architecture, opt_config
from paramscope.planner.cache import Store
from paramscope.planner.cache_folder import default_folder
from paramscope.planner.estimate import Estimate
from paramscope.planner.known_devices import Device
from paramscope.planner.models import PRESETS, Source, configuration
from paramscope.planner.options import Options
from paramscope.planner.runs import DeviceKind
from paramscope.planner.sizes import Sizes, sizes
from paramscope.planner.stages.phases import Phase, Stage
from paramscope.planner.terms import measured_process_bytes

IMPORTED = ("paramscope.models.training", "sklearn.metrics")  # by the dearest stages
# Of a first step of training 20 MB were seen, of a first forward mode 10, of private training's
# imports 3; the rest is what malloc keeps.
FIRST_USE_BYTES = 70_000_000
# 1.2 GB by the context (pytorch/pytorch#106511), .6 more with cuDNN's kernels (#12873).
CUDA_HOST_BYTES = 2_000_000_000
# Of a character, all copies included: 40 to 56 bytes were seen of documents, 180 of one long text.
DOCUMENT_BYTES, WINDOW_BYTES = 64, 192

# What glibc keeps at the top of its heap before it gives back: twice the largest mmap threshold,
# 32 MiB (mallopt(3), M_TRIM_THRESHOLD); and between blocks in use, of which 3 to 24% were seen in
# the stages of a model of 23 million parameters, most in training with two threads.
TOP_BYTES, BETWEEN = 2**26, 0.25
# Pages of libraries' files, which RLIMIT_DATA does not count: 175 MB were seen.
LIBRARY_BYTES = 200_000_000
UNLIMITED = 2**63

Workloads = tuple[tuple[str, Any], ...]
Estimated = Callable[[Source, str, Options, DeviceKind, Device | None], Estimate]


@dataclass(frozen=True)
class Need:
    """What a stage takes.

    Attributes:
        doing: the strategy of its highest phase; empty where none is.
        device_bytes: on the GPU; None where it computes on the CPU, or not at all.
        memory_bytes: in main memory, without the pages of mapped files.
        resident_bytes: with them, as a system counts a process's memory.
    """

    doing: str
    device_bytes: int | None
    memory_bytes: int
    resident_bytes: int

    @property
    def mem_mb(self) -> int:
        """Main memory in Snakemake's unit, 10⁶ bytes."""
        return math.ceil(self.resident_bytes / 1e6)


def process_bytes(folder: Path | None = None) -> int:
    """What a stage's process takes before there is a model: measured, and kept in the cache."""
    versions = [platform.python_version(), platform.platform(), torch.__version__]
    versions += [transformers.__version__, str(FIRST_USE_BYTES), *IMPORTED]
    digest = hashlib.sha256(json.dumps(versions).encode()).hexdigest()[:16]
    path = (folder or default_folder()) / "processes" / f"{digest}.json"
    try:
        return int(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        found = measured_process_bytes(IMPORTED) + FIRST_USE_BYTES
    try:
        with atomic(path) as partial:
            partial.write_text(json.dumps(found), encoding="utf-8")
    except OSError:
        pass  # such as no home, or no room: measured anew next time
    return found


def source_of(config: Config) -> PretrainedConfig:
    """The architecture of the run's model.

    Raises:
        RequestError: a checkpoint whose configuration is out of reach.
    """
    model = config.models[config.model]
    if isinstance(model, Scratch):
        shape = Architecture(
            model.hidden, model.layers, model.heads, model.ffn, positions=model.positions
        )
        return opt_config(shape, model.vocab, dropout=0.0, attention_dropout=0.0)
    assert isinstance(model, Checkpoint)  # a planted model has no stage that takes one
    preset = model.source.removeprefix("facebook/")
    if preset != model.source and preset in PRESETS:  # as published there
        return configuration(preset)
    folder = Path(model.source)
    return configuration(folder if folder.is_dir() else model.source)


class Planner:
    """Plans the stages of one configuration; what is asked for twice is estimated once.

    Args:
        config: the run's.
        device: what computes; its kind decides how blocks of memory are counted.
        process: what a process takes, in bytes.
        made: makes estimates; by default the store, which keeps them.
    """

    def __init__(
        self, config: Config, device: Device, process: int, made: Estimated | None = None
    ) -> None:
        self.config, self.device = config, device
        self.kind: DeviceKind = "cuda" if device.kind == "cuda" else "cpu"
        self.process = process
        self._made = made or Store().estimate
        self._models: dict[Workloads, PretrainedConfig] = {}
        self._sizes: dict[tuple[Workloads, str], Sizes] = {}
        self._peaks: dict[tuple[Workloads, str, Options], int] = {}

    def need(self, stage: Stage) -> Need:
        """What the stage takes; no more than the limit that it keeps to, past which it halves its
        batch, or ends.

        Raises:
            RequestError: a model or strategy that can't be, of a stage that is binding.
        """
        phases = () if stage.predicted and self.kind == "cpu" else stage.phases
        found = [self._phase(phase, stage) for phase in phases]
        parts = [part for part in found if part is not None]
        text = DOCUMENT_BYTES * stage.documents + WINDOW_BYTES * stage.windows
        fixed = self.process + text
        on_gpu = stage.computes and self.kind == "cuda"
        limit = round(stage.memory_gb * 1e9) or UNLIMITED
        highest = max(parts, key=lambda part: (part.device, part.memory), default=_Part())
        if on_gpu:
            device = min(limit, max((part.device for part in parts), default=0))
            fixed, limit = fixed + CUDA_HOST_BYTES, UNLIMITED
        memory = fixed + max((part.memory for part in parts), default=0)
        resident = fixed + max((part.memory + part.file for part in parts), default=0)
        over = max(0, memory - limit - LIBRARY_BYTES)
        return Need(highest.doing, device if on_gpu else None, memory - over, resident - over)

    def _phase(self, phase: Phase, stage: Stage) -> "_Part | None":
        """A phase's memory by where it is; None of one that can't be and need not."""
        try:
            return self._parts(phase, stage)
        except RequestError:
            if stage.binding:
                raise
            return None

    def _parts(self, phase: Phase, stage: Stage) -> "_Part":
        of = self._sizes_of(phase)
        by_place = dict.fromkeys(("device", "memory", "copy", "file"), 0)
        for held in phase.held:
            by_place[held.where] += of.of(held)
        if phase.strategy is not None:
            by_place["device"] += self._strategy(phase)
        elif phase.model:
            by_place["device"] += of.weights
        doing = phase.strategy or ""
        if stage.computes and self.kind == "cuda":
            memory = by_place["memory"] + by_place["copy"]
            return _Part(doing, by_place["device"], memory, by_place["file"])
        live = by_place["device"] + by_place["memory"]
        reserve = TOP_BYTES + round(BETWEEN * live)
        return _Part(doing, 0, live + reserve, by_place["file"])

    def _strategy(self, phase: Phase) -> int:
        """The strategy's own peak, with the terms that are known."""
        strategy, options = str(phase.strategy), Options(**phase.options)
        key = (_workload(phase), strategy, options)
        if key not in self._peaks:
            source = self._source_of(phase)
            found = self._made(source, strategy, options, self.kind, self.device)
            self._peaks[key] = found.peak_bytes
            if self.kind == "cuda":  # of a CPU's terms, what malloc keeps is of all that is held
                self._peaks[key] += sum(row["bytes"] or 0 for row in found.terms)
        return self._peaks[key]

    def _sizes_of(self, phase: Phase) -> Sizes:
        dtype = str(phase.options.get("dtype", self.config.dtype))
        key = (_workload(phase), dtype)
        if key not in self._sizes:
            self._sizes[key] = sizes(self._source_of(phase), getattr(torch, dtype))
        return self._sizes[key]

    def _source_of(self, phase: Phase) -> PretrainedConfig:
        key = _workload(phase)
        if key not in self._models:
            own = source_of(self.config) if not key else None
            self._models[key] = own or architecture(Workload("", **dict(key)))
        return self._models[key]


def _workload(phase: Phase) -> Workloads:
    """What tells a phase's model from the run's, which is empty."""
    return tuple(sorted((phase.workload or {}).items()))


@dataclass(frozen=True)
class _Part:
    """A phase's memory, in bytes: on the GPU, in main memory, and in mapped files."""

    doing: str = ""
    device: int = 0
    memory: int = 0
    file: int = 0
