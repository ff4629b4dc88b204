"""Where a file came from: what was run, on what, with which code and versions."""

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from paramscope import __version__
from paramscope.artifacts.digest import code_digest, file_digest

LIBRARIES = {
    "torch": "torch",
    "transformers": "transformers",
    "tokenizers": "tokenizers",
    "numpy": "numpy",
    "scipy": "scipy",
    "pandas": "pandas",
    "pyarrow": "pyarrow",
    "sklearn": "scikit-learn",
    "statsmodels": "statsmodels",
    "umap": "umap-learn",
    "matplotlib": "matplotlib",
    "opacus": "opacus",
    "PIL": "pillow",
}


@dataclass(frozen=True)
class Provenance:
    """What every artifact carries. Holds no time and no host, so equal work gives equal bytes."""

    command: str
    parameters: Mapping[str, Any]
    code: str
    inputs: Mapping[str, str]
    versions: Mapping[str, str]
    device: str = "cpu"
    seed: int | None = None
    synthetic: bool = False
    notes: Mapping[str, Any] = field(default_factory=dict)
    microbatch: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def to_json(self, content_digest: str) -> str:
        """One JSON object with the digest of the content that this describes."""
        described = asdict(self)
        if not self.microbatch:  # where memory never ran out, as if it could not
            del described["microbatch"]
        return json.dumps(described | {"content_digest": content_digest}, sort_keys=True)


def provenance(
    stage: str,
    arguments: Mapping[str, Any],
    *,
    device: str = "cpu",
    synthetic: bool = False,
    notes: Mapping[str, Any] | None = None,
    microbatch: Mapping[str, Mapping[str, int]] | None = None,
) -> Provenance:
    """Describe a stage's run from its command's arguments, taken before it writes anything.

    Arguments that are existing paths are inputs and are digested; `output…` are what it
    makes; the rest are parameters. `stage` is the module that holds the command
    ("cli.corpus"); `microbatch` what it took fewer of than it was asked for, since memory ran
    out (`memory.halved`).
    """
    inputs: dict[str, str] = {}
    parameters: dict[str, Any] = {}
    for name, value in arguments.items():
        paths = value if isinstance(value, list | tuple) else [value]
        if name.startswith("output"):
            continue
        if paths and all(isinstance(path, Path) for path in paths):
            for path in paths:
                inputs.update(_digests(path))
        else:
            parameters[name] = value
    return Provenance(
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        parameters=parameters,
        code=code_digest(stage),
        inputs=inputs,
        versions=versions(),
        device=device,
        seed=parameters.get("seed"),
        synthetic=synthetic,
        notes=notes or {},
        microbatch=microbatch or {},
    )


def versions() -> dict[str, str]:
    """Versions of Python, of this package, and of the libraries that this process loaded."""
    loaded = {name: version(name) for module, name in LIBRARIES.items() if module in sys.modules}
    return {"python": sys.version.split()[0], "paramscope": __version__} | loaded


def _digests(path: Path) -> dict[str, str]:
    if path.is_dir():
        return {str(p): file_digest(p) for p in sorted(path.iterdir()) if p.is_file()}
    return {str(path): file_digest(path)} if path.is_file() else {}
