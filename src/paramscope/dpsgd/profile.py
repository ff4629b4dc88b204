"""What a method costs on a workload: its memory by part and phase, and its time.

Memory is counted in one run (`tracker`), time taken in another without the counting. On fake
tensors memory is computed without a value in it, and there is no time.
"""

import gc
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import psutil
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from paramscope.devices import describe_device
from paramscope.dpsgd.cases import Case, build, iterate
from paramscope.dpsgd.parts import LOGITS, NORMS, STASH
from paramscope.dpsgd.workloads import described, new_model
from paramscope.errors import RequestError
from paramscope.models.faking import faked
from paramscope.nvml import gpu_memory
from paramscope.tracker import (
    ACTIVATIONS,
    GRADIENTS,
    OPTIMIZER_STATES,
    PARAMETERS,
    MemoryTracker,
    Timeline,
)
from paramscope.tracker.thinning import spread

PARTS = {
    PARAMETERS: PARAMETERS,
    GRADIENTS: GRADIENTS,
    OPTIMIZER_STATES: OPTIMIZER_STATES,
    ACTIVATIONS: "saved activations",
    NORMS: NORMS,
    STASH: STASH,
    LOGITS: LOGITS,
}
OTHER = "other"
POINTS = 600  # of a timeline at most
TRACKED = 3  # iterations after the warm-up


def measure(case: Case, device: torch.device, warmup: int, iterations: int) -> dict[str, Any]:
    """The profile of a case on `device`, as a record; see `predict` for one without a run.

    Raises:
        RequestError: the method can't do the workload.
    """
    tracked = count(case, device, warmup)
    gc.collect()
    timed = _timed(case, device, warmup, iterations)
    if device.type == "cuda":
        highest = timed["max_allocated_bytes"]
        tracked["explained"] = tracked["peak"]["bytes"] / highest
    return tracked | timed | {"device": describe_device(device), "predicted": False}


def predict(case: Case, warmup: int = 1) -> dict[str, Any]:
    """The memory of a case on fake CPU tensors: no weight and no gradient has a value.

    Raises:
        RequestError: the method can't do the workload, or is Opacus', whose hooks make tensors
            of their own.
    """
    if case.method in ("opacus_hooks", "opacus_ghost"):
        raise RequestError(f"method {case.method} runs on real tensors alone")
    with faked():
        record = count(case, torch.device("cpu"), warmup)
    none: dict[str, Any] = {"iterations": [], "timing": None, "reserved_bytes": None, "nvml": None}
    return record | none | {"device": "fake tensors", "predicted": True}


def count(case: Case, device: torch.device, warmup: int) -> dict[str, Any]:
    """The memory of a case: snapshots, peak, its parts, and the last iteration's timeline."""
    snapshots: list[dict[str, Any]] = []
    tracker = MemoryTracker(
        timeline=True,
        rounding="cuda" if device.type == "cuda" else "none",
        device_type=device.type if device.type == "cuda" else None,
    )

    def told(name: str, within: str = "") -> None:
        tracker.mark(within + name)
        snapshots.append({"name": within + name, **_now(device)})

    with tracker:
        training = build(case, device, told, tracker)
        for _ in range(warmup):
            iterate(training)
        told("3_after_warmup")
        tracker.reset_peak()
        for i in tqdm(range(TRACKED), desc="counting memory", unit="iteration"):
            iterate(training, partial(told, within=f"iter{i}_"))
    peak, timeline = tracker.peak, tracker.timeline()
    for snapshot, mark in zip(snapshots, timeline.marks, strict=True):
        snapshot["by_part"] = by_part(mark.by_category)
        snapshot["live_bytes"] = sum(mark.by_category.values())
    return _asked(case, device, training.model) | {
        "refused": None,
        "snapshots": snapshots,
        "peak": {"bytes": peak.bytes, "operation": peak.operation, "phase": peak.phase},
        "breakdown": by_part(peak.by_category),
        "explained": 1.0,
        "timeline": last_iteration(timeline),
    }


def refusal(case: Case, device: torch.device, reason: str) -> dict[str, Any]:
    """The record of a method that can't do the workload: why, and nulls."""
    with faked():
        model = new_model(case.workload, case.dtype, torch.device("cpu"))
    empty = dict.fromkeys(
        [
            *("snapshots", "peak", "breakdown", "explained", "timeline", "iterations", "timing"),
            *("reserved_bytes", "max_allocated_bytes", "nvml"),
        ]
    )
    told = {"refused": reason, "device": describe_device(device), "predicted": False}
    return _asked(case, device, model) | empty | told


def _asked(case: Case, device: torch.device, model: PreTrainedModel) -> dict[str, Any]:
    dtype = str(case.dtype).removeprefix("torch.")
    return {
        "workload": described(case.workload, model),
        "method": case.method,
        "options": asdict(case.options) | {"dtype": dtype, "trainable": case.trainable},
        "privacy": {
            "max_norm": case.privacy.max_norm,
            "noise_multiplier": case.privacy.noise_multiplier,
        },
        "device_type": device.type,
    }


def by_part(by_category: Mapping[str, int]) -> dict[str, int]:
    """Bytes by part of the comparison, all parts there; they add up to the same."""
    found = dict.fromkeys([*PARTS.values(), OTHER], 0)
    for category, size in by_category.items():
        found[PARTS.get(category, OTHER)] += size
    return found


def last_iteration(timeline: Timeline) -> dict[str, Any]:
    """The last iteration's part of a timeline, thinned to `POINTS` that include its peak."""
    begin = max(i for i, mark in enumerate(timeline.marks) if mark.phase.endswith("before_forward"))
    marks = timeline.marks[begin:]
    first, last = marks[0].event, marks[-1].event
    highest = first + int(timeline.live_bytes[first : last + 1].argmax())
    events = spread(first, last, POINTS, (highest, *(mark.event for mark in marks)))
    parts = dict.fromkeys([*PARTS.values(), OTHER], np.zeros(len(events), np.int64))
    for category, column in timeline.by_category.items():
        name = PARTS.get(category, OTHER)
        parts[name] = parts[name] + column[events]
    return {
        "live_bytes": timeline.live_bytes[events].tolist(),
        "by_part": {name: column.tolist() for name, column in parts.items()},
        "operation_index": timeline.operation_index[events].tolist(),
        "phases": [
            {"name": mark.phase, "at": int(np.searchsorted(events, mark.event))} for mark in marks
        ],
        "peak_at": int(np.searchsorted(events, highest)),
    }


def _timed(case: Case, device: torch.device, warmup: int, iterations: int) -> dict[str, Any]:
    rows = []
    if device.type == "cuda":
        torch.cuda.empty_cache()
    training = build(case, device)
    with tqdm(total=warmup + iterations, desc="timing", unit="iteration") as bar:
        for i in range(warmup + iterations):
            if i == warmup and device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            times: list[float] = []
            iterate(training, partial(_clock_in, times, device))
            bar.update()
            if i >= warmup:
                forward, backward, step = (float(part) for part in np.diff(times))
                rows.append({
                    "wall_s": forward + backward + step,
                    "forward_s": forward,
                    "backward_s": backward,
                    "step_s": step,
                })  # fmt: skip
    walls = [row["wall_s"] for row in rows]
    timing = {
        "median_s": statistics.median(walls),
        "low_s": min(walls),
        "high_s": max(walls),
        "n": len(walls),
    }
    cuda = device.type == "cuda"
    return {
        "iterations": rows,
        "timing": timing,
        "reserved_bytes": torch.cuda.max_memory_reserved(device) if cuda else None,
        "max_allocated_bytes": torch.cuda.max_memory_allocated(device) if cuda else None,
        "nvml": gpu_memory(device),
    }


def _clock_in(times: list[float], device: torch.device, phase: str) -> None:
    """Note when a phase begins or ends."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    times.append(time.perf_counter())


def _now(device: torch.device) -> dict[str, Any]:
    """What the process holds now beside what is counted."""
    cuda = None
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        cuda = {
            "allocated_bytes": torch.cuda.memory_allocated(device),
            "reserved_bytes": torch.cuda.memory_reserved(device),
            "free_bytes": free,
            "total_bytes": total,
            "nvml": gpu_memory(device),
        }
    return {"rss_bytes": psutil.Process().memory_info().rss, "cuda": cuda}
