"""The tracker against bytes counted by hand, the profiler's events and torch's MemTracker."""

import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker
from torch.func import functional_call, grad, vmap
from torch.profiler import ProfilerActivity, profile

from paramscope.errors import RequestError
from paramscope.tracker import MemoryTracker

KIB = 1024


def ones(n):
    return torch.ones(n, dtype=torch.uint8)  # one byte each


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 256), nn.GELU(), nn.LayerNorm(256),
        nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10),
    )  # fmt: skip


def learn(model, x, y):
    nn.functional.cross_entropy(model(x), y).backward()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(128, 64, generator=generator)
    return x, torch.randint(0, 10, (128,), generator=generator)


def test_views_share_and_frees_count():
    with MemoryTracker() as tracker:
        first = ones(1000)
        part = first[10:20].view(2, 5).t()
        first.add_(1)
        assert tracker.live_bytes == 1000
        second = first.to(torch.float64)
        assert tracker.live_bytes == 1000 + 8000
        del second
        third = first * 2
        del first
        assert tracker.live_bytes == 2000  # `part` holds the first one's storage
        del part
        assert tracker.live_bytes == 1000
    assert (tracker.peak_bytes, tracker.peak_operation) == (9000, "aten._to_copy.default")
    tracker.reset_peak()
    assert tracker.peak_bytes == 1000
    del third
    assert tracker.live_bytes == 0  # after the end as well
    assert tracker.peak_bytes == 1000


def test_resizes_and_outputs_handed_in_are_followed():
    outside, target = ones(300), ones(0)
    with MemoryTracker() as tracker:
        torch.add(outside, 1, out=target)
        assert tracker.live_bytes == 300  # grew inside; `outside` itself was never told
        made = ones(0)
        torch.cat([outside, outside], out=made)
        assert tracker.live_bytes == 300 + 600
        made.resize_(5000)
        assert (tracker.live_bytes, tracker.peak_operation) == (5300, "aten.resize_.default")
        made.untyped_storage().resize_(50)
        made.resize_(50)
        assert tracker.live_bytes == 350
        assert tracker.register([outside, outside[5:]]).live_bytes == 650
        literal = torch.tensor([1.0, 2.0])
        assert tracker.live_bytes == 658
    del outside, target, made, literal
    assert (tracker.live_bytes, tracker.peak_bytes) == (0, 5300)


def test_a_linear_layer_by_hand():
    B, n, m = 32, 20, 12
    layer, x, g = nn.Linear(n, m), torch.randn(B, n), torch.randn(B, m)
    known = 4 * (m * n + m + B * n + B * m)
    with MemoryTracker().register([*layer.parameters(), x, g]) as tracker:
        assert (tracker.live_bytes, tracker.peak_operation) == (known, "register")
        y = layer(x)
        assert tracker.live_bytes == known + 4 * B * m
        y.backward(g)
        assert tracker.live_bytes == known + 4 * (B * m + m * n + m)
        square = y.square()
        loss = square.sum()
        del square
        assert tracker.live_bytes == known + 4 * (B * m + m * n + m) + 4
        layer.zero_grad(set_to_none=True)
    del y, loss
    assert tracker.live_bytes == known


def test_what_the_forward_keeps_lives_until_the_backward():
    x = torch.randn(KIB, requires_grad=True)
    with MemoryTracker() as tracker:
        y = x.exp().sin().sum()  # exp and sin keep exp(x), sum nothing
        assert tracker.live_bytes == 4 * KIB + 4
        assert tracker.peak_bytes == 8 * KIB + 4  # the sum is made with both alive
        y.backward()
    # at the peak: exp(x), its cosine, the gradient at sin, y and the 1 that starts it all
    assert tracker.peak_bytes == 12 * KIB + 8
    assert tracker.live_bytes == 4 * KIB + 4  # x.grad and y


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["make", "free", "view", "grow"]), st.integers(0, 99))))
def test_random_programs_count_as_their_bookkeeping_does(steps):
    storages, names, peak = {}, [], 0  # bytes by storage; (tensor, its storage)
    with MemoryTracker() as tracker:
        for number, (step, size) in enumerate(steps):
            if step == "make":
                storages[number] = size
                names.append((ones(size), number))
            elif names:
                tensor, storage = names[size % len(names)]
                if step == "view":
                    names.append((tensor[: size // 2], storage))
                elif step == "grow":
                    tensor.resize_(100 + number)
                    storages[storage] = max(storages[storage], 100 + number)
                else:
                    names.pop(size % len(names))
                del tensor
            held = {storage for _, storage in names}
            live = sum(storages[storage] for storage in held)
            peak = max(peak, live)
            assert tracker.live_bytes == live
    assert tracker.peak_bytes == peak


def test_the_profiler_sees_the_same(batch):
    model = mlp()
    with MemoryTracker() as tracker:
        learn(model, *batch)
    del model
    model = mlp()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        learn(model, *batch)
    live = peak = 0
    for change in allocations(profiled):
        live += change
        peak = max(peak, live)
    assert live == sum(p.numel() * 4 for p in model.parameters())
    # kernels' own scratch, which the tracker can't see, is none here (seen: equal to the byte)
    assert tracker.peak_bytes == pytest.approx(peak, rel=1e-3)


def allocations(profiled):
    """Bytes of all allocations (+) and frees (−) in order of time."""
    found, waiting = [], list(profiled.profiler.kineto_results.experimental_event_tree())
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag.name == "Allocation":
            found.append((event.start_time_ns, event.typed[1].alloc_size))
    return [size for _, size in sorted(found, key=lambda pair: pair[0])]


def test_memtracker_sees_the_same(batch):
    model = mlp()
    with MemoryTracker().register([*model.parameters(), *batch]) as tracker:
        learn(model, *batch)
    model = mlp()
    other = MemTracker()
    other.track_external(model, *batch)
    with other:
        learn(model, *batch)
    cpu = torch.device("cpu")
    assert tracker.peak_bytes == other.get_tracker_snapshot("peak")[cpu]["Total"]
    # At the least parameters and gradients, and the forward's wide values in between.
    assert tracker.peak_bytes > 2 * 4 * sum(p.numel() for p in model.parameters())


def test_function_transforms_are_seen(batch):
    model = mlp()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, x, y):
        return nn.functional.cross_entropy(functional_call(model, parameters, x[None]), y[None])

    with MemoryTracker() as tracker:
        rows = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, *batch)
    assert tracker.live_bytes == 128 * 4 * sum(p.numel() for p in parameters.values())
    del rows
    assert tracker.live_bytes == 0


def test_sparse_parts_count_and_unknown_layouts_are_refused():
    with MemoryTracker() as tracker:
        index, value = torch.tensor([[0, 2]]), torch.tensor([1.0, 2.0])
        sparse = torch.sparse_coo_tensor(index, value, (3,))
        held = tracker.live_bytes
        assert held >= 16 + 8
        del index, value
        assert tracker.live_bytes >= 16 + 8
        with pytest.raises(RequestError, match=r"layout torch\.sparse_csr"):
            torch.eye(3).to_sparse_csr()
    del sparse
    gc.collect()
    assert tracker.live_bytes == 0


def test_a_tracker_is_freed_with_its_tensors_alive():
    import weakref

    with MemoryTracker() as tracker:
        kept = ones(10)
    gone = weakref.ref(tracker)
    del tracker
    gc.collect()
    assert gone() is None
    del kept
