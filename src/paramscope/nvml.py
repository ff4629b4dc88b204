"""What the driver says of a GPU's memory, by pynvml; what it does not tell is null."""

import os
import time
from typing import Any

import torch

from paramscope.errors import DeviceError

POLL_S = 2.0


def gpu_memory(device: torch.device) -> dict[str, Any] | None:
    """Total, used and free bytes of a GPU and the memory of each process on it; None on a CPU.

    A field that the driver does not tell (in a container, under WSL, or without pynvml) is None.
    """
    if device.type != "cuda":
        return None
    told: dict[str, Any] = dict.fromkeys(("total_bytes", "used_bytes", "free_bytes", "processes"))
    try:
        import pynvml
    except ImportError:
        return told
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver, or one that this process can't reach
        return told
    try:
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        told |= {
            "total_bytes": int(memory.total),
            "used_bytes": int(memory.used),
            "free_bytes": int(memory.free),
        }
        told["processes"] = {
            str(process.pid): process.usedGpuMemory
            for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        }
    except pynvml.NVMLError:
        pass  # what it told so far stands
    finally:
        pynvml.nvmlShutdown()
    return told


def require_idle(device: torch.device, wait: bool) -> None:
    """Refuse a GPU that holds another process's memory, or wait for its end.

    Raises:
        DeviceError: it does, and `wait` is false.
    """
    told = False
    while True:
        memory = gpu_memory(device)
        processes = (memory or {}).get("processes") or {}
        others = {pid: held for pid, held in processes.items() if int(pid) != os.getpid()}
        if not others:
            return
        names = ", ".join(
            f"{pid} ({'unknown' if held is None else f'{held / 1e6:,.0f} MB'})"
            for pid, held in others.items()
        )
        if not wait:
            raise DeviceError(
                f"{device} holds memory of other processes: {names}; a profile needs it alone "
                "(--wait waits for that)"
            )
        if not told:
            print(f"{device} holds memory of other processes: {names}; waiting", flush=True)
            told = True
        time.sleep(POLL_S)
