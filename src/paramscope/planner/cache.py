"""Estimates, each made once on a machine: kept by what they hang on."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from paramscope.artifacts.atomic import atomic
from paramscope.artifacts.digest import code_digest
from paramscope.planner.cache_folder import default_folder
from paramscope.planner.estimate import Estimate, called, estimates, resolved, term_rows
from paramscope.planner.known_devices import Device
from paramscope.planner.models import Source, configuration
from paramscope.planner.options import Options
from paramscope.planner.runs import DeviceKind
from paramscope.planner.strategies import STRATEGIES

BOTH: tuple[DeviceKind, ...] = ("cpu", "cuda")


class Store:
    """Estimates on disk, one JSON file each, named by a digest of all that it hangs on.

    That is the model's configuration, the strategy and its options, the kind of device, the code
    that makes it, torch's and transformers' versions, and the threads of CPU kernels. What can't
    be read is made anew; where nothing can be written, nothing is kept.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()

    def estimate(
        self,
        source: Source,
        strategy: str,
        options: Options | None = None,
        device_kind: DeviceKind = "cpu",
        device: Device | None = None,
    ) -> Estimate:
        """As `estimate.estimate`, from the store where it is there.

        Raises:
            RequestError: as `estimate.estimate`.
        """
        own = resolved(options or Options(), strategy, device_kind)
        found = self._read(self._path(source, strategy, own, device_kind))
        if found is None:
            made = estimates(source, strategy, own, BOTH)  # the one run tells of both
            for one in made:
                self._write(self._path(source, strategy, own, one.device_kind), one)
            found = next(one for one in made if one.device_kind == device_kind)
        live = found.peak_bytes if strategy in STRATEGIES else None
        rows = term_rows(device, device_kind, strategy, live)
        return replace(found, terms=rows, model=found.model | {"name": called(source)})

    def _path(self, source: Source, strategy: str, own: Options, kind: DeviceKind) -> Path:
        identity = [
            json.loads(configuration(source).to_json_string(use_diff=False)),
            strategy,
            asdict(own),
            kind,
            torch.get_num_threads() if kind == "cpu" else 0,
            *_code(),
        ]
        text = json.dumps(identity, sort_keys=True)
        return self.folder / "estimates" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"

    def _read(self, path: Path) -> Estimate | None:
        try:
            return Estimate(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def _write(self, path: Path, one: Estimate) -> None:
        try:
            with atomic(path) as partial:
                partial.write_text(json.dumps(one.record()), encoding="utf-8")
        except OSError:
            return  # such as no home, or no room


@cache
def _code() -> Sequence[Any]:
    return code_digest("planner.estimate"), torch.__version__, transformers.__version__
