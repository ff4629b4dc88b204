"""What the driver is asked of a GPU. It is stood in for: no GPU is needed, and none is touched."""

import os
import sys
from types import SimpleNamespace

import pytest
import torch

from paramscope import nvml
from paramscope.errors import DeviceError

GPU = torch.device("cuda", 0)


class NVMLError(Exception):
    """The driver's own."""


@pytest.fixture
def driver(monkeypatch):
    """A driver whose answers a test sets: memory (or None: not told), processes by pid."""
    answers = SimpleNamespace(memory=(80, 30, 50), processes={}, looked=0)

    def memory_of(handle):
        if answers.memory is None:
            raise NVMLError("not supported")
        total, used, free = answers.memory
        return SimpleNamespace(total=total, used=used, free=free)

    def processes_of(handle):
        answers.looked += 1
        held = answers.processes() if callable(answers.processes) else answers.processes
        return [SimpleNamespace(pid=p, usedGpuMemory=m) for p, m in held.items()]

    library = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetMemoryInfo=memory_of,
        nvmlDeviceGetComputeRunningProcesses=processes_of,
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="0-1")
    )
    return answers


def test_a_cpu_has_none():
    assert nvml.gpu_memory(torch.device("cpu")) is None
    nvml.require_idle(torch.device("cpu"), wait=False)


def test_what_the_driver_tells_is_told(driver):
    driver.processes = {7: 20, 8: None}
    assert nvml.gpu_memory(GPU) == {
        "total_bytes": 80, "used_bytes": 30, "free_bytes": 50, "processes": {"7": 20, "8": None},
    }  # fmt: skip


def test_what_it_does_not_tell_is_null(driver, monkeypatch):
    driver.memory = None
    assert set(nvml.gpu_memory(GPU).values()) == {None}
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert set(nvml.gpu_memory(GPU).values()) == {None}
    nvml.require_idle(GPU, wait=False)  # nothing says that it is not


def test_a_gpu_that_another_process_is_on_is_refused(driver):
    driver.processes = {os.getpid(): 5}
    nvml.require_idle(GPU, wait=False)  # its own memory is no other's
    driver.processes = {os.getpid(): 5, 999_999: 3_000_000, 999_998: None}
    with pytest.raises(DeviceError, match=r"999999 \(3 MB\), 999998 \(unknown\).*--wait"):
        nvml.require_idle(GPU, wait=False)


def test_it_is_waited_for(driver, monkeypatch, capsys):
    monkeypatch.setattr(nvml, "POLL_S", 0.0)
    driver.processes = lambda: {999_999: 3_000_000} if driver.looked < 4 else {}
    nvml.require_idle(GPU, wait=True)
    assert driver.looked == 4
    assert capsys.readouterr().out.count("waiting") == 1
