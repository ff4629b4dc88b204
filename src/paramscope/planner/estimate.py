"""Estimates: what a strategy takes on a model, from its own code on fake tensors."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from transformers import PretrainedConfig

from paramscope.errors import RequestError
from paramscope.names import DPSGD_PARTS
from paramscope.planner.closed_forms import row_blocks
from paramscope.planner.known_devices import Device
from paramscope.planner.models import (
    Source,
    alike,
    configuration,
    layer_key,
    parameters,
    with_layers,
)
from paramscope.planner.options import Options
from paramscope.planner.runs import DeviceKind, fake_traces, real_trace
from paramscope.planner.strategies import STRATEGIES, check
from paramscope.planner.terms import terms
from paramscope.planner.traces import (
    FEW,
    Trace,
    extrapolated,
    highest,
    snapshots,
    thinned,
)
from paramscope.tracker.storages import CUDA_BLOCK_BYTES

How = Literal["full", "extrapolated", "closed form", "measured"]


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
    asked = options or Options()
    config, own = configuration(source), resolved(asked, strategy, device_kind)
    _check_kind(device, device_kind)
    if strategy not in STRATEGIES:
        return _closed_form(source, config, strategy, own, device_kind, device)
    (found,) = _runs(config, strategy, own, [device_kind], extrapolate, verify)
    return _estimate(source, config, strategy, own, device_kind, device, found)


def estimates(
    source: Source, strategy: str, options: Options, kinds: Sequence[DeviceKind] = ("cpu", "cuda")
) -> list[Estimate]:
    """`estimate` for several kinds of devices, from one run where they don't differ in options."""
    own = [resolved(options, strategy, kind) for kind in kinds]
    if strategy not in STRATEGIES or len(set(own)) > 1:
        return [estimate(source, strategy, options, kind) for kind in kinds]
    config = configuration(source)
    return [
        _estimate(source, config, strategy, own[0], kind, None, found)
        for kind, found in zip(kinds, _runs(config, strategy, own[0], kinds), strict=True)
    ]


@dataclass(frozen=True)
class _Found:
    """A run: what it held, how that is known, and whether a full run agreed."""

    trace: Trace
    how: How
    verified: bool | None = None


def _runs(
    config: PretrainedConfig,
    strategy: str,
    options: Options,
    kinds: Sequence[DeviceKind],
    extrapolate: bool = True,
    verify: bool = False,
) -> list[_Found]:
    """One rehearsal, by the rules of each kind."""
    layers = _layers(config)
    lines: list[Trace | None] = [None] * len(kinds)
    if extrapolate and layers is not None and layers > FEW[-1] and alike(config):
        lines = _lines(config, strategy, options, kinds, layers)
    if not verify and None not in lines:
        return [_Found(line, "extrapolated") for line in lines if line is not None]
    found = []
    for line, full in zip(lines, fake_traces(config, strategy, options, kinds), strict=True):
        verified = None if line is None else highest(line) == highest(full)
        found.append(_Found(full, "full" if line is None else "extrapolated", verified))
    return found


def _lines(
    config: PretrainedConfig,
    strategy: str,
    options: Options,
    kinds: Sequence[DeviceKind],
    layers: int,
) -> list[Trace | None]:
    """What all layers hold, from runs of few; None for each kind where those give no lines."""
    slack = [2 * CUDA_BLOCK_BYTES if kind == "cuda" else 0 for kind in kinds]
    runs: list[list[Trace]] = []
    for few in FEW:
        runs = [*runs[-2:], fake_traces(with_layers(config, few), strategy, options, kinds)]
        if len(runs) == 3:
            by_kind = zip(zip(*runs, strict=True), slack, strict=True)
            found = [extrapolated(three, layers - few + 2, most) for three, most in by_kind]
            if None not in found:
                return found
    return [None] * len(kinds)


def measure(source: Source, strategy: str, options: Options | None = None) -> Estimate:
    """The same from a real run on this machine's CPU, at random weights.

    Raises:
        RequestError: as `estimate`; or a closed form, which nothing runs.
    """
    options = resolved(options or Options(), strategy, "cpu")
    if strategy not in STRATEGIES:
        raise RequestError(f"strategy {strategy} is a formula: there is nothing to measure")
    config = configuration(source)
    found = _Found(real_trace(config, strategy, options), "measured")
    return _estimate(source, config, strategy, options, "cpu", None, found)


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


def _layers(config: PretrainedConfig) -> int | None:
    key = layer_key(config)
    return None if key is None else int(getattr(config, key))


def term_rows(
    device: Device | None, device_kind: DeviceKind, strategy: str, live_bytes: int | None
) -> list[dict[str, Any]]:
    """What dispatch does not see of a strategy, for `Estimate.terms`.

    Args:
        device: for sizes that hang on it.
        device_kind: its kind.
        strategy: its name.
        live_bytes: what tensors hold at the peak.

    Raises:
        RequestError: a device of another kind.
    """
    _check_kind(device, device_kind)
    known = device or Device(f"any {device_kind}", device_kind, 0, "", "")
    backward = strategy in STRATEGIES and STRATEGIES[strategy].backward
    return [asdict(term) for term in terms(known, backward=backward, live_bytes=live_bytes)]


def _check_kind(device: Device | None, device_kind: DeviceKind) -> None:
    """Refuse a device of another kind; main memory is of kind cpu, under WSL, too."""
    if device is not None and (device.kind == "cuda") != (device_kind == "cuda"):
        raise RequestError(f"device {device.name} is of kind {device.kind}; plan for that kind")


def _closed_form(
    source: Source,
    config: PretrainedConfig,
    strategy: str,
    options: Options,
    device_kind: DeviceKind,
    device: Device | None,
) -> Estimate:
    """The matrix alone, of 4 bytes an entry: all pairs, or those of each linear layer's rows."""
    N = parameters(config)
    size = 4 * N**2 if strategy == "full_hessian" else 4 * row_blocks(config)
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
        term_rows(device, device_kind, strategy, None),
        "closed form",
    )


def _estimate(
    source: Source,
    config: PretrainedConfig,
    strategy: str,
    options: Options,
    device_kind: DeviceKind,
    device: Device | None,
    found: _Found,
) -> Estimate:
    peak = highest(found.trace)
    return Estimate(
        _described(source, config),
        parameters(config),
        strategy,
        asdict(options),
        device_kind,
        peak.bytes,
        peak.by_part,
        peak.operation,
        peak.phase,
        snapshots(found.trace),
        thinned(found.trace),
        term_rows(device, device_kind, strategy, peak.bytes),
        found.how,
        found.verified,
    )


def _described(source: Source, config: PretrainedConfig) -> dict[str, Any]:
    return {"name": called(source), "type": config.model_type, "layers": _layers(config)}


def called(source: Source) -> str:
    """The name that a model was asked for by; a configuration's is its type."""
    return str(source.model_type if isinstance(source, PretrainedConfig) else source)
