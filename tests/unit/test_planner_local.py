"""What this machine has, read from trees of proc and sys that are made up, and from the real one.

Oracles: psutil on the real machine, and the least of the limits that a tree was made with.
"""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from paramscope.planner import local
from paramscope.planner.known_devices import usable_bytes

GIB = 2**30
TOTAL, AVAILABLE = 16 * GIB, 12 * GIB
NONE_V1 = "9223372036854771712"
MOUNT_V2 = "30 23 0:26 {top} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
MOUNT_V1 = "35 31 0:32 {top} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"


class Tree:
    """A root folder with 16 GiB of memory, 12 available, and no limit."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/version", "Linux version 6.8.0-generic (gcc 13.2.0)")
        self.write(
            "proc/meminfo",
            f"MemTotal: {TOTAL // 1024} kB\nMemFree: 5 kB\nMemAvailable: {AVAILABLE // 1024} kB\n",
        )
        self.limits("unlimited", "unlimited")

    def write(self, path: str, text: object) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def limits(self, data: object, space: object) -> None:
        self.write(
            "proc/self/limits",
            f"Limit                     Soft Limit           Hard Limit           Units\n"
            f"Max data size             {data}           unlimited            bytes\n"
            f"Max stack size            8388608              unlimited            bytes\n"
            f"Max address space         {space}            unlimited            bytes",
        )

    def v2(self, group: str, top: str = "/") -> None:
        self.write("proc/self/cgroup", f"0::{group}")
        self.write("proc/self/mountinfo", MOUNT_V2.format(top=top))

    def v1(self, group: str, top: str = "/") -> None:
        self.write("proc/self/cgroup", f"9:cpu,cpuacct:{group}\n4:memory:{group}\n0::/")
        self.write("proc/self/mountinfo", MOUNT_V1.format(top=top))

    def memory(self) -> local.LocalDevice:
        return local.main_memory(self.root)


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def test_the_real_machine_is_psutils():
    told, memory = local.main_memory(), psutil.virtual_memory()
    assert told.total_bytes == memory.total
    # Other processes come and go between the two readings, by less than a tenth of the machine.
    if told.limit is None:
        assert told.available_bytes == pytest.approx(memory.available, abs=0.1 * memory.total)
    assert told.available_bytes <= told.total_bytes
    assert told.device is not None
    assert 0 < usable_bytes(told.device) < told.total_bytes


def test_no_limit_leaves_what_the_kernel_tells(tree):
    tree.v2("/")
    told = tree.memory()
    assert (told.name, told.kind, told.limits, told.limit) == ("cpu", "cpu", (), None)
    assert (told.total_bytes, told.available_bytes) == (TOTAL, AVAILABLE)
    assert told.notes == ()


def test_no_proc_is_psutils_and_no_limit(tmp_path):
    told = local.main_memory(tmp_path)
    assert told.total_bytes == psutil.virtual_memory().total
    assert told.limits == ()


def test_a_containers_own_limit(tree):
    """With a namespace of its own a container sees its group as the root of the mount."""
    tree.v2("/")
    tree.write("sys/fs/cgroup/memory.max", 8 * GIB)
    tree.write("sys/fs/cgroup/memory.current", 3 * GIB)
    tree.write("sys/fs/cgroup/memory.stat", f"anon 1\ninactive_file {1 * GIB}\nactive_file 7")
    told = tree.memory()
    assert told.limit == local.Limit(8 * GIB, 6 * GIB, "/sys/fs/cgroup/memory.max")
    assert told.available_bytes == 6 * GIB  # 8 less the 3 in use, of which 1 can be dropped
    assert told.device.memory_bytes == 6 * GIB


def test_the_least_limit_on_the_path_binds_and_so_does_the_least_room(tree):
    tree.v2("/slice/job.scope/step")
    base = "sys/fs/cgroup"
    tree.write(f"{base}/slice/memory.max", 10 * GIB)
    tree.write(f"{base}/slice/memory.current", 8 * GIB)  # others in the slice use it
    tree.write(f"{base}/slice/job.scope/memory.max", 6 * GIB)
    tree.write(f"{base}/slice/job.scope/memory.current", 1 * GIB)
    tree.write(f"{base}/slice/job.scope/step/memory.max", "max")
    told = tree.memory()
    assert told.limit.bytes == 6 * GIB
    assert told.limit.source == "/sys/fs/cgroup/slice/job.scope/memory.max"
    assert told.available_bytes == 2 * GIB  # of the slice


def test_the_level_where_the_kernel_slows_a_process_is_a_limit(tree):
    tree.v2("/job")
    tree.write("sys/fs/cgroup/job/memory.max", 8 * GIB)
    tree.write("sys/fs/cgroup/job/memory.high", 4 * GIB)
    told = tree.memory()
    assert told.limit == local.Limit(4 * GIB, None, "/sys/fs/cgroup/job/memory.high")
    assert [limit.bytes for limit in told.limits] == [4 * GIB, 8 * GIB]


def test_version_1(tree):
    tree.v1("/docker/abc")
    base = "sys/fs/cgroup/memory"
    tree.write(f"{base}/memory.limit_in_bytes", NONE_V1)
    tree.write(f"{base}/docker/abc/memory.limit_in_bytes", 4 * GIB)
    tree.write(f"{base}/docker/abc/memory.usage_in_bytes", 2 * GIB)
    tree.write(f"{base}/docker/abc/memory.stat", f"inactive_file 7\ntotal_inactive_file {GIB}")
    told = tree.memory()
    source = "/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes"
    assert told.limits == (local.Limit(4 * GIB, 3 * GIB, source),)
    assert told.available_bytes == 3 * GIB


def test_version_1_in_a_container_without_a_namespace(tree):
    """The group is told as the host sees it; the mount shows the container's own part."""
    tree.v1("/docker/abc", top="/docker/abc")
    tree.write("sys/fs/cgroup/memory/memory.limit_in_bytes", 4 * GIB)
    assert tree.memory().limit.source == "/sys/fs/cgroup/memory/memory.limit_in_bytes"


def test_version_1_tells_of_a_limit_above_what_is_mounted(tree):
    tree.v1("/pod/abc", top="/pod/abc")
    tree.write("sys/fs/cgroup/memory/memory.limit_in_bytes", NONE_V1)
    tree.write("sys/fs/cgroup/memory/memory.usage_in_bytes", 1 * GIB)
    tree.write("sys/fs/cgroup/memory/memory.stat", f"hierarchical_memory_limit {5 * GIB}")
    told = tree.memory()
    assert told.limit.bytes == 5 * GIB
    assert told.limit.source.endswith("hierarchical_memory_limit")
    assert told.available_bytes == 4 * GIB
    tree.write("sys/fs/cgroup/memory/memory.limit_in_bytes", 5 * GIB)
    assert len(tree.memory().limits) == 1  # told once


def test_both_versions_side_by_side(tree):
    tree.v1("/job")
    mounts = MOUNT_V1.format(top="/") + MOUNT_V2.format(top="/").replace(
        "/sys/fs/cgroup ", "/sys/fs/cgroup/unified "
    )
    tree.write("proc/self/mountinfo", mounts)
    tree.write("sys/fs/cgroup/memory/job/memory.limit_in_bytes", 7 * GIB)
    assert tree.memory().limit.bytes == 7 * GIB


@pytest.mark.parametrize("group", ["/../..", "/elsewhere"])
def test_a_group_outside_the_mount_is_the_mount(tree, group):
    tree.v2(group, top="/mine")
    tree.write("sys/fs/cgroup/memory.max", 4 * GIB)
    assert tree.memory().limit.bytes == 4 * GIB


def test_mounts_that_are_not_told_are_where_they_usually_are(tree):
    tree.write("proc/self/cgroup", "0::/job")
    tree.write("sys/fs/cgroup/job/memory.max", 4 * GIB)
    assert tree.memory().limit.bytes == 4 * GIB


def test_a_limit_above_the_memory_does_not_bind(tree):
    tree.v2("/")
    tree.write("sys/fs/cgroup/memory.max", 64 * GIB)
    tree.write("sys/fs/cgroup/memory.current", 1 * GIB)
    told = tree.memory()
    assert told.limit is None
    assert [limit.bytes for limit in told.limits] == [64 * GIB]
    assert told.available_bytes == AVAILABLE


def test_a_limit_that_is_used_up_leaves_nothing(tree):
    tree.v2("/")
    tree.write("sys/fs/cgroup/memory.max", 1 * GIB)
    tree.write("sys/fs/cgroup/memory.current", 1 * GIB + 4096)
    assert tree.memory().available_bytes == 0
    assert usable_bytes(tree.memory().device) == 0


@pytest.mark.parametrize("broken", ["folder", "words", "empty"])
def test_a_limit_that_cant_be_read_is_told(tree, broken):
    tree.v2("/job")
    tree.write("sys/fs/cgroup/memory.max", 8 * GIB)
    tree.write("sys/fs/cgroup/memory.current", 0)
    file = tree.root / "sys/fs/cgroup/job/memory.max"
    if broken == "folder":
        file.mkdir(parents=True)  # what root can't read either
    else:
        tree.write("sys/fs/cgroup/job/memory.max", "much" if broken == "words" else "")
    told = tree.memory()
    assert told.limit.bytes == 8 * GIB
    assert told.notes == (
        "/sys/fs/cgroup/job/memory.max can't be read: a limit that it sets is not known",
    )


@pytest.mark.parametrize("broken", [True, False])
def test_a_limit_whose_use_is_not_told_leaves_no_more_than_itself(tree, broken):
    tree.v2("/")
    tree.write("sys/fs/cgroup/memory.max", 8 * GIB)
    if broken:
        (tree.root / "sys/fs/cgroup/memory.current").mkdir()
    told = tree.memory()
    assert told.limit.room_bytes is None
    assert told.available_bytes == 8 * GIB  # not the 12 that the machine has


def test_the_processs_own_limits(tree):
    tree.v2("/")
    tree.limits(5 * GIB, "unlimited")
    assert tree.memory().limits == (
        local.Limit(5 * GIB, 5 * GIB, "RLIMIT_DATA (ulimit -d)"),
    )  # fmt: skip
    tree.limits(5 * GIB, 3 * GIB)
    assert tree.memory().limit.source == "RLIMIT_AS (ulimit -v)"
    assert tree.memory().available_bytes == 3 * GIB


@pytest.mark.parametrize(
    ("version", "wsl"),
    [
        ("Linux version 5.15.153.1-microsoft-standard-WSL2 (root@buildkitsandbox)", True),
        ("Linux version 4.4.0-19041-Microsoft (Microsoft@Microsoft.com)", True),
        ("Linux version 6.8.0-45-generic (buildd@lcy02-amd64-115)", False),
    ],
)
def test_wsl_is_told_by_its_kernel(tree, version, wsl):
    tree.write("proc/version", version)
    told = tree.memory()
    assert local.under_wsl(tree.root) is wsl
    assert told.kind == ("wsl" if wsl else "cpu")
    assert any("swap" in note for note in told.notes) is wsl
    margin = told.available_bytes - usable_bytes(told.device)
    assert margin == pytest.approx((0.25 if wsl else 0.10) * AVAILABLE, abs=1)  # rounded to bytes


@pytest.fixture
def two_gpus(monkeypatch):
    """Two GPUs, of which the driver's answer and CUDA's own can be set."""
    answers = SimpleNamespace(nvml={"free_bytes": 70 * GIB}, info=lambda: (60 * GIB, 80 * GIB))
    told = SimpleNamespace(name="NVIDIA H100", total_memory=79 * GIB, major=9, uuid="0-1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: told)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: answers.info())
    monkeypatch.setattr(local, "gpu_memory", lambda device: answers.nvml)
    return answers


def test_gpus_are_what_their_driver_tells(tree, two_gpus):
    memory, first, second = local.local_devices(tree.root)
    assert [memory.name, first.name, second.name] == ["cpu", "cuda:0", "cuda:1"]
    assert (first.total_bytes, first.available_bytes) == (79 * GIB, 70 * GIB)
    assert (first.kind, first.title, first.capability) == ("cuda", "NVIDIA H100", 9)
    assert (first.limit, first.notes) == (None, ())
    assert first.device.capability == 9
    assert usable_bytes(first.device) == pytest.approx(0.95 * 70 * GIB, abs=1)


def test_without_nvml_cuda_is_asked(two_gpus):
    two_gpus.nvml = {"free_bytes": None, "total_bytes": None}
    assert local.gpus()[0].available_bytes == 60 * GIB


def test_what_neither_tells_is_null(two_gpus):
    def refuse():
        raise RuntimeError("CUDA error: out of memory")

    two_gpus.nvml, two_gpus.info = {"free_bytes": None}, refuse
    told = local.gpus()[0]
    assert told.available_bytes is None
    assert told.device is None
    assert told.total_bytes == 79 * GIB


def test_a_gpu_under_wsl_says_that_it_spills(tree, two_gpus):
    tree.write("proc/version", "Linux version 5.15.153.1-microsoft-standard-WSL2")
    assert "without an error" in local.local_devices(tree.root)[1].notes[0]


def test_no_gpu_is_none(monkeypatch, tree):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert local.gpus() == ()
    assert len(local.local_devices(tree.root)) == 1
