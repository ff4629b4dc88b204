"""Small JSON records with provenance."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from paramscope.artifacts.atomic import atomic
from paramscope.artifacts.provenance import Provenance
from paramscope.errors import ArtifactError


def write_record(path: Path, record: dict[str, Any], made_by: Provenance) -> None:
    """Write `record` with its provenance under `provenance`; NaN and infinity become null."""
    content = _finite(record)
    described = json.loads(made_by.to_json(_content_digest(content)))
    text = json.dumps(content | {"provenance": described}, indent=2, allow_nan=False)
    with atomic(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def read_record(path: Path) -> dict[str, Any]:
    """Read a record that `write_record` wrote, its `provenance` included.

    Raises:
        ArtifactError: no such file, not JSON, or content that is not what was written.
    """
    if not path.is_file():
        raise ArtifactError(f"{path}: no such record; run the rule that makes it")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        recorded = record["provenance"]["content_digest"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: not a record of paramscope: {error!r}") from error
    content = {key: value for key, value in record.items() if key != "provenance"}
    if _content_digest(content) != recorded:
        raise ArtifactError(
            f"{path}: content differs from what was written; remove it and rerun its rule"
        )
    return dict(record)


def _content_digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "item"):  # a numpy scalar
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
