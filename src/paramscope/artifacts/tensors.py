"""Torch files: a flat dict of tensors and plain values, with provenance, never a pickle of code."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paramscope.artifacts.atomic import atomic
from paramscope.artifacts.provenance import Provenance
from paramscope.errors import ArtifactError

KEY = "__provenance__"
Plain = int | float | str | bool
Content = Mapping[str, Tensor | Plain]


def write_tensors(path: Path, content: Content, made_by: Provenance) -> None:
    """Write tensors and plain values by name, whole or not at all."""
    stored: dict[str, Tensor | Plain] = {
        name: value.detach().cpu().contiguous() if isinstance(value, Tensor) else value
        for name, value in content.items()
    }
    described = made_by.to_json(_content_digest(stored))
    with atomic(path) as partial, partial.open("wb") as file:
        torch.save(stored | {KEY: described}, file)  # given a path, torch would store its name


def read_tensors(path: Path) -> dict[str, Any]:
    """Read what `write_tensors` wrote, memory-mapped; the provenance is left out.

    Raises:
        ArtifactError: no such file, not one of ours, or content that is not what was written.
    """
    stored = _load(path)
    described = json.loads(stored.pop(KEY))
    if _content_digest(stored) != described["content_digest"]:
        raise ArtifactError(
            f"{path}: content differs from what was written; remove it and rerun its rule"
        )
    return stored


def read_tensors_provenance(path: Path) -> dict[str, Any]:
    """The provenance of a Torch file, with its `content_digest`."""
    return dict(json.loads(_load(path)[KEY]))


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file; run the rule that makes it")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many types on a damaged file
        raise ArtifactError(f"{path}: not a readable Torch file: {error}") from error
    if not isinstance(stored, dict) or KEY not in stored:
        raise ArtifactError(f"{path}: has no provenance, so no stage of paramscope wrote it")
    return stored


def _content_digest(content: Content) -> str:
    digest = hashlib.sha256()
    for name in sorted(content):
        value = content[name]
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
        else:
            digest.update(f"{name} {value!r}".encode())
    return digest.hexdigest()
