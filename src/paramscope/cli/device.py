"""The command that tells what this machine has, and what known devices can be planned with."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from paramscope.units import amount

if TYPE_CHECKING:
    from paramscope.planner.known_devices import Device
    from paramscope.planner.local import LocalDevice


def device(
    as_json: Annotated[bool, Option("--json", help="Print the same as JSON, in bytes.")] = False,
    root: Annotated[
        Path, Option(hidden=True, help="Folder that holds proc and sys; this machine's is /.")
    ] = Path("/"),
) -> None:
    """Print this machine's memory, the limits on it and its GPUs, and known devices' memory.

    Usable is what a plan may use: what is free, less a margin that the kind of device has.
    """
    import json

    from paramscope.machine import gpus
    from paramscope.planner.known_devices import KNOWN, MARGINS
    from paramscope.planner.local import local_devices

    here = local_devices(root)
    unused = [] if len(here) > 1 else gpus()
    record: dict[str, Any] = {
        "local": [local_record(place) for place in here],
        "gpus_without_cuda": unused,
        "known": [known_record(known) for known in KNOWN],
        "margins": {kind: vars(margin) for kind, margin in MARGINS.items()},
    }
    if as_json:
        print(json.dumps(record, indent=2))
        return
    print("this machine")
    for line in (line for row in record["local"] for line in local_lines(row)):
        print(f"  {line}")
    for title in unused:
        print(f"  {title}: torch can't use it; install the environment with CUDA")
    print("known devices")
    for row in record["known"]:
        print(f"  {row['name']:<11}{usable(row)}; {row['note']}")
    print("margins")
    for kind, margin in MARGINS.items():
        print(f"  {kind:<11}{margin.fraction:.0%}: {margin.reason}")


def local_record(place: "LocalDevice") -> dict[str, Any]:
    """What this machine has of one device, for JSON; bytes, null where not told."""
    from dataclasses import asdict

    from paramscope.planner.known_devices import margin_bytes, usable_bytes

    free, limit = place.device, place.limit
    return asdict(place) | {
        "limit": None if limit is None else asdict(limit),
        "margin_bytes": None if free is None else margin_bytes(free),
        "usable_bytes": None if free is None else usable_bytes(free),
    }


def known_record(known: "Device") -> dict[str, Any]:
    """A known device with what can be planned with on it, for JSON."""
    from dataclasses import asdict

    from paramscope.planner.known_devices import margin_bytes, usable_bytes

    return asdict(known) | {
        "margin_bytes": margin_bytes(known),
        "usable_bytes": usable_bytes(known),
    }


def local_lines(row: dict[str, Any]) -> list[str]:
    """The lines that tell of one device of this machine."""
    kind = " under WSL" if row["kind"] == "wsl" else ""
    lines = [
        f"{row['name']:<11}{row['title']}{kind}: {amount(row['total_bytes'])}, "
        f"{amount(row['available_bytes'])} free, {amount(row['usable_bytes'])} usable"
    ]
    limit = row["limit"]
    if limit is not None:
        lines.append(f"{'':<11}limited to {amount(limit['bytes'])} by {limit['source']}")
    elif row["kind"] != "cuda":
        lines.append(f"{'':<11}no limit of a container or a process on it")
    return lines + [f"{'':<11}note: {note}" for note in row["notes"]]


def usable(row: dict[str, Any]) -> str:
    """What a known device has, and how much of that is usable."""
    held = f", {amount(row['held_bytes'])} held by the system" if row["held_bytes"] else ""
    return f"{amount(row['memory_bytes'])}{held}, {amount(row['usable_bytes'])} usable"
