"""Runs of a strategy, counted: on fake tensors cut to their ends, or on real ones."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PretrainedConfig

from paramscope.errors import ParamscopeError, RequestError
from paramscope.models.faking import faked
from paramscope.models.sequences import Sequences
from paramscope.planner.models import new_model
from paramscope.planner.options import Options
from paramscope.planner.strategies import STRATEGIES
from paramscope.planner.traces import Trace, trace_of
from paramscope.planner.values import KnownValues
from paramscope.planner.watchers import Together
from paramscope.rehearsal import rehearsal
from paramscope.tracker import BUFFERS, MemoryTracker

DeviceKind = Literal["cpu", "cuda"]
ALL_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def fake_traces(
    config: PretrainedConfig, strategy: str, options: Options, kinds: Sequence[DeviceKind]
) -> list[Trace]:
    """What a rehearsal holds, counted by the rules of each kind of device.

    Raises:
        RequestError: the strategy can't be run on the model, or not without values.
    """
    with faked(), rehearsal():
        share = options.density if "density" in STRATEGIES[strategy].takes else 1.0
        try:
            return _traced(config, strategy, options, kinds, KnownValues(share))
        except ParamscopeError:
            raise
        except Exception as error:  # of a family's own code, which may be any
            line = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise RequestError(
                f"strategy {strategy} can't be planned for models of type '{config.model_type}', "
                f"whose code does not run on tensors without values: {line}"
            ) from error


def real_trace(config: PretrainedConfig, strategy: str, options: Options) -> Trace:
    """What a real run on the CPU holds, at random weights."""
    gc.collect()
    torch.manual_seed(0)
    return _traced(config, strategy, options, ["cpu"])[0]


def _traced(
    config: PretrainedConfig,
    strategy: str,
    options: Options,
    kinds: Sequence[DeviceKind],
    values: KnownValues | None = None,
) -> list[Trace]:
    """One run, counted once a kind; on the tensors that the mode around makes."""
    together = Together(
        [
            MemoryTracker(timeline=True, rounding="cuda" if kind == "cuda" else "none")
            for kind in kinds
        ]
    )
    with ExitStack() as stack:
        stack.enter_context(_no_collector())
        stack.enter_context(sdpa_kernel(ALL_KERNELS))
        model = new_model(config, getattr(torch, options.dtype))
        stack.enter_context(together.counting())
        if values is not None:
            stack.enter_context(values)
        text = whole_text(options, model.config.vocab_size)
        together.register(model.parameters())
        together.register(model.buffers(), BUFFERS)
        together.register([text.ids, text.lengths])
        STRATEGIES[strategy].run(model, text, options, together, together.mark)
        together.mark("end")
        del model
    return [trace_of(tracker.timeline()) for tracker in together.trackers]


def whole_text(options: Options, vocabulary: int) -> Sequences:
    """A batch of whole sequences, of as many different tokens as there can be."""
    tokens = torch.arange(options.batch * options.length).remainder_(vocabulary)
    ids = tokens.view(options.batch, options.length)
    lengths = torch.full((options.batch,), options.length)
    return Sequences(ids, lengths, tuple(f"sample-{i}" for i in range(options.batch)))


@contextmanager
def _no_collector() -> Iterator[None]:
    """A block in which no cycle of objects is let go at a time of the collector's own."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
