"""The tracker on whole workloads, against the profiler, torch's MemTracker and fake tensors.

Run as a module (`python -m tests.unit.test_tracker_workloads`) it prints what tracking costs.
"""

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from statistics import median
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed._tools.mem_tracker import MemTracker
from torch.func import grad, jvp, vmap
from torch.nn.attention import sdpa_kernel
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from paramscope.curvature.ggn import ggn_draws
from paramscope.dpsgd.methods import Options, make_method, make_step
from paramscope.dpsgd.privacy import Privacy
from paramscope.models.faking import faked
from paramscope.models.load import Architecture, new_opt
from paramscope.models.sequences import Sequences, padded
from paramscope.planner.runs import ALL_KERNELS
from paramscope.tracker import MemoryTracker

CPU = torch.device("cpu")


@dataclass
class Work:
    """A model, what trains it, what it reads, and one iteration."""

    model: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    batch: Sequence[Tensor]
    step: Callable[[], object]


def opt(layers=2, hidden=32, vocabulary=96, positions=48):
    model = new_opt(Architecture(hidden, layers, 2, 2 * hidden, positions), vocabulary, seed=0)
    return model.train()


def trained(model, optimizer, batch, loss):
    def step():
        optimizer.zero_grad()
        with sdpa_kernel(ALL_KERNELS):
            loss(*batch).backward()
        optimizer.step()

    return Work(model, [optimizer], batch, step)


def opt_adamw(**sizes):
    model = opt(**sizes)
    ids = torch.arange(4 * 32).view(4, 32) % 96
    adamw = torch.optim.AdamW(model.parameters())
    return trained(model, adamw, [ids], lambda ids: model(ids, labels=ids).loss)


def opt_bfloat16_foreach():
    model = opt()
    ids = torch.arange(4 * 32).view(4, 32) % 96
    adam = torch.optim.Adam(model.parameters(), foreach=True)

    def loss(ids):
        with torch.autocast("cpu", torch.bfloat16):
            return model(ids, labels=ids).loss

    return trained(model, adam, [ids], loss)


def mlp_momentum():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 256), nn.GELU(), nn.BatchNorm1d(256), nn.Dropout(0.1),
        nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10),
    )  # fmt: skip
    batch = [torch.randn(128, 64), torch.arange(128) % 10]
    sgd = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return trained(model, sgd, batch, lambda x, y: nn.functional.cross_entropy(model(x), y))


def checkpointed(reentrant):
    """Without generator states, which no operation makes: 5,056 bytes a checkpoint go unseen."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)) for _ in range(4)]
    model, x = nn.Sequential(*blocks), torch.randn(128, 64, requires_grad=True)
    rmsprop = torch.optim.RMSprop(model.parameters())

    def loss(x):
        for block in blocks:
            x = checkpoint(block, x, use_reentrant=reentrant, preserve_rng_state=False)
        return x.square().mean()

    return trained(model, rmsprop, [x], loss)


def accumulated_lbfgs():
    """A step with closures in it, each of two backwards into the same gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 8))
    lbfgs = torch.optim.LBFGS(model.parameters(), max_iter=2, history_size=2)
    batch = [torch.randn(256, 32)]

    def closure():
        lbfgs.zero_grad()
        losses = [model(part).square().mean() for part in batch[0].split(128)]
        for loss in losses:
            loss.backward()
        return sum(loss.detach() for loss in losses)

    return Work(model, [lbfgs], batch, lambda: lbfgs.step(closure))


def ggn_draw():
    model = opt().eval()
    ids = (torch.arange(6 * 24).view(6, 24) % 90 + 4).tolist()
    sequences = padded(ids, [str(i) for i in range(6)])
    return Work(
        model, [], [sequences.ids, sequences.lengths],
        lambda: ggn_draws(model, sequences, range(2), seed=0, batch_size=6),
    )  # fmt: skip


def per_sample_gradients():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))
    batch = [torch.randn(64, 32), torch.arange(64) % 10]

    def loss(parameters, x, y):  # without the modules, whose hooks in MemTracker choke on vmap
        h = nn.functional.linear(x, *parameters[:2]).relu()
        return nn.functional.cross_entropy(nn.functional.linear(h, *parameters[2:]), y)

    def step():
        rows = vmap(grad(loss), in_dims=(None, 0, 0))(
            [p.detach() for p in model.parameters()], *batch
        )
        return sum(row.square().flatten(1).sum(1) for row in rows)

    return Work(model, [], batch, step)


def generation():
    from transformers import DynamicCache

    model = opt().eval()
    start = torch.arange(3 * 8).view(3, 8)

    @torch.no_grad()
    def step():
        cache, ids = DynamicCache(), start
        for _ in range(6):
            out = model(ids, past_key_values=cache, use_cache=True)
            ids = out.logits[:, -1:].argmax(-1)
        return cache

    return Work(model, [], [start], step)


def hessian_product():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.Softplus(), nn.Linear(128, 64))
    x = torch.randn(100, 64)

    def step():
        parameters = list(model.parameters())
        first = torch.autograd.grad(model(x).square().mean(), parameters, create_graph=True)
        return torch.autograd.grad(first, parameters, [torch.ones_like(p) for p in parameters])

    return Work(model, [], [x], step)


def forward_mode():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64)), torch.randn(99, 64)
    return Work(model, [], [x], lambda: jvp(model, (x,), (torch.ones_like(x),)))


def private(method, noise=1.0, **options):
    """A step of DP-SGD. Noise is drawn by threads of its own, when it pleases them."""
    model = opt()
    ids = torch.arange(4 * 32).view(4, 32) % 96
    text = Sequences(ids, torch.full((4,), 32), ("a", "b", "c", "d"))
    privacy = Privacy(1.0, noise, 4)
    made = make_method(method, model, privacy, Options(**options))
    adamw = torch.optim.AdamW(model.parameters())
    end = make_step(made, model, adamw, privacy, seed=0)

    def step():
        with sdpa_kernel(ALL_KERNELS):
            made.forward(text)
            made.backward()
        end.step()
        end.zero_grad()

    return Work(model, [adamw], [ids, text.lengths], step)


WORKLOADS = {
    "opt-adamw": opt_adamw,
    "opt-bfloat16-foreach": opt_bfloat16_foreach,
    "mlp-momentum": mlp_momentum,
    "checkpointed": lambda: checkpointed(False),
    "checkpointed-reentrant": lambda: checkpointed(True),
    "accumulated-lbfgs": accumulated_lbfgs,
    "ggn-draw": ggn_draw,
    "per-sample-gradients": per_sample_gradients,
    "generation": generation,
    "hessian-product": hessian_product,
    "forward-mode": forward_mode,
    "dpsgd-vanilla": lambda: private("vanilla"),
    "dpsgd-bk": lambda: private("bk"),
    "dpsgd-flash": lambda: private("flash"),
    "dpsgd-per-layer": lambda: private("per_layer", chunk_tokens=8),
    "dpsgd-micro": lambda: private("micro", noise=0.0, chunk_tokens=8, checkpoint=True),
}


@contextmanager
def no_collections():
    """Cycles are freed before and after, never at a moment that differs between two runs."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def prepared(name):
    work = WORKLOADS[name]()
    torch.manual_seed(1)
    return work


def tracking(work, **options):
    return MemoryTracker(**options).register(work.batch).watch(work.model, *work.optimizers)


@pytest.fixture(params=WORKLOADS)
def name(request):
    return request.param


class Passing(TorchDispatchMode):
    """Does nothing; but under any dispatch mode autograd takes some formulas out of place."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_the_profiler_sees_the_same(name):
    work = prepared(name)
    live = tracking(work).live_bytes
    mode = Passing() if name == "forward-mode" else nullcontext()
    with (
        no_collections(),
        mode,
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen,
    ):
        for iteration in ("first", "second"):
            with record_function(iteration):
                work.step()
    theirs = {}
    for iteration, change in allocations(seen, ("first", "second")):
        live += change
        theirs.setdefault(iteration, []).append(live)
    work = prepared(name)
    tracker = tracking(work)
    with no_collections(), tracker:
        for iteration in ("first", "second"):
            tracker.reset_peak()
            work.step()
            # Kernels of a loss or a sum hold numbers, 28 bytes at most here, that are not counted.
            assert tracker.peak_bytes == pytest.approx(max(theirs[iteration]), abs=64)
            assert tracker.live_bytes == pytest.approx(theirs[iteration][-1], abs=64)


def allocations(profiled, iterations):
    """Of all allocations (+) and frees (−), in order: the iteration begun last, the bytes."""
    found, waiting = [], list(profiled.profiler.kineto_results.experimental_event_tree())
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag.name == "Allocation":
            found.append((event.start_time_ns, event.typed[1].alloc_size))
        elif event.name in iterations:
            found.append((event.start_time_ns, event.name))
    iteration, changes = "", []
    for _, what in sorted(found, key=lambda pair: pair[0]):
        if isinstance(what, str):
            iteration = what
        else:
            changes.append((iteration, what))
    return changes


class Totals(MemTracker):
    """MemTracker without its look at each module, and so without its names for what passes.

    With it, it refuses a second forward of a model, and its hooks keep graphs alive.
    """

    def __init__(self):
        super().__init__()
        self._mod_tracker = MagicMock(is_bw=False)


MANY_FORWARDS = ("ggn-draw", "generation", "accumulated-lbfgs")
CLIPPED = [name for name in WORKLOADS if name.startswith("dpsgd") and name != "dpsgd-vanilla"]
# MemTracker reads no dual tensors, and puts hooks on weights that clipping froze.
READABLE = [name for name in WORKLOADS if name not in ("forward-mode", *CLIPPED)]


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, Totals if name in MANY_FORWARDS else MemTracker) for name in READABLE],
)
def test_memtracker_sees_the_same(name, kind):
    work, other = prepared(name), kind()
    other.track_external(work.model, *work.optimizers, *work.batch)
    theirs = []
    with no_collections(), other:
        for _ in range(2):
            work.step()
            other.reset_mod_stats()
            theirs.append(other.get_tracker_snapshot("current")[CPU])
    work = prepared(name)
    tracker = tracking(work, scratch=False)
    with no_collections(), tracker:
        for snapshot in theirs:
            work.step()
            assert tracker.live_bytes == snapshot["Total"]
            held = tracker.live_by_category
            for category, known_as in KINDS.items():
                if kind is MemTracker or category in ("parameters", "buffers"):
                    assert held.get(category, 0) == snapshot.get(known_as, 0), category
    assert tracker.peak_bytes == other.get_tracker_snapshot("peak")[CPU]["Total"]


KINDS = {
    "parameters": "Parameter",
    "buffers": "Buffer",
    "gradients": "Gradient",
    "optimizer states": "Optstate",
}


def test_the_parts_add_up_at_every_event(name):
    work = prepared(name)
    tracker = tracking(work, timeline=True)
    with no_collections(), tracker:
        for phase in ("first", "second"):
            tracker.mark(phase)
            work.step()
    line = tracker.timeline()
    parts = np.stack(list(line.by_category.values()))
    assert (parts >= 0).all()
    np.testing.assert_array_equal(parts.sum(0), line.live_bytes)
    assert sum(tracker.live_by_category.values()) == tracker.live_bytes
    top = int(line.live_bytes.argmax())
    peak = tracker.peak
    assert (peak.bytes, peak.operation_index) == (line.live_bytes[top], line.operation_index[top])
    assert peak.operation == line.operations[line.operation[top]]
    assert peak.by_category == at(line, top)
    assert peak.phase == ("first" if top <= line.marks[1].event else "second")
    for mark in line.marks:
        assert mark.by_category == at(line, mark.event)
        assert line.operations[line.operation[mark.event]] == "mark"


def at(line, event):
    return {
        category: column[event] for category, column in line.by_category.items() if column[event]
    }


# The others read values, which fake tensors don't have; planner.values answers for clipping.
FAKEABLE = [n for n in WORKLOADS if n not in ("ggn-draw", "accumulated-lbfgs", *CLIPPED)]


@pytest.mark.parametrize(
    ("name", "rounding"), [*((name, "none") for name in FAKEABLE), ("opt-adamw", "cuda")]
)
def test_fake_tensors_take_the_same_bytes(name, rounding):
    def run():
        work = prepared(name)
        tracker = tracking(work, rounding=rounding, timeline=True)
        with no_collections(), tracker:
            work.step()
            tracker.mark("second")
            tracker.reset_peak()
            work.step()
        line = tracker.timeline()
        rows = [line.operations[i] for i in line.operation], line.operation_index.tolist()
        parts = {category: column.tolist() for category, column in line.by_category.items()}
        return tracker.peak, tracker.live_by_category, *rows, line.live_bytes.tolist(), parts

    real = run()
    with faked():
        assert run() == real


def overhead(rounds=7):
    """Print the time of an AdamW step of OPT, tracked over untracked, each round in turns."""
    torch.set_num_threads(1)
    modes = {
        "tracked": tracking,
        "with timeline": lambda work: tracking(work, timeline=True),
        "empty mode": lambda _: Passing(),
    }
    for steps, tokens, sizes in (
        (20, (4, 32), {"layers": 2, "hidden": 32, "vocabulary": 96, "positions": 48}),
        (1, (2, 512), {"layers": 4, "hidden": 256, "vocabulary": 2000, "positions": 512}),
    ):
        model = opt(**sizes)
        ids = torch.arange(tokens[0] * tokens[1]).view(tokens) % sizes["vocabulary"]
        adamw = torch.optim.AdamW(model.parameters())
        work = trained(model, adamw, [ids], lambda ids, model=model: model(ids, labels=ids).loss)
        work.step()
        plain, ratios = [], {name: [] for name in modes}
        for _ in range(rounds):
            plain.append(seconds(work, steps, nullcontext()))
            for name, mode in modes.items():
                ratios[name].append(seconds(work, steps, mode(work)) / plain[-1])
        print(f"{sizes}, B, T = {tokens}: {1e3 * median(plain):.1f} ms a step untracked")
        for name, found in ratios.items():
            print(
                f"  {name}: {median(found):.2f} ({min(found):.2f} to {max(found):.2f}) times that"
            )


def seconds(work, steps, mode):
    with mode:
        start = time.perf_counter()
        for _ in range(steps):
            work.step()
        return (time.perf_counter() - start) / steps


if __name__ == "__main__":
    overhead()
