"""Writing a file or folder so that its name never stands for half of it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; rename it to `path` when the block succeeds.

    What the block wrote is removed when it raises, so a failed stage leaves no output. The
    yielded name ends in `path`'s own suffix, which some writers go by.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_abandoned(path)
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        yield partial
        if path.is_dir() and partial.is_dir():
            shutil.rmtree(path)
        partial.replace(path)
    except BaseException:
        _remove(partial)
        raise


def _clear_abandoned(path: Path) -> None:
    """Remove what a killed process left half-written for the same name."""
    for partial in path.parent.glob(f".partial-*-{path.name}"):
        owner = partial.name.split("-")[1]
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
