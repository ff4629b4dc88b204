"""A benchmark's processes: how each is run, and what its results say of where it ran."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Threads that wait in a loop took four times as long where other work shared the cores.
SLEEPING = {"OMP_WAIT_POLICY": "PASSIVE"}


def run_job(module: str, job: Any, name: str) -> dict:
    """Run one process of a benchmark to its end and read what it measured.

    Args:
        module: started with `--job` and a JSON file of the job, it writes the job's result.
        job: a dataclass of plain values; its `threads` are CPU threads within operations, its
            `result` is the file for what was measured, which is set here.
        name: of the job, for the user.

    Raises:
        SystemExit: the process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "job.json"
        job = replace(job, result=str(Path(folder) / "result.json"))
        told.write_text(json.dumps(asdict(job)))
        threads = str(job.threads)
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        alike = {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "TQDM_DISABLE": "1",
        } | SLEEPING
        environment = os.environ | alike | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", module, "--job", str(told)]
        done = subprocess.run(command, env=environment, check=False)
        if done.returncode:
            sys.exit(f"{name} ended with {done.returncode}")
        return json.loads(Path(job.result).read_text())


def processor() -> str:
    """The machine's processors in words."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} × {names[0]}" if names else f"{os.cpu_count()} processors"


def commit() -> str | None:
    """The commit that was measured, with "-dirty" where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return told.stdout.strip() or None
