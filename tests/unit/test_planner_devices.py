"""Known devices: their memory against what their vendors sell, margins, and look-up by name."""

import dataclasses

import pytest

from paramscope.errors import DeviceError
from paramscope.planner.known_devices import (
    GB,
    GIB,
    KNOWN,
    MARGINS,
    Device,
    known_device,
    margin_bytes,
    usable_bytes,
)

# What nvidia-smi tells (modal-labs/modal-client#2797, and dexmal/dexbotic#41 of an A800); of an
# RTX what its data sheet says, 24 GB, which are GiB; of an H200 143,771 MiB.
DRIVERS_MIB = {
    "rtx-24gb": 24 * 1024,
    "a800": 81_920,
    "a100-80gb": 81_920,
    "h100-80gb": 81_559,
    "h200": 143_771,
}
LARGEST_CONTEXT_BYTES = 666_632_192  # pytorch/pytorch#86509, all kernels loaded


def test_the_devices_are_those_that_plans_are_made_for():
    assert [device.name for device in KNOWN] == [
        "laptop-8gb", "wsl-8gb", "rtx-24gb", "a800", "a100-80gb", "h100-80gb", "h200",
    ]  # fmt: skip
    assert [device.name for device in KNOWN if device.kind == "cuda"] == list(DRIVERS_MIB)


@pytest.mark.parametrize("name", DRIVERS_MIB)
def test_a_gpu_has_what_its_driver_tells_less_the_drivers_part(name):
    kept = DRIVERS_MIB[name] - known_device(name).memory_bytes / 2**20
    # A driver keeps a part: 492 MiB (2.0%) of an RTX 4090, 550 to 768 MiB of the larger ones.
    assert 0 < kept < 0.021 * DRIVERS_MIB[name]
    assert known_device(name).capability == (9 if name.startswith("h") else 8)


def test_main_memory_is_under_what_the_machine_is_sold_with():
    laptop, wsl = known_device("laptop-8gb"), known_device("wsl-8gb")
    assert laptop.memory_bytes == 8 * GB < 8 * GIB
    assert 0.95 * 4 * GIB < wsl.memory_bytes < 4 * GIB  # half the host's
    assert usable_bytes(laptop) == 3_600_000_000  # (8 − 4) GB less 10%
    assert usable_bytes(wsl) < 0.75 * wsl.memory_bytes


@pytest.mark.parametrize("device", KNOWN, ids=lambda device: device.name)
def test_memory_is_held_left_free_or_usable(device):
    assert usable_bytes(device) + margin_bytes(device) + device.held_bytes == device.memory_bytes
    assert usable_bytes(device) > 0
    assert device.source
    assert device.note
    assert MARGINS[device.kind].reason


@pytest.mark.parametrize("name", DRIVERS_MIB)
def test_a_gpus_margin_covers_the_largest_context_seen(name):
    assert margin_bytes(known_device(name)) > LARGEST_CONTEXT_BYTES


def test_nothing_is_usable_where_the_system_holds_it_all():
    full = dataclasses.replace(known_device("laptop-8gb"), held_bytes=9 * GB)
    assert usable_bytes(full) == margin_bytes(full) == 0


def test_a_device_measured_free_holds_nothing_back_but_its_margin():
    assert usable_bytes(Device("cuda:0", "cuda", 1000, "", "")) == 950


@pytest.mark.parametrize(
    ("asked", "meant"), [("h-100-80gb", "h100-80gb"), ("A800", "a800"), ("laptop8gb", "laptop-8gb")]
)
def test_an_unknown_name_is_refused_with_the_closest(asked, meant):
    with pytest.raises(DeviceError, match=rf"device '{asked}'.*did you mean {meant}\?") as told:
        known_device(asked)
    assert str(told.value).count("\n") == 0
    assert told.value.exit_code == 2


def test_a_name_like_no_other_lists_them_all():
    with pytest.raises(DeviceError) as told:
        known_device("zzz")
    assert "did you mean" not in str(told.value)
    assert all(device.name in str(told.value) for device in KNOWN)
