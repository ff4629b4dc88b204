"""What this machine has: main memory, the limits on it, and GPUs."""

from pathlib import Path

import torch

from paramscope.nvml import gpu_memory
from paramscope.planner.main_memory import (
    ROOT,
    Limit,
    LocalDevice,
    cgroup_limits,
    main_memory,
    resource_limits,
    under_wsl,
)

__all__ = [
    "Limit",
    "LocalDevice",
    "cgroup_limits",
    "gpus",
    "local_devices",
    "main_memory",
    "resource_limits",
    "under_wsl",
]


def local_devices(root: Path = ROOT) -> tuple[LocalDevice, ...]:
    """Main memory of this machine, then each GPU that torch can use.

    `root` is the folder that holds proc and sys. The GPUs are asked for of their driver,
    wherever it is.
    """
    return (main_memory(root), *gpus(under_wsl(root)))


def gpus(wsl: bool = False) -> tuple[LocalDevice, ...]:
    """Each GPU that torch can use; none where it has no CUDA or finds no GPU.

    The total is torch's, which the driver's own part is not in. What is free is NVML's; where
    that does not tell, `torch.cuda.mem_get_info`'s, which takes a CUDA context to ask; else None.
    """
    if not torch.cuda.is_available():
        return ()
    return tuple(_gpu(index, wsl) for index in range(torch.cuda.device_count()))


def _gpu(index: int, wsl: bool) -> LocalDevice:
    device = torch.device("cuda", index)
    properties = torch.cuda.get_device_properties(device)
    free = (gpu_memory(device) or {}).get("free_bytes")
    if free is None:
        try:
            free = torch.cuda.mem_get_info(device)[0]
        except RuntimeError:
            free = None  # such as no memory for the context; what is free stays unknown
    spills = "what does not fit goes to main memory without an error, unless the driver's "
    return LocalDevice(
        f"cuda:{index}",
        "cuda",
        properties.name,
        int(properties.total_memory),
        free if free is None else min(int(free), int(properties.total_memory)),
        capability=int(properties.major),
        notes=(f"{spills}CUDA sysmem fallback policy forbids it",) if wsl else (),
    )
