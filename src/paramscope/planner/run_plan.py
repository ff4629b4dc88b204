"""The plan of a run's own stages, for who starts them: asked once, kept, and held against a device.

Torch is not loaded here. What stages need is told by `paramscope stage-memory` in a process of
its own, at most once for a configuration: the answer is kept beside the estimates, by a digest
of all that it hangs on.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from paramscope.artifacts.atomic import atomic
from paramscope.artifacts.digest import code_digest, file_digest
from paramscope.config.kinds import Checkpoint
from paramscope.config.load import validate
from paramscope.config.model import Config
from paramscope.errors import RequestError
from paramscope.machine import gpus
from paramscope.names import GpuDevice
from paramscope.planner.cache_folder import default_folder
from paramscope.planner.known_devices import Device, known_device, usable_bytes
from paramscope.planner.main_memory import main_memory
from paramscope.planner.stages.table import STAGES, stages_of

Told = Mapping[str, Any]  # of one stage, as `paramscope stage-memory` tells it
Wanted = tuple[str, str]  # a rule, and a model's name
ERROR = "paramscope: "  # how the command line begins an error


class RunPlan:
    """What the stages of a configuration need, by rule and model; asked for when needed.

    Args:
        config: the run's, checked, as plain values.
        folder: where answers are kept; by default with the estimates.
    """

    def __init__(self, config: Mapping[str, Any], folder: Path | None = None) -> None:
        self._values = dict(config)
        self._folder = (folder or default_folder()) / "stages"
        self._needs: dict[Wanted, Told | None] = {}
        self._fresh: set[Wanted] = set()
        self._unread: dict[str, RequestError] = {}  # by model

    def prepare(self, wanted: Iterable[Wanted]) -> None:
        """Find out what (rule, model) need, all that is not kept of a model in one go."""
        missing: dict[str, list[str]] = {}
        for rule, model in dict.fromkeys(wanted):
            if rule not in STAGES or (rule, model) in self._needs or model in self._unread:
                continue
            config = self._config(model)
            if rule not in stages_of(config, [rule]):
                self._needs[rule, model] = None
            elif (kept := self._read(digest(config, rule))) is not None:
                self._needs[rule, model] = kept
            else:
                missing.setdefault(model, []).append(rule)
        for model, rules in missing.items():
            self._ask(model, rules)

    def of(
        self, rule: str, model: str, others: Callable[[], Iterable[Wanted]] = tuple
    ) -> Told | None:
        """What a rule's stage needs on a model of the configuration; None where it takes none.

        What is not known yet is found out together with what `others` names.

        Raises:
            RequestError: the model's configuration can't be read; in the planner's words.
        """
        if (rule, model) not in self._needs and model not in self._unread:
            self.prepare([(rule, model), *others()])
        if model in self._unread:
            raise self._unread[model]
        return self._needs.get((rule, model))

    def refusals(self, wanted: Iterable[Wanted]) -> list[str]:
        """What of (rule, model) does not fit memory.device, a line each, with what would.

        Raises:
            RequestError: as `of`.
        """
        asked = list(dict.fromkeys(wanted))
        self.prepare(asked)
        doubtful: dict[str, list[str]] = {}
        for rule, model in asked:
            told = self.of(rule, model)
            if told is not None and not self._fits(told, model):
                doubtful.setdefault(model, []).append(rule)
        lines = []
        for model, rules in doubtful.items():
            here = self._config(model).memory.device == "local"
            stale = [rule for rule in rules if here and (rule, model) not in self._fresh]
            if stale:  # what is free has changed since the plan was kept
                self._ask(model, stale)
            lines += [
                told["advice"]
                for rule in rules
                if (told := self._needs[rule, model]) is not None and not told["fits"]
            ]
        return lines

    def _fits(self, told: Told, model: str) -> bool:
        """Whether a stage fits for certain, by what is free now."""
        config = self._config(model)
        if config.memory.device != "local":
            return bool(told["fits"])
        if on_gpu(config):
            return not told["binding"]
        fits = told["memory_bytes"] <= usable_bytes(_memory(config))
        return fits or not told["binding"]

    def _ask(self, model: str, rules: list[str]) -> None:
        config = self._config(model)
        try:
            found = ask(config, rules)
        except RequestError as error:
            self._unread[model] = error
            return
        for rule, told in found.items():
            self._needs[rule, model] = told
            self._fresh.add((rule, model))
            try:
                with atomic(self._folder / f"{digest(config, rule)}.json") as half:
                    half.write_text(json.dumps(told), encoding="utf-8")
            except OSError:
                pass  # such as no home, or no room: asked for anew next time

    def _read(self, name: str) -> Told | None:
        try:
            kept: Told = json.loads((self._folder / f"{name}.json").read_text(encoding="utf-8"))
            return kept
        except (OSError, ValueError):
            return None

    def _config(self, model: str) -> Config:
        return validate(self._values | {"model": model})


def on_gpu(config: Config) -> bool:
    """Whether stages that run a model are planned for a GPU."""
    if config.device == "auto" and config.memory.device != "local":
        return config.memory.device in get_args(GpuDevice)
    return config.device.startswith("cuda") or (config.device == "auto" and bool(_gpus()))


def shared_memory_mb(config: Config) -> int:
    """Main memory that jobs which run at once can share, in 10⁶ bytes."""
    return usable_bytes(_memory(config)) // 10**6


def _memory(config: Config) -> Device:
    """The main memory that is planned for: a device's that has no GPU, else this machine's."""
    if config.memory.device != "local" and config.memory.device not in get_args(GpuDevice):
        return known_device(config.memory.device)
    here = main_memory().device
    assert here is not None  # main memory always tells
    return here


def digest(config: Config, rule: str) -> str:
    """Of all that a rule's needs hang on, but for what a device has free."""
    model = config.models[config.model]
    parts = [
        rule,
        repr(stages_of(config, [rule])),
        repr(model),
        _architecture(model.source) if isinstance(model, Checkpoint) else "",
        config.dtype,
        config.memory.device if config.memory.device != "local" else repr(_gpus()),
        str(on_gpu(config)),
        code_digest("cli.stage_memory"),
        *(f"{name} {version(name)}" for name in ("torch", "transformers")),
    ]
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:32]


def _architecture(source: str) -> str:
    """The digest of a local model's config.json; of another its name alone."""
    path = Path(source) / "config.json"
    return file_digest(path) if path.is_file() else source


def ask(config: Config, rules: Iterable[str]) -> dict[str, Told]:
    """What `paramscope stage-memory` tells of some rules' stages; its progress goes on to stderr.

    Raises:
        RequestError: it could not tell; in its own words.
    """
    command = [sys.executable, "-m", "paramscope", "stage-memory", "-"]
    command += [word for rule in rules for word in ("--rule", rule)]
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as given:
        given.write(config.model_dump_json().encode())
        given.seek(0)
        process = subprocess.Popen(
            command, stdin=given, stdout=answer, stderr=subprocess.PIPE, bufsize=0
        )
        words = ""
        with process:
            assert process.stderr is not None
            for chunk in iter(partial(process.stderr.read, 2**12), b""):
                words += chunk.decode(errors="replace")
                if ERROR not in words:
                    sys.stderr.write(chunk.decode(errors="replace"))
                    sys.stderr.flush()
        if process.returncode:
            raise RequestError(words.rpartition(ERROR)[2].strip() or f"exit {process.returncode}")
        answer.seek(0)
        stages: dict[str, Told] = json.loads(answer.read())["stages"]
    return stages


@cache
def _gpus() -> tuple[str, ...]:
    return tuple(gpus())
