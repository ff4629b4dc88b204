"""Estimates: what a strategy takes on a model, from its own code on fake tensors."""

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PretrainedConfig

from paramscope.errors import RequestError
from paramscope.models.faking import faked
from paramscope.models.sequences import Sequences
from paramscope.names import DPSGD_PARTS
from paramscope.planner.closed_forms import row_blocks
from paramscope.planner.known_devices import Device
from paramscope.planner.models import (
    Source,
    alike,
    configuration,
    layer_key,
    new_model,
    with_layers,
)
from paramscope.planner.options import Options
from paramscope.planner.strategies import STRATEGIES, check
from paramscope.planner.terms import terms
from paramscope.planner.traces import (
    FEW,
    Trace,
    extrapolated,
    highest,
    snapshots,
    thinned,
    trace_of,
)
from paramscope.planner.values import KnownValues
from paramscope.tracker import BUFFERS, MemoryTracker

DeviceKind = Literal["cpu", "cuda"]
How = Literal["full", "extrapolated", "closed form", "measured"]
ALL_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True)
class Estimate:
    """What a strategy takes on a model.

    Attributes:
        model: type, layers, and whatever name it was asked for by.
        parameters: N.
        strategy: its name.
        options: how it was run.
        device_kind: whose blocks memory is counted in.
        peak_bytes: live tensors at most, all of the run.
        breakdown: of that, by part (names.DPSGD_PARTS).
        operation: what made the peak.
        phase: where it fell.
        snapshots: what was held when each phase began.
        timeline: at most dpsgd.profile.POINTS events; of an extrapolation the first and last
            layers' alone.
        terms: what dispatch does not see (planner.terms), as rows; bytes null where not known.
        how: one run of all layers, lines through runs of few, a formula, or a real run.
        verified: whether a full run had the same peak, part by part; None where none was asked.
    """

    model: dict[str, Any]
    parameters: int
    strategy: str
    options: dict[str, Any]
    device_kind: DeviceKind
    peak_bytes: int
    breakdown: dict[str, int]
    operation: str
    phase: str
    snapshots: list[dict[str, Any]]
    timeline: dict[str, Any] | None
    terms: list[dict[str, Any]]
    how: How
    verified: bool | None = None

    def record(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def estimate(
    source: Source,
    strategy: str,
    options: Options | None = None,
    device_kind: DeviceKind = "cpu",
    *,
    device: Device | None = None,
    extrapolate: bool = True,
    verify: bool = False,
) -> Estimate:
    """The memory of a strategy on a model, without a value and without a GPU.

    Models of more than `traces.FEW`'s layers, all of one kind, are run with few and extrapolated
    where their events are lines in the number of layers; else all layers run.

    Args:
        source: as `models.configuration` takes it.
        strategy: one of `strategies.NAMES`.
        options: how to run it.
        device_kind: "cuda" counts whole blocks of torch's allocator, with AdamW over all
            parameters at once unless asked otherwise, as torch has it there.
        device: for the terms' sizes; without it those that hang on the device are None.
        extrapolate: False runs all layers.
        verify: run all layers, too, and take that.

    Raises:
        RequestError: a model, strategy or option that can't be, or that the strategy can't do.
    """
    options = resolved(options or Options(), strategy, device_kind)
    config = configuration(source)
    rows = _rows(device, device_kind, strategy)
    if strategy not in STRATEGIES:
        return _closed_form(source, config, strategy, options, device_kind, rows)
    layers = _layers(config)
    trace: Trace | None = None
    if extrapolate and layers is not None and layers > FEW[-1] and alike(config):
        few = [_faked(with_layers(config, n), strategy, options, device_kind) for n in FEW]
        trace = extrapolated(few, layers)
    how: How = "full" if trace is None else "extrapolated"
    verified = None
    if trace is None or verify:
        full = _faked(config, strategy, options, device_kind)
        verified = highest(trace) == highest(full) if trace is not None else None
        trace = full
    return _estimate(source, config, strategy, options, device_kind, trace, rows, how, verified)


def measure(source: Source, strategy: str, options: Options | None = None) -> Estimate:
    """The same from a real run on this machine's CPU, at random weights.

    Raises:
        RequestError: as `estimate`; or a closed form, which nothing runs.
    """
    options = resolved(options or Options(), strategy, "cpu")
    if strategy not in STRATEGIES:
        raise RequestError(f"strategy {strategy} is a formula: there is nothing to measure")
    config = configuration(source)
    torch.manual_seed(0)
    trace = _traced(config, strategy, options, "cpu")
    rows = _rows(None, "cpu", strategy)
    return _estimate(source, config, strategy, options, "cpu", trace, rows, "measured", None)


def resolved(options: Options, strategy: str, device_kind: DeviceKind) -> Options:
    """The options, checked, with torch's own choice of AdamW for the device where none is made.

    Raises:
        RequestError: as `strategies.check`.
    """
    check(strategy, options)
    if strategy in STRATEGIES and "optimizer" in STRATEGIES[strategy].takes:
        own: Literal["plain", "foreach"] = "foreach" if device_kind == "cuda" else "plain"
        return options if options.optimizer != "default" else replace(options, optimizer=own)
    return options


def _faked(
    config: PretrainedConfig, strategy: str, options: Options, device_kind: DeviceKind
) -> Trace:
    with faked():
        return _traced(config, strategy, options, device_kind, KnownValues(options.density))


def _traced(
    config: PretrainedConfig,
    strategy: str,
    options: Options,
    device_kind: DeviceKind,
    values: KnownValues | None = None,
) -> Trace:
    """One run, counted; on the tensors that the mode around makes."""
    tracker = MemoryTracker(timeline=True, rounding="cuda" if device_kind == "cuda" else "none")
    with ExitStack() as stack:
        stack.enter_context(_no_collector())
        stack.enter_context(sdpa_kernel(ALL_KERNELS))
        model = new_model(config, getattr(torch, options.dtype))
        stack.enter_context(tracker)
        if values is not None:
            stack.enter_context(values)
        text = _text(options, model.config.vocab_size)
        tracker.register(model.parameters()).register(model.buffers(), BUFFERS)
        tracker.register([text.ids, text.lengths])
        STRATEGIES[strategy].run(model, text, options, tracker, tracker.mark)
        tracker.mark("end")
        del model
    return trace_of(tracker.timeline())


@contextmanager
def _no_collector() -> Iterator[None]:
    """A block in which no cycle of objects is let go at a time of the collector's own."""
    gc.collect()
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _text(options: Options, vocabulary: int) -> Sequences:
    """A batch of whole sequences, of as many different tokens as there can be."""
    tokens = torch.arange(options.batch * options.length).remainder_(vocabulary)
    ids = tokens.view(options.batch, options.length)
    lengths = torch.full((options.batch,), options.length)
    return Sequences(ids, lengths, tuple(f"sample-{i}" for i in range(options.batch)))


def _layers(config: PretrainedConfig) -> int | None:
    key = layer_key(config)
    return None if key is None else int(getattr(config, key))


def _rows(device: Device | None, device_kind: DeviceKind, strategy: str) -> list[dict[str, Any]]:
    known = device or Device(f"any {device_kind}", device_kind, 0, "", "")
    if (known.kind == "cuda") != (device_kind == "cuda"):
        raise RequestError(f"device {known.name} is of kind {known.kind}; plan for that kind")
    backward = strategy in STRATEGIES and STRATEGIES[strategy].backward
    return [asdict(term) for term in terms(known, backward=backward)]


def _closed_form(
    source: Source,
    config: PretrainedConfig,
    strategy: str,
    options: Options,
    device_kind: DeviceKind,
    rows: list[dict[str, Any]],
) -> Estimate:
    """The matrix alone, of 4 bytes an entry: all pairs, or those of each linear layer's rows."""
    with faked():
        model = new_model(config, torch.float32)
    N = sum(parameter.numel() for parameter in model.parameters())
    size = 4 * N**2 if strategy == "full_hessian" else 4 * row_blocks(model)
    return Estimate(
        _described(source, config),
        N,
        strategy,
        asdict(options),
        device_kind,
        size,
        dict.fromkeys(DPSGD_PARTS, 0) | {"other": size},
        "",
        "",
        [],
        None,
        rows,
        "closed form",
    )


def _estimate(
    source: Source,
    config: PretrainedConfig,
    strategy: str,
    options: Options,
    device_kind: DeviceKind,
    trace: Trace,
    rows: list[dict[str, Any]],
    how: How,
    verified: bool | None,
) -> Estimate:
    peak = highest(trace)
    with faked():
        model = new_model(config, torch.float32)
    return Estimate(
        _described(source, config),
        sum(parameter.numel() for parameter in model.parameters()),
        strategy,
        asdict(options),
        device_kind,
        peak.bytes,
        peak.by_part,
        peak.operation,
        peak.phase,
        snapshots(trace),
        thinned(trace),
        rows,
        how,
        verified,
    )


def _described(source: Source, config: PretrainedConfig) -> dict[str, Any]:
    name = config.model_type if isinstance(source, PretrainedConfig) else str(source)
    return {"name": name, "type": config.model_type, "layers": _layers(config)}
