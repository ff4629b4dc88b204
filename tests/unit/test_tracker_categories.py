"""What the bytes are: every category against bytes counted by hand."""

import gc
import weakref
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from paramscope.errors import RequestError
from paramscope.tracker import MemoryTracker
from tests.unit.test_tracker import ones

B, N, M = 32, 20, 12
WEIGHT, BIAS, X, Y = 4 * M * N, 4 * M, 4 * B * N, 4 * B * M
PARAMETERS = WEIGHT + BIAS


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.Linear(N, M)


def checked(tracker):
    """What is held, once it is known to add up, here and at every event."""
    line = tracker.timeline()
    parts = np.stack([*line.by_category.values(), 0 * line.live_bytes])
    assert (parts >= 0).all()
    np.testing.assert_array_equal(parts.sum(0), line.live_bytes)
    assert sum(tracker.live_by_category.values()) == tracker.live_bytes
    assert sum(tracker.peak.by_category.values()) == tracker.peak_bytes
    return tracker.live_by_category


def test_a_training_step_by_hand(layer):
    x, g = torch.randn(B, N), torch.randn(B, M)
    adamw = torch.optim.AdamW(layer.parameters(), foreach=False)
    tracker = MemoryTracker(timeline=True).register([x, g]).watch(layer, adamw)
    known = {"parameters": PARAMETERS, "inputs": X + Y}
    assert checked(tracker) == known
    with tracker:
        tracker.mark("forward")
        y = layer(x)
        assert checked(tracker) == known | {"activations": Y}
        tracker.mark("backward")
        doubled = y * 2
        doubled.backward(g)
        del y, doubled
        known["gradients"] = PARAMETERS
        assert checked(tracker) == known
        tracker.mark("step")
        tracker.reset_peak()
        adamw.step()
        states = 2 * PARAMETERS + 2 * 4  # two moments and a step count a parameter
        assert checked(tracker) == known | {"optimizer states": states}
        tracker.mark("end")
        adamw.zero_grad()
        del known["gradients"]
        assert checked(tracker) == known | {"optimizer states": states}
    assert [mark.phase for mark in tracker.marks] == ["forward", "backward", "step", "end"]
    # Both are set right after the fact: nothing was a gradient or a state at the mark before.
    assert "gradients" not in tracker.marks[1].by_category
    assert tracker.marks[2].by_category == known | {"gradients": PARAMETERS}
    # In the step: all states, and for the weight at most two temporaries of its size.
    assert tracker.peak.phase == "step"
    held = dict(tracker.peak.by_category)
    assert 0 < held.pop("temporaries") <= 2 * WEIGHT + 8
    assert held.pop("optimizer states") >= 2 * WEIGHT
    assert held == known | {"gradients": PARAMETERS}


def test_the_peak_in_a_backward_by_hand(layer):
    """At the weight's product: its result is a gradient, though its owner shows only later."""
    x, g = torch.randn(B, N), torch.randn(B, M)
    tracker = MemoryTracker(timeline=True).register([x, g]).watch(layer)
    layer.bias.requires_grad_(False)
    with tracker:
        tracker.mark("forward")
        y = layer(x).square()
        tracker.mark("backward")
        y.backward(g)
    # x Wᵀ and its square; 2 x Wᵀ g, the gradient at the layer's output, with its factor's place
    peak = tracker.peak
    assert peak.phase == "backward"
    assert peak.by_category["activations"] == 2 * Y
    assert peak.by_category["parameters"] == PARAMETERS
    line = tracker.timeline()
    names = [line.operations[i] for i in line.operation]
    at = max(i for i, name in enumerate(names) if name == "aten.mm.default")
    assert line.by_category["gradients"][at] == WEIGHT
    assert line.by_category["gradients"][at - 1] == 0
    assert line.by_category["temporaries"][at] == Y
    assert tracker.live_by_category["gradients"] == WEIGHT
    checked(tracker)


def test_a_gradient_that_accumulates_is_one_and_what_is_added_is_temporary(layer):
    x = torch.randn(B, N)
    tracker = MemoryTracker(timeline=True).watch(layer)
    with tracker:
        layer(x).sum().backward()
        first = checked(tracker)
        tracker.mark("second")
        layer(x).sum().backward()
        assert checked(tracker) == first == {"parameters": PARAMETERS, "gradients": PARAMETERS}
    line, begin = tracker.timeline(), tracker.marks[0].event
    assert (line.by_category["gradients"][begin:] == PARAMETERS).all()
    assert line.by_category["temporaries"][begin:].max() >= WEIGHT


def test_gradients_put_there_by_hand_are_found_at_the_next_mark_or_step(layer):
    sgd = torch.optim.SGD(layer.parameters(), 0.1)
    with MemoryTracker(timeline=True).watch(layer, sgd) as tracker:
        with tracker.scope("weighted sums"):
            layer.weight.grad = torch.ones(M, N)
            layer.bias.grad = torch.ones(M)
        assert checked(tracker) == {"parameters": PARAMETERS, "weighted sums": PARAMETERS}
        tracker.mark("clipped")
        assert checked(tracker) == {"parameters": PARAMETERS, "gradients": PARAMETERS}
        layer.weight.grad = torch.ones(M, N)
        assert checked(tracker)["activations"] == WEIGHT
        sgd.step()
        assert checked(tracker) == {"parameters": PARAMETERS, "gradients": PARAMETERS}


def test_gradients_that_a_step_lets_go_were_gradients(layer):
    class Releasing(torch.optim.Optimizer):
        def step(self):
            self.zero_grad()

    sgd = Releasing(layer.parameters(), {})
    with MemoryTracker(timeline=True).watch(layer, sgd) as tracker:
        layer.weight.grad = torch.ones(M, N)
        sgd.step()
        assert checked(tracker) == {"parameters": PARAMETERS}
    line = tracker.timeline()
    assert line.by_category["gradients"].max() == WEIGHT
    assert not line.by_category["activations"].any()


def test_a_closure_is_a_forward_inside_a_step(layer):
    x, seen = torch.ones(B, N), []
    lbfgs = torch.optim.LBFGS(layer.parameters(), max_iter=1)

    def closure():
        lbfgs.zero_grad()
        y = layer(x)
        seen.append(checked(tracker))
        loss = y.sum()
        loss.backward()
        return loss

    with MemoryTracker(timeline=True).watch(layer, lbfgs) as tracker:
        lbfgs.step(closure)
    assert seen == [{"parameters": PARAMETERS, "activations": Y}]
    assert tracker.timeline().by_category["temporaries"].max() >= PARAMETERS  # the direction


def test_a_step_that_fails_is_over_with_the_context(layer):
    class Failing(torch.optim.Optimizer):
        def step(self):
            raise ZeroDivisionError

    optimizer = Failing(layer.parameters(), {})
    tracker = MemoryTracker(timeline=True).watch(layer, optimizer)
    with pytest.raises(ZeroDivisionError), tracker:
        optimizer.step()
    with tracker, torch.no_grad():
        y = layer(torch.ones(B, N))
    assert checked(tracker) == {"parameters": PARAMETERS, "activations": Y}
    del y


def test_scopes_nest_and_hold_wherever_the_operation_runs():
    x = ones(1000).float().requires_grad_()
    with MemoryTracker(timeline=True) as tracker:
        with tracker.scope("outer"):
            first = ones(10)
            with tracker.scope("inner"):
                second = ones(200)
            third = ones(3000)
            first.add_(1)
        fourth = ones(40_000)
        held = {"outer": 3010, "inner": 200, "activations": 40_000}
        assert checked(tracker) == held
        with pytest.raises(ZeroDivisionError), tracker.scope("failed"):
            raise ZeroDivisionError
        with tracker.scope("backward"):
            x.exp().sum().backward()
        assert checked(tracker) == held | {"backward": 4000}  # x.grad: nobody watches x
        del first, third
        assert checked(tracker) == {"inner": 200, "activations": 40_000, "backward": 4000}
        resized = second.resize_(500)
        assert checked(tracker)["inner"] == 500
    del second, resized, fourth
    x.grad = None
    assert (tracker.live_by_category, tracker.live_bytes) == ({}, 0)


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_is_computed_again_is_activations(reentrant):
    """At the last block's recomputation its kept values are activations, as in the forward."""
    model = nn.Sequential(*[nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(3)])
    x = torch.randn(50, 16, requires_grad=True)
    tracker = MemoryTracker(timeline=True).register([x]).watch(model)
    with tracker:
        y = x
        for block in model:
            y = checkpoint(block, y, use_reentrant=reentrant)
        loss = y.sum()
        del y
        tracker.mark("backward")
        loss.backward()
    size = 4 * 50 * 16
    line = tracker.timeline()
    begin = tracker.marks[0]
    kept = begin.by_category["activations"] - 4
    assert kept in (2 * size, 3 * size)  # reentrant ones keep their inputs, and sum nothing
    activations, temporaries = (
        line.by_category[name][begin.event :] for name in ("activations", "temporaries")
    )
    # A block again: its linear layer's output and tanh of it; and two scalars, the loss and the
    # 1 that starts the backward, which is made before it.
    assert activations.max() == kept + 2 * 4 + 2 * size
    assert temporaries.max() >= size
    checked(tracker)


def test_what_is_registered_takes_its_name_and_buffers_have_one():
    model = nn.Sequential(nn.Linear(N, M, bias=False), nn.BatchNorm1d(M))
    model[1].weight.requires_grad_(False)
    with MemoryTracker(timeline=True).watch(model) as tracker:
        buffers = 2 * BIAS + 8
        assert checked(tracker) == {"parameters": WEIGHT + 2 * BIAS, "buffers": buffers}
        cache = [ones(100), ones(20)]
        assert checked(tracker)["activations"] == 120
        tracker.register(cache, "cache")
        assert checked(tracker)["cache"] == 120
        line = tracker.timeline()
        assert line.by_category["cache"].max() == 120  # since it was made
        assert not line.by_category["activations"].any()
        batch, own = ones(7), nn.Parameter(torch.ones(5))
        tracker.register([batch, own])
        held = checked(tracker)
        assert (held["inputs"], held["parameters"]) == (7, WEIGHT + 2 * BIAS + 4 * 5)
        tracker.register([batch], "kept")  # had a role, so from now on, which is an event
        line = tracker.timeline()
        assert line.by_category["kept"].tolist()[-2:] == [0, 7]
        assert line.by_category["inputs"].tolist()[-2:] == [7, 0]
    del cache
    assert "cache" not in tracker.live_by_category


def test_a_second_role_begins_when_it_does():
    """What was a gradient is not made a parameter of the past."""
    layer = nn.Linear(N, M, bias=False)
    with MemoryTracker(timeline=True).watch(layer) as tracker:
        layer(torch.ones(B, N)).sum().backward()
        tracker.mark("before")
        layer.weight.data, layer.weight.grad = layer.weight.grad, None
        tracker.mark("after")
    before, after = tracker.marks
    assert before.by_category == {"parameters": WEIGHT, "gradients": WEIGHT}
    assert after.by_category == {"parameters": WEIGHT}
    checked(tracker)


def test_cuda_gives_whole_blocks():
    with MemoryTracker(rounding="cuda", timeline=True) as tracker:
        kept = [ones(n) for n in (0, 1, 512, 513)]
        assert checked(tracker) == {"activations": 0 + 512 + 512 + 1024}
        kept[1].resize_(513)
        kept[3].resize_(1024)  # inside its block
        assert checked(tracker) == {"activations": 1024 + 512 + 1024}
    del kept
    assert tracker.live_bytes == 0


def test_one_device_can_be_asked_for():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), MemoryTracker(device_type="cpu") as tracker:
        here = torch.ones(10)
        there = torch.ones(10, device="meta")
        tracker.register([here, there])
        assert tracker.live_bytes == 40
    with FakeTensorMode(), MemoryTracker(device_type="cuda") as other:
        here = torch.ones(10)
        assert (other.live_bytes, other.peak_bytes) == (0, 0)


def test_a_timeline_that_was_not_kept_is_refused():
    with MemoryTracker() as tracker:
        tracker.mark("forward")
        kept = ones(5)
    assert (tracker.peak.phase, tracker.peak.operation_index) == ("forward", 1)
    assert tracker.peak.by_category == {"activations": 5}
    with pytest.raises(RequestError, match="timeline=True"):
        tracker.timeline()
    del kept


def test_neither_hooks_nor_tracker_outlive_their_use(layer):
    sgd = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)
    tracker = MemoryTracker(timeline=True).watch(layer, sgd)
    layer(torch.ones(B, N)).sum().backward()  # outside the context: not counted
    sgd.step()
    assert checked(tracker) == {"parameters": PARAMETERS}
    hooks, gone = tracker._hooks, weakref.ref(tracker)
    assert sgd._optimizer_step_post_hooks
    del tracker
    gc.collect()
    assert gone() is None
    assert hooks
    assert not sgd._optimizer_step_post_hooks
    assert not layer.weight._post_accumulate_grad_hooks
    tracker = MemoryTracker().watch(layer, sgd)
    assert tracker.live_by_category == {
        "parameters": PARAMETERS, "gradients": PARAMETERS, "optimizer states": PARAMETERS,
    }  # fmt: skip
    del sgd
    assert "optimizer states" not in tracker.live_by_category
    tracker.mark("without it")


ROLES = ("parameters", "buffers", "gradients", "optimizer states", "inputs")
steps = st.tuples(
    st.sampled_from(["make", "make", "free", "grow", "name"]),
    st.integers(0, 99),
    st.sampled_from(["a", "b", "gradients", "inputs"]),
)


@dataclass
class Segment:
    """Bytes of one tensor that are one thing from one step to before another."""

    size: int
    name: str
    begin: int
    end: int = 10**6


@settings(max_examples=100, deadline=None)
@given(st.lists(steps, min_size=1))
@example([("make", 0, "a"), ("name", 0, "b")])
def test_random_programs_are_named_as_their_bookkeeping_does(steps):
    tensors, segments, tops = {}, [], []  # a tensor beside the segment that it is in
    with MemoryTracker(timeline=True) as tracker:
        for number, (step, value, name) in enumerate(steps):
            key = list(tensors)[value % len(tensors)] if tensors else None
            segment = tensors[key][1] if tensors else None
            if step == "make":
                with tracker.scope(name):
                    tensors[number] = (ones(value), Segment(value, name, number))
                segments.append(tensors[number][1])
            elif key is None:
                pass
            elif step == "free":
                segment.end = number
                del tensors[key]
            else:
                tensor, size = tensors[key][0], segment.size
                if step == "grow":
                    size, name = 100 + number, segment.name
                    tensor.resize_(size)
                else:
                    tracker.register([tensor], name)
                if step == "grow" or (segment.name in ROLES and segment.name != name):
                    segment.end = number
                    tensors[key] = (tensor, Segment(size, name, number))
                    segments.append(tensors[key][1])
                else:
                    segment.name = name
                del tensor
            tracker.mark(str(number))
            if tracker.peak_bytes > (tops[-1][0] if tops else 0):
                tops.append((tracker.peak_bytes, number))
        checked(tracker)
    held = []
    for number in range(len(steps)):
        held.append({})
        for part in segments:
            if part.begin <= number < part.end and part.size:
                held[-1][part.name] = held[-1].get(part.name, 0) + part.size
    assert [mark.by_category for mark in tracker.marks] == held
    if tops:
        assert tracker.peak_bytes == max(sum(parts.values()) for parts in held)
        assert tracker.peak.by_category == held[tops[-1][1]]
