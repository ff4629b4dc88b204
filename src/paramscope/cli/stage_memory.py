"""The command that tells what memory the stages of a run take, and whether they fit."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

if TYPE_CHECKING:
    from paramscope.config.model import Config
    from paramscope.planner.known_devices import Device
    from paramscope.planner.needs import Need
    from paramscope.planner.stage_advice import Change, Room

DELAY_S = 5  # until progress is shown


def stage_memory(
    config: Annotated[
        Path, Argument(help="The run's configuration in YAML; - reads it from stdin, in JSON.")
    ],
    rule: Annotated[
        list[str] | None, Option(help="Rule to plan for; repeat for more. Without it, all.")
    ] = None,
) -> None:
    """Print as JSON what each stage that takes a model needs: in 10⁶ bytes, and in bytes.

    For what does not fit memory.device it tells which values of the configuration would make it
    fit. No weights are read and nothing is run.
    """
    import json
    import os
    import sys

    os.environ["TQDM_DISABLE"] = "1"  # the stages' own bars: their work is not done here
    from tqdm import tqdm

    from paramscope.config.load import read, validate_mixed
    from paramscope.errors import RequestError
    from paramscope.planner.known_devices import usable_bytes
    from paramscope.planner.needs import Planner, process_bytes
    from paramscope.planner.stage_advice import Room, StageAdviser
    from paramscope.planner.stages.table import STAGES, stages_of

    unknown = [name for name in rule or () if name not in STAGES]
    if unknown:
        raise RequestError(f"rule '{unknown[0]}' takes no model; planned are {', '.join(STAGES)}")
    asked = validate_mixed(json.load(sys.stdin) if str(config) == "-" else read(config))
    place, memory = computing(asked)
    room = Room(usable_bytes(place), None if memory is None else usable_bytes(memory))
    process = process_bytes()

    def planner(changed: "Config") -> Planner:
        return Planner(changed, place, process)

    own, adviser = planner(asked), StageAdviser(asked, room, planner)
    told: dict[str, Any] = {}
    stages = stages_of(asked, rule or STAGES).items()
    bar = tqdm(stages, "planning memory", unit="stage", delay=DELAY_S, disable=False, leave=False)
    for name, stage in bar:
        need = own.need(stage)
        fits = room.holds(need) or not stage.binding
        change = None if fits else adviser.change(name)
        told[name] = record(need, stage.binding, fits, change)
        if not fits:
            told[name]["advice"] = advice(name, need, place, room, stage.lowered_by, change)
    print(json.dumps({"device": vars(place), "room": vars(room), "stages": told}, indent=2))


def computing(config: "Config") -> "tuple[Device, Device | None]":
    """What the stages are planned for: what computes, and main memory beside it where known.

    Raises:
        DeviceError: this machine does not tell its memory, or has no such GPU.
    """
    from paramscope.errors import DeviceError
    from paramscope.planner.known_devices import known_device
    from paramscope.planner.local import local_devices

    if config.memory.device != "local":
        return known_device(config.memory.device), None
    main, *gpus = local_devices()
    if main.device is None:
        raise DeviceError("this machine does not tell its memory; name a device in memory.device")
    if config.device == "cpu" or (config.device == "auto" and not gpus):
        return main.device, None
    index = int(config.device.partition(":")[2] or 0)
    if index >= len(gpus):
        raise DeviceError(
            f"device '{config.device}' is not here; name the one to plan for in memory.device"
        )
    found = gpus[index].device
    if found is None:
        raise DeviceError(
            f"{gpus[index].title} does not tell its memory; name a device in memory.device"
        )
    return found, main.device


def record(need: "Need", binding: bool, fits: bool, change: "Change | None") -> dict[str, Any]:
    """A stage's part of what is printed."""
    return {
        "mem_mb": need.mem_mb,
        "device_bytes": need.device_bytes,
        "memory_bytes": need.memory_bytes,
        "binding": binding,
        "fits": fits,
        "change": None if change is None else change.values,
        "advice": None,
    }


def advice(
    rule: str,
    need: "Need",
    place: "Device",
    room: "Room",
    keys: tuple[str, ...],
    change: "Change | None",
) -> str:
    """In a line: what the stage takes, what there is, and what would make it fit."""
    from paramscope.units import amount

    short = need.device_bytes is not None and need.device_bytes > room.device_bytes
    takes = need.device_bytes if short else need.memory_bytes
    beside = room.memory_bytes is not None and not short
    there = room.memory_bytes if beside else room.device_bytes
    where = "main memory" if beside else place.name
    doing = f" ({need.doing})" if need.doing else ""
    told = f"{rule}{doing} takes {amount(takes)}, and {where} has {amount(there)} to use"
    if change is None:
        tried = f"no value of {', '.join(keys)} makes it fit" if keys else "a smaller model would"
        return f"{told}; {tried}"
    values = ", ".join(f"{key}: {str(value).lower()}" for key, value in change.values.items())
    after = change.need.device_bytes if short else change.need.memory_bytes
    return f"{told}; {values} would fit, at {amount(after)}"
