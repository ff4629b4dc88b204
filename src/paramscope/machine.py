"""What the machine has, told without loading torch."""

import os
import platform
import shutil
import subprocess

import psutil


def machine() -> dict[str, object]:
    """Cores, memory in bytes, processor kind and GPUs (by nvidia-smi, where it is)."""
    return {
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "platform": platform.platform(),
        "gpus": gpus(),
    }


def gpus() -> list[str]:
    """Names of the NVIDIA GPUs that this machine's driver lists; empty where there is none."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    return listed.stdout.split("\n")[:-1] if listed.returncode == 0 else []
