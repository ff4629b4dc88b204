"""Main memory of this machine, and the limits on it; told without loading torch.

Limits of a container are read where the kernel tells them: each control group (cgroup) from
the process's own up to the root of what is mounted, since the least on the path binds
(Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst). `memory.high` counts
as a limit: above it the kernel slows a process down until it has given memory back. What a
group uses counts without its inactive file pages, which the kernel drops first.

Of RLIMIT_DATA and RLIMIT_AS (`ulimit -d`, `-v`) the soft values stand, which a stage inherits.
RLIMIT_AS counts mapped files and reserved addresses too, so it leaves less than it says.
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

from paramscope.planner.known_devices import Device, Kind

# Version 1 has no word for "no limit": it tells LONG_MAX, rounded down to whole pages (of 64 KiB
# at most).
NO_LIMIT_BYTES = 2**63 - 2**16
ROOT = Path("/")


@dataclass(frozen=True)
class Limit:
    """A limit on main memory.

    Attributes:
        bytes: what it is.
        room_bytes: what is left under it; None where what is used is not told.
        source: the file, or the resource, that sets it.
    """

    bytes: int
    room_bytes: int | None
    source: str


@dataclass(frozen=True)
class LocalDevice:
    """Main memory or a GPU of this machine.

    Attributes:
        name: cpu or cuda:N.
        kind: whose rules it has.
        title: what it is.
        total_bytes: what a process can have at most, limits apart; None where not told.
        available_bytes: what is free now, under every limit; None where not told.
        limits: those on main memory, the least first, also those above the total.
        capability: major number of a GPU's compute capability.
        notes: what to know of it.
    """

    name: str
    kind: Kind
    title: str
    total_bytes: int | None
    available_bytes: int | None
    limits: tuple[Limit, ...] = ()
    capability: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def limit(self) -> Limit | None:
        """The limit that binds: the least one, where that is under the total."""
        least = self.limits[0] if self.limits else None
        if least is None or self.total_bytes is None or least.bytes < self.total_bytes:
            return least
        return None

    @property
    def device(self) -> Device | None:
        """What is free here now, as a device to plan for; None where that is not told."""
        if self.available_bytes is None:
            return None
        return Device(
            self.name,
            self.kind,
            self.available_bytes,
            self.title,
            "free on this machine now, by `paramscope device`",
            capability=self.capability,
        )


def under_wsl(root: Path = ROOT) -> bool:
    """Whether the kernel is the one that Windows runs Linux by."""
    return "microsoft" in _text(root / "proc/version").lower()


def main_memory(root: Path = ROOT) -> LocalDevice:
    """Main memory: its total, the limits on it, and what is free under all of them."""
    total, available = _memory(root)
    groups, unread = cgroup_limits(root)
    limits = sorted([*groups, *resource_limits(root)], key=lambda limit: limit.bytes)
    rooms = [limit.bytes if limit.room_bytes is None else limit.room_bytes for limit in limits]
    wsl = under_wsl(root)
    notes = [f"{path} can't be read: a limit that it sets is not known" for path in unread]
    if wsl:
        notes.append("what does not fit goes to WSL's swap without an error")
    return LocalDevice(
        "cpu",
        "wsl" if wsl else "cpu",
        "main memory",
        total,
        max(0, min([available, *rooms])),
        tuple(limits),
        notes=tuple(notes),
    )


def cgroup_limits(root: Path = ROOT) -> tuple[list[Limit], list[str]]:
    """Limits of the process's control groups, and files of them that can't be read."""
    limits: list[Limit] = []
    unread: list[str] = []
    for version, mount, group in _memory_groups(root):
        folders = [mount / part for part in (group, *group.parents)]
        names = ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",)
        for folder in folders:
            for name in names:
                source = f"/{(folder / name).relative_to(root)}"
                try:
                    limit = _number(folder / name)
                except (OSError, ValueError):
                    unread.append(source)
                    continue
                if limit is not None:
                    limits.append(Limit(limit, _room(folder, version, limit), source))
        if version == 1:
            limits += _limit_above(folders[0], root, limits)
    return limits, unread


def resource_limits(root: Path = ROOT) -> list[Limit]:
    """Soft limits on a process's data and address space; none where proc does not tell them."""
    limits = []
    names = {
        "Max data size": "RLIMIT_DATA (ulimit -d)",
        "Max address space": "RLIMIT_AS (ulimit -v)",
    }
    for line in _text(root / "proc/self/limits").splitlines():
        for title, name in names.items():
            soft = line.removeprefix(title).split()[:1]
            if line.startswith(title) and soft and soft[0].isdigit():
                limits.append(Limit(int(soft[0]), int(soft[0]), name))
    return limits


def _memory(root: Path) -> tuple[int, int]:
    """Total and available bytes of main memory: the kernel's, or psutil's where it has no proc."""
    told = {
        name: int(value.split()[0]) * 1024
        for name, _, value in (line.partition(":") for line in _lines(root / "proc/meminfo"))
        if name in ("MemTotal", "MemAvailable")
    }
    if len(told) == 2:
        return told["MemTotal"], told["MemAvailable"]
    memory = psutil.virtual_memory()
    return int(memory.total), int(memory.available)


def _memory_groups(root: Path) -> list[tuple[int, Path, PurePosixPath]]:
    """Version, mounted folder and group within it, of each hierarchy that counts memory."""
    mounts: dict[int, tuple[str, str]] = {}
    for line in _lines(root / "proc/self/mountinfo"):
        fields, _, rest = line.partition(" - ")
        kind, _, options = [*rest.split(" ", 2), "", ""][:3]
        top, point = [*fields.split(" "), "", "", "", "", ""][3:5]
        if kind == "cgroup2":
            mounts.setdefault(2, (top, point))
        elif kind == "cgroup" and "memory" in options.split(","):
            mounts.setdefault(1, (top, point))
    mounts = {1: ("/", "/sys/fs/cgroup/memory"), 2: ("/", "/sys/fs/cgroup")} | mounts
    groups = []
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        version = 2 if number == "0" and not controllers else 1
        if version == 2 or "memory" in controllers.split(","):
            top, point = mounts[version]
            groups.append((version, root / point.lstrip("/"), _within(path, top)))
    return groups


def _within(path: str, top: str) -> PurePosixPath:
    """A group's path below the mount, whose own group is `top`; the mount where it lies outside."""
    group = PurePosixPath(path)
    if ".." in group.parts or not group.is_relative_to(top):
        return PurePosixPath()
    return group.relative_to(top)


def _room(folder: Path, version: int, limit: int) -> int | None:
    """Bytes left under a limit: used ones count, but not inactive pages of files."""
    names = {
        1: ("memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.current", "inactive_file"),
    }
    file, droppable = names[version]
    try:
        used = _number(folder / file)
    except (OSError, ValueError):
        used = None
    if used is None:
        return None
    return max(0, limit - max(0, used - _statistic(folder, droppable)))


def _limit_above(folder: Path, root: Path, limits: list[Limit]) -> list[Limit]:
    """The least limit on version 1's whole path, where a group outside the mount sets it."""
    least = _statistic(folder, "hierarchical_memory_limit")
    if not 0 < least < min([NO_LIMIT_BYTES, *(limit.bytes for limit in limits)]):
        return []
    source = f"/{(folder / 'memory.stat').relative_to(root)}, hierarchical_memory_limit"
    return [Limit(least, _room(folder, 1, least), source)]


def _statistic(folder: Path, name: str) -> int:
    """A value of a group's memory.stat; 0 where it is not told."""
    for line in _lines(folder / "memory.stat"):
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return 0


def _number(path: Path) -> int | None:
    """The number in a file; None where there is no file, or it says that there is no limit.

    Raises:
        OSError: the file is there and can't be read.
        ValueError: something else is in it.
    """
    try:
        text = path.read_text(encoding="ascii").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    number = NO_LIMIT_BYTES if text == "max" else int(text)
    return number if number < NO_LIMIT_BYTES else None


def _text(path: Path) -> str:
    """What is in a file; nothing where it can't be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _lines(path: Path) -> list[str]:
    return _text(path).splitlines()
