"""Choosing a device; GPUs are stood in for by their number and names alone."""

import subprocess
import sys
import tempfile
import threading
from types import SimpleNamespace

import pytest
import torch

from paramscope import devices
from paramscope.errors import DeviceError


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    """A machine with two GPUs as far as counting and naming them goes."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(devices, "_claims", [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    properties = {i: SimpleNamespace(uuid=f"GPU-{i}") for i in range(2)}
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties.get)
    yield
    torch.set_num_threads(1)


def test_auto_is_the_cpu_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert devices.choose_device("auto", threads=1) == torch.device("cpu")
    with pytest.raises(DeviceError, match=r"'cuda:0' is not here.*use --device auto or cpu"):
        devices.choose_device("cuda:0", threads=1)


@pytest.mark.parametrize("name", ["tpu", "mps", "cuda:x", ""])
def test_unknown_devices_are_refused(name):
    with pytest.raises(DeviceError, match="give auto, cpu, cuda or cuda:N"):
        devices.choose_device(name, threads=1)


def test_every_stage_claims_a_gpu_of_its_own(gpus):
    assert devices.choose_device("auto", threads=1) == torch.device("cuda:0")
    assert devices.choose_device("cuda", threads=1) == torch.device("cuda:1")
    assert devices.choose_device("cuda:0", threads=1) == torch.device("cuda:0")  # as told


def test_a_claim_waits_for_the_first_that_is_given_back(gpus, monkeypatch, capsys):
    for _ in range(2):
        devices.claim_gpu()
    monkeypatch.setattr(devices.time, "sleep", lambda s: threading.Event().wait(0.01))
    threading.Timer(0.1, devices._claims.pop(1).close).start()
    assert devices.claim_gpu() == torch.device("cuda:1")
    assert capsys.readouterr().out == "all 2 GPU(s) are claimed; waiting for one\n"


def test_a_killed_process_gives_its_claim_back(gpus, tmp_path):
    script = (
        "import fcntl, os, sys; file = open(sys.argv[1], 'a');"
        "fcntl.flock(file, fcntl.LOCK_EX); os.kill(os.getpid(), 9)"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "paramscope-gpu-GPU-0.lock")], check=False
    )
    assert devices.claim_gpu() == torch.device("cuda:0")
