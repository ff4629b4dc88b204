"""What kernels hold for themselves: a CPU's against torch's profiler, a GPU's by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from paramscope.tracker.scratch import scratch_bytes

FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def most_held(seen, name):
    """The most that was held inside an operation, over what there was at its begin."""
    waiting = [(event, False) for event in seen.profiler.kineto_results.experimental_event_tree()]
    found = []
    while waiting:
        event, inside = waiting.pop()
        inside = inside or event.name == name
        waiting += [(child, inside) for child in event.children]
        if inside and event.tag.name == "Allocation":
            found.append((event.start_time_ns, event.typed[1].alloc_size))
    live = most = 0
    for _, change in sorted(found):
        live += change
        most = max(most, live)
    return most


def heads(tokens, width, dtype, contiguous=True):
    shape = (2, 3, tokens, width) if contiguous else (2, tokens, 3, width)
    x = torch.randn(shape, dtype=dtype)
    return (x if contiguous else x.transpose(1, 2)).requires_grad_()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("tokens", "width"), [(1, 4), (33, 16), (200, 20), (800, 8)])
@pytest.mark.parametrize("contiguous", [True, False])
def test_flash_attention_holds_what_the_profiler_sees(threads, dtype, tokens, width, contiguous):
    query, key, value = (heads(tokens, width, dtype) for _ in range(3))
    gradient = heads(tokens, width, dtype, contiguous).detach()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with (
            sdpa_kernel(SDPBackend.FLASH_ATTENTION),
            profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen,
        ):
            result = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            result.backward(gradient)
        held = [
            scratch_bytes(FORWARD, (query, key, value)),
            scratch_bytes(BACKWARD, (gradient, query, key, value)),
        ]
    finally:
        torch.set_num_threads(before)
    size = query.numel() * query.element_size()
    log_sums = 2 * 3 * tokens * query.element_size()
    assert held[0] == most_held(seen, FORWARD.name().partition(".")[0]) - size - log_sums
    assert held[1] == most_held(seen, BACKWARD.name().partition(".")[0]) - 3 * size


def test_half_precision_keeps_rounded_weights_too():
    query, key, value = (heads(40, 16, torch.bfloat16).detach() for _ in range(3))
    with (
        sdpa_kernel(SDPBackend.FLASH_ATTENTION),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen,
    ):
        F.scaled_dot_product_attention(query, key, value, is_causal=True)
    made = query.numel() * 2 + 2 * 3 * 40 * 4
    most = most_held(seen, FORWARD.name().partition(".")[0])
    assert scratch_bytes(FORWARD, (query, key, value)) == most - made


def test_on_a_gpu_half_precision_sums_the_queries_gradient_in_float32():
    """Two samples, three heads: 130 tokens fill two tiles, 20 columns are 32, 136 are 192."""
    for width, columns in ((20, 32), (136, 192)):
        query = heads(130, width, torch.bfloat16).detach()
        held = scratch_bytes(BACKWARD, (query,) * 4, "cuda")
        assert held == 4 * 2 * 3 * 256 + 4 * 2 * 3 * 256 * columns
    one = torch.ones(1, 1, 3, 8, dtype=torch.float16)
    assert scratch_bytes(BACKWARD, (one,) * 4, "cuda") == 512 + 128 * 32 * 4
    assert scratch_bytes(FORWARD, (one,) * 3, "cuda") == 0
    assert scratch_bytes(BACKWARD, (one.float(),) * 4, "cuda") == 0


@pytest.mark.parametrize("shifted", [True, False])
def test_a_softmax_copies_what_is_not_contiguous(shifted):
    scores = torch.randn(4, 9, 33)
    given = scores[:, :-1] if shifted else scores
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        given.log_softmax(-1)
    held = scratch_bytes(torch.ops.aten._log_softmax.default, (given, -1, False))
    assert held == most_held(seen, "aten::_log_softmax") - 4 * given.numel()
    assert (held > 0) == shifted


@pytest.mark.parametrize("threads", [1, 2])
def test_a_qr_works_in_so_much_a_row(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        tall = torch.randn(8, 30_000).T
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            torch.linalg.qr(tall)
        held = scratch_bytes(torch.ops.aten.linalg_qr.default, (tall,))
    finally:
        torch.set_num_threads(before)
    # Beside Q: R, and the factors' scales, some numbers a column.
    assert held == pytest.approx(most_held(seen, "aten::linalg_qr") - 4 * tall.numel(), abs=4_000)
    assert (held > 0) == (threads > 1)


def test_other_operations_hold_nothing():
    assert scratch_bytes(torch.ops.aten.mm.default, (torch.ones(2, 2), torch.ones(2, 2))) == 0
