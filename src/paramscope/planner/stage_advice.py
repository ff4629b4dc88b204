"""Whether a run's stages fit, and by which values of the configuration those would that don't."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from paramscope.config.load import merge, validate
from paramscope.config.model import Config
from paramscope.errors import ConfigError, RequestError
from paramscope.planner.needs import Need, Planner
from paramscope.planner.stages.table import STAGES

GRAPHS = ("whole", "checkpointed", "layerwise")


@dataclass(frozen=True)
class Room:
    """What there is to use, in bytes.

    Attributes:
        device_bytes: of what computes.
        memory_bytes: of main memory beside a GPU; None where that is not known.
    """

    device_bytes: int
    memory_bytes: int | None = None

    def holds(self, need: Need) -> bool:
        """Whether a stage fits."""
        if need.device_bytes is None:
            here = self.device_bytes if self.memory_bytes is None else self.memory_bytes
            return need.memory_bytes <= here
        enough = self.memory_bytes is None or need.memory_bytes <= self.memory_bytes
        return enough and need.device_bytes <= self.device_bytes


@dataclass(frozen=True)
class Change:
    """Values of the configuration with which a stage fits.

    Attributes:
        values: by dotted key.
        need: what the stage takes with them.
    """

    values: dict[str, Any]
    need: Need


class StageAdviser:
    """Plans stages of a configuration and of what it could be changed to.

    Args:
        config: the run's.
        room: what there is.
        planner: makes the planner of a configuration.
    """

    def __init__(self, config: Config, room: Room, planner: Callable[[Config], Planner]) -> None:
        self.config, self.room = config, room
        self._planner = planner

    def change(self, rule: str) -> Change | None:
        """The first change that makes a rule's stage fit; None if none here does.

        Each key is tried on its own, in the stage's order, and no further than it takes; then
        all of them, one upon the other.
        """
        stage = STAGES[rule]
        keys = stage(self.config).lowered_by
        if self.room.memory_bytes is None:  # nothing to move to main memory
            keys = tuple(key for key in keys if not key.endswith("basis"))
        for key in keys:
            found = self._mildest(rule, self.config, key, {})
            if found is not None:
                return found
        config, so_far = self.config, dict[str, Any]()
        for key in keys:
            values = lower_values(config, key)
            changed = _changed(config, key, values[-1]) if values else None
            if changed is None:
                continue
            found = self._mildest(rule, config, key, so_far)
            if found is not None:
                return found
            config, so_far = changed, so_far | {key: values[-1]}
        return None

    def _mildest(
        self, rule: str, config: Config, key: str, so_far: dict[str, Any]
    ) -> Change | None:
        """The mildest value of a key that makes the stage fit: each takes less than the last."""
        values = lower_values(config, key)
        low, high = 0, len(values) - 1
        found: Change | None = None
        place = high  # the strongest tells whether there is any
        while low <= high:
            need = self._need(rule, _changed(config, key, values[place]))
            if need is not None and self.room.holds(need):
                found = Change(so_far | {key: values[place]}, need)
                high = place - 1
            elif found is None:
                return None
            else:
                low = place + 1
            place = (low + high) // 2
        return found

    def _need(self, rule: str, config: Config | None) -> Need | None:
        if config is None:
            return None
        try:
            return self._planner(config).need(STAGES[rule](config))
        except RequestError:  # the strategy can't do what the stage could
            return None


def lower_values(config: Config, key: str) -> list[Any]:
    """Values of a key that take less memory than the configuration's, the least change first."""
    value = _value(config, key)
    name = key.rpartition(".")[2]
    if name == "graph":
        if config.curvature.method != "ggn" and key == "curvature.graph":
            return []
        return list(GRAPHS[GRAPHS.index(value) + 1 :])
    if name == "dtype":
        return [] if value == "bfloat16" else ["bfloat16"]
    if name == "basis":
        return [] if value == "cpu" else ["cpu"]
    if name == "checkpoint_activations":
        return [] if value else [True]
    if name == "accumulation":
        return [n for n in _doubled(value) if n <= config.compression.finetune.batch]
    if name == "samples" and not value:
        value = config.corpus.documents.calibration
    least = 2 if name in ("draws", "contrast_draws") else 1  # two give a standard error
    return [n for n in _halved(value) if n >= least]


def _halved(value: int) -> Iterator[int]:
    while value > 1:
        value //= 2
        yield value


def _doubled(value: int) -> Iterator[int]:
    for _ in range(30):
        value *= 2
        yield value


def _value(config: Config, key: str) -> Any:
    found: Any = config
    for part in key.split("."):
        found = getattr(found, part)
    return found


def _changed(config: Config, key: str, value: Any) -> Config | None:
    """The configuration with another value; None where that can't be."""
    change: Any = value
    for part in reversed(key.split(".")):
        change = {part: change}
    try:
        return validate(merge(config.model_dump(mode="json"), change))
    except ConfigError:
        return None
