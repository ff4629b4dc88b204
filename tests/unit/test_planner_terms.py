"""Rows of memory outside dispatch: torch's own constants, and the allocator's rules.

Oracles: the headers of the torch that is installed, what its users measured, and a second,
plainer account of the allocator that keeps every segment's blocks.
"""

import os
import re
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paramscope.errors import DeviceError
from paramscope.planner import terms as planner_terms
from paramscope.planner.known_devices import KNOWN, known_device
from paramscope.planner.terms import (
    LARGE_SEGMENT_BYTES,
    MIB,
    OWN_SEGMENT_BYTES,
    SEGMENT_STEP_BYTES,
    SMALL_BYTES,
    SMALL_SEGMENT_BYTES,
    measured_context_bytes,
    measured_process_bytes,
    reserved_bytes,
    segment_bytes,
    terms,
    workspace_bytes,
)
from paramscope.tracker.storages import CUDA_BLOCK_BYTES

MEASURED_ON_A10G = 8_519_680  # memory_allocated after one Linear (pytorch/pytorch#95668)
GPU = torch.device("cuda", 0)


def rows(device, **given):
    return {row.name: row for row in terms(known_device(device), environ={}, **given)}


def test_the_allocators_sizes_are_the_installed_torchs():
    header = Path(torch.__file__).parent / "include/c10/core/AllocatorConfig.h"
    constants = dict(re.findall(r"constexpr size_t (k\w+) = (\d+);", header.read_text()))
    large = re.search(r"large_segment_size_\{(\d+)\}", header.read_text())
    assert int(constants["kMinBlockSize"]) == CUDA_BLOCK_BYTES
    assert int(constants["kSmallSize"]) == SMALL_BYTES
    assert int(constants["kSmallBuffer"]) == SMALL_SEGMENT_BYTES
    assert int(constants["kMinLargeAlloc"]) == OWN_SEGMENT_BYTES
    assert int(constants["kRoundLarge"]) == SEGMENT_STEP_BYTES
    assert large is not None
    assert int(large[1]) == LARGE_SEGMENT_BYTES


@pytest.mark.parametrize(
    ("size", "segment"),
    [
        (1, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB - 511, 10 * MIB),  # rounded up to 10 MiB, which has a segment of its own
        (10 * MIB + 1, 12 * MIB),
        (10**9, 477 * 2 * MIB),
    ],
)
def test_a_first_request_takes_a_segment_of_its_kind(size, segment):
    assert segment_bytes(size) == segment
    assert reserved_bytes([size]) == segment


def plain_reserved(sizes):
    """Segments as lists of (bytes, is free), searched whole; the rules in the reverse order."""
    segments = []
    for asked in (size for size in sizes if size):
        size = (asked + 511) // 512 * 512
        kind = "small" if size <= 2**20 else "large"
        spots = [
            (length, segment, place)
            for segment, (is_kind, blocks) in enumerate(segments)
            for place, (length, free) in enumerate(blocks)
            if is_kind == kind and free and length >= size
        ]
        if not spots:
            whole = (
                2 * 2**20
                if kind == "small"
                else 20 * 2**20
                if size < 10 * 2**20
                else (size + 2**21 - 1) // 2**21 * 2**21
            )
            segments.append((kind, [(whole, True)]))
            spots = [(whole, len(segments) - 1, 0)]
        length, segment, place = min(spots)
        left = length - size
        split = left >= 512 if kind == "small" else left > 2**20
        blocks = segments[segment][1]
        blocks[place : place + 1] = [(size, False), (left, True)] if split else [(length, False)]
    return sum(length for _, blocks in segments for length, _ in blocks)


requests = st.lists(
    st.one_of(
        st.integers(0, 3 * MIB),
        st.integers(8 * MIB, 24 * MIB),
        st.sampled_from([511, 512, MIB, MIB + 1, 10 * MIB - 512, 10 * MIB, 19 * MIB]),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=150)
@given(requests)
def test_segments_are_those_of_the_plainer_account(sizes):
    reserved = reserved_bytes(sizes)
    assert reserved == plain_reserved(sizes)
    assert reserved >= sum(sizes)
    assert reserved % (2 * MIB) == 0


def test_small_requests_share_a_segment_and_large_ones_split_theirs():
    assert reserved_bytes([512] * 4096) == 2 * MIB
    assert reserved_bytes([512] * 4097) == 4 * MIB
    assert reserved_bytes([5 * MIB] * 4) == 20 * MIB
    # 12 MiB less 10.5 leaves a block for 1.2; less 11.5 it leaves too little to be one
    assert reserved_bytes([21 * MIB // 2, 6 * MIB // 5]) == 12 * MIB
    assert reserved_bytes([23 * MIB // 2, 6 * MIB // 5]) == 32 * MIB


def test_a_workspace_is_what_was_measured():
    assert workspace_bytes(8) == MEASURED_ON_A10G
    assert workspace_bytes(9) == 32 * MIB
    assert workspace_bytes(10) is None  # torch's versions differ
    assert workspace_bytes(None) is None


@pytest.mark.parametrize(
    ("config", "size"),
    [(":4096:8", 32 * MIB), (":16:8", 128 * 1024), (":4096:2:16:8", MEASURED_ON_A10G)],
)
def test_the_environment_sets_the_workspace(config, size):
    assert workspace_bytes(9, config) == workspace_bytes(None, config) == size
    assert workspace_bytes(8, "nonsense") == MEASURED_ON_A10G
    given = {row.name: row for row in terms(
        known_device("h200"), backward=False, environ={"CUBLAS_WORKSPACE_CONFIG": config}
    )}  # fmt: skip
    assert given["cuBLAS workspace"].bytes == size


def test_a_backward_has_a_workspace_of_its_own():
    assert rows("a800", backward=False)["cuBLAS workspace"].bytes == MEASURED_ON_A10G
    assert rows("a800")["cuBLAS workspace"].bytes == 2 * MEASURED_ON_A10G
    assert rows("h100-80gb")["cuBLAS workspace"].bytes == 64 * MIB


@pytest.mark.parametrize("device", KNOWN, ids=lambda device: device.name)
def test_every_row_has_a_source_and_only_a_run_tells_the_rest(device):
    told = rows(device.name)
    gpu = ["CUDA context", "cuBLAS workspace", "allocator reserve"]
    assert list(told) == (
        gpu if device.kind == "cuda" else ["Python and libraries", "malloc's reserve"]
    )
    assert all(row.source for row in told.values())
    unknown = [name for name, row in told.items() if row.bytes is None]
    assert unknown == (gpu[::2] if device.kind == "cuda" else list(told))


def test_what_is_measured_is_in_its_row():
    assert rows("a800", context_bytes=5)["CUDA context"].bytes == 5
    assert rows("wsl-8gb", process_bytes=7)["Python and libraries"].bytes == 7


def test_the_reserve_is_segments_less_blocks():
    blocks = [600, 3 * MIB, 30 * MIB + 1]
    told = rows("a100-80gb", backward=False, blocks=blocks)
    # 1,024 of 2 MiB; 3 and the workspace's 8.125 of 20; 30 MiB + 512 of 32
    expected = (2 + 20 + 32) * MIB - (1024 + 3 * MIB + MEASURED_ON_A10G + 30 * MIB + 512)
    assert told["allocator reserve"].bytes == expected
    assert told["allocator reserve"].seen_in == "reserved"


def test_a_context_is_what_the_driver_tells_less_what_torch_reserves(monkeypatch):
    told = {"processes": {str(os.getpid()): 500, "1": 9_999}}
    monkeypatch.setattr(planner_terms, "gpu_memory", lambda device: told)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 200)
    assert measured_context_bytes(GPU) == 300
    told["processes"][str(os.getpid())] = None  # in a container
    assert measured_context_bytes(GPU) is None
    told["processes"] = None
    assert measured_context_bytes(GPU) is None


def test_a_cpu_has_no_context():
    assert measured_context_bytes(torch.device("cpu")) is None


def test_a_process_begins_with_what_it_imports():
    bare, with_numpy = measured_process_bytes(()), measured_process_bytes(("numpy",))
    assert 4 * MIB < bare < with_numpy  # an interpreter is some 10 MiB, numpy's libraries more
    assert with_numpy < psutil.virtual_memory().total


def test_what_cant_be_imported_is_told_in_a_line():
    with pytest.raises(DeviceError, match="No module named 'no_such_module'; install") as told:
        measured_process_bytes(("no_such_module",))
    assert "\n" not in str(told.value)
