"""The runs of a compression study by name: a folder a method and density, NAME=VALUE pairs."""

from collections.abc import Sequence
from pathlib import Path

from paramscope.errors import RequestError

PREFIX = "density-"


def run_of(folder: Path) -> tuple[str, float]:
    """Method and density of a run's folder, METHOD/density-DENSITY.

    Raises:
        RequestError: the folder is not named so.
    """
    try:
        density = float(folder.name.removeprefix(PREFIX))
    except ValueError:
        density = 0.0
    if not (folder.name.startswith(PREFIX) and folder.parent.name and 0 < density <= 1):
        raise RequestError(f"{folder}: not the folder of a run, METHOD/{PREFIX}DENSITY")
    return folder.parent.name, density


def named(pairs: Sequence[str]) -> dict[str, str]:
    """The values of NAME=VALUE by name.

    Raises:
        RequestError: a pair without name or value, or a name given twice.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if not name or not value or name in found:
            raise RequestError(f"'{pair}': give NAME=VALUE, each name once")
        found[name] = value
    return found
