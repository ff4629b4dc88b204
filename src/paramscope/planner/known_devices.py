"""Devices by name, with the memory that a run can be planned with on each.

A device's memory is what the system or torch tells of it, which is less than what is sold:
a GPU's driver keeps a part (`nvidia-smi` tells 81,559 MiB of an H100 and 81,920 MiB of an
A100, modal-labs/modal-client#2797, and torch some 500 to 800 MiB less). Of several figures
that users report, the least stands.

What a plan may use is that memory, less what the system holds beside the run, less a margin.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from paramscope.errors import DeviceError

Kind = Literal["cpu", "cuda", "wsl"]

GB, GIB = 10**9, 2**30

# Of a WSL machine with 24 GB `top` showed, without a .wslconfig: 11,892.8 MiB in all, 326.2
# used, 3,072 of swap (microsoft/WSL#9636): half the host's memory less what Linux keeps, and
# swap a quarter of that half.
WSL_SHOWN = 11_892.8 / 12_288
WSL_HELD_BYTES = int(326.2 * 2**20)
WSL_SWAP = 3_072 / 12_288


@dataclass(frozen=True)
class Device:
    """A device that stages can be planned for.

    Attributes:
        name: what it is called by.
        kind: whose rules it has: main memory, main memory under WSL, or a CUDA GPU.
        memory_bytes: what it has in all, as the system or torch tells.
        note: what to know of it.
        source: where the figure is from.
        held_bytes: of that, what the system and the desktop hold beside the run.
        capability: major number of a GPU's compute capability; None on a CPU.
    """

    name: str
    kind: Kind
    memory_bytes: int
    note: str
    source: str
    held_bytes: int = 0
    capability: int | None = None


@dataclass(frozen=True)
class Margin:
    """The part of a device's memory that a plan leaves free, and why."""

    fraction: float
    reason: str


MARGINS: dict[Kind, Margin] = {
    "cpu": Margin(
        0.10,
        "with less than 10% of memory available earlyoom, by its default, ends the largest "
        "process (man earlyoom)",
    ),
    "wsl": Margin(
        WSL_SWAP,
        "WSL has swap of a quarter of its memory by default (microsoft/WSL#9636): what goes over "
        "by less raises no error and crawls",
    ),
    "cuda": Margin(
        0.05,
        "what the allocator reserves beyond live tensors is not in a plan, nor is the "
        "CUDA context, .3 to .7 GB (pytorch/pytorch#86509)",
    ),
}

KNOWN = (
    Device(
        "laptop-8gb",
        "cpu",
        8 * GB,
        "an 8 GB laptop under Linux, no GPU; free memory by `paramscope device` is surer",
        "8·10⁹ bytes, what --memory-gb 8 keeps to, of modules of 8 GiB; 4 GB of it are what "
        "Ubuntu Desktop asks for (canonical/ubuntu.com#5246)",
        held_bytes=4 * GB,
    ),
    Device(
        "wsl-8gb",
        "wsl",
        int(4 * GIB * WSL_SHOWN),
        "WSL 2 on an 8 GB Windows laptop, no GPU; memory= in .wslconfig gives it more",
        "half of the host's memory (MicrosoftDocs/WSL#1939), of which Linux shows 96.8% and "
        "holds 326 MiB before any work (microsoft/WSL#9636)",
        held_bytes=WSL_HELD_BYTES,
    ),
    Device(
        "rtx-24gb",
        "cuda",
        int(23.52 * GIB),
        "RTX 3090 or 4090; a desktop that is drawn on it takes from it",
        "least total that torch told of an RTX 4090 (sgl-project/sglang#12496), of an RTX 3090 "
        "23.69 GiB (vllm-project/vllm#2140)",
        capability=8,
    ),
    Device(
        "a800",
        "cuda",
        int(79.25 * GIB),
        "A800 80 GB: an A100 with a slower link between GPUs",
        "as of an A100 80 GB, of which nvidia-smi tells the same 81,920 MiB "
        "(dexmal/dexbotic#41); torch told 79.33 GiB of one (MoonshotAI/Kimi-VL#51)",
        capability=8,
    ),
    Device(
        "a100-80gb",
        "cuda",
        int(79.25 * GIB),
        "A100 80 GB",
        "total that torch told (levihsu/OOTDiffusion#235, HiDream-ai/VAREdit#6)",
        capability=8,
    ),
    Device(
        "h100-80gb",
        "cuda",
        int(79.11 * GIB),
        "H100 80 GB",
        "total that torch told (vllm-project/vllm#27508)",
        capability=9,
    ),
    Device(
        "h200",
        "cuda",
        int(139.72 * GIB),
        "H200, 141 GB",
        "total that torch told of an H20 with the same 141 GB (hiyouga/LlamaFactory#7713); "
        "torchtitan logged 139.81 GiB of an H200",
        capability=9,
    ),
)


def known_device(name: str) -> Device:
    """The known device of that name.

    Raises:
        DeviceError: none is called that.
    """
    by_name = {device.name: device for device in KNOWN}
    if name in by_name:
        return by_name[name]
    close = get_close_matches(name.lower(), by_name, 1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    raise DeviceError(f"device '{name}': known devices are {', '.join(by_name)}{meant}")


def margin_bytes(device: Device) -> int:
    """Bytes that a plan for `device` leaves free; `MARGINS` tells why."""
    free = max(0, device.memory_bytes - device.held_bytes)
    return round(free * MARGINS[device.kind].fraction)


def usable_bytes(device: Device) -> int:
    """Bytes that a run on `device` can be planned with: no less than 0."""
    return max(0, device.memory_bytes - device.held_bytes - margin_bytes(device))
