"""Reading a configuration: files merged in order, and checked with messages for people."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from paramscope.config.model import Config
from paramscope.config.wording import shown, worded
from paramscope.errors import ConfigError


def load(paths: Sequence[Path]) -> Config:
    """The default configuration with YAML files laid over it, the last on top.

    Raises:
        ConfigError: a file that can't be read, or a configuration that is wrong.
    """
    raw = Config().model_dump(mode="json")
    for path in paths:
        raw = merge(raw, read(path))
    return validate(raw)


def validate(raw: dict[str, Any]) -> Config:
    """The configuration that plain values describe; keys left out take their defaults.

    `Config.model_dump(mode="json")` gives plain values again, with all the defaults.

    Raises:
        ConfigError: in one line the first wrong key, its value and what would do, and in a
            second, how many more are wrong.
    """
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        details = error.errors(include_url=False)
        # a key misspelt is also a key missing: the spelling explains both
        details.sort(key=lambda detail: detail["type"] != "extra_forbidden")
        first = worded(details[0], _schema())
        others = len(details) - 1
        more = f"\n{others} more {'value is' if others == 1 else 'values are'} wrong"
        raise ConfigError(f"config: {first}{more if others else ''}") from error


def validate_mixed(raw: dict[str, Any]) -> Config:
    """`validate`, for values some of which came as text from Snakemake's `--config`.

    It hands nested numbers over as text ("prm={seeds: 12}" gives '12'). Where the values are
    wrong as they stand, text that YAML takes for a number or a truth value is read so.

    Raises:
        ConfigError: as `validate`, about what is wrong even so.
    """
    try:
        return validate(raw)
    except ConfigError:
        return validate({key: _as_yaml(value) for key, value in raw.items()})


def merge(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """`upper` over `lower`: mappings merge key by key, all else is replaced, as by Snakemake."""
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        if isinstance(value, Mapping):
            merged[key] = merge(below if isinstance(below, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


def read(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        ConfigError: no such file, or it holds no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config: {path} can't be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ConfigError(f"config: {path} is not YAML{where}: {problem}") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"config: {path} holds {shown(content)}; write keys, such as 'model: planted'"
        )
    return content


@cache
def _schema() -> dict[str, Any]:
    return Config.model_json_schema()


def _as_yaml(value: Any) -> Any:
    """Text in nested values as YAML reads it, where that is a number or a truth value."""
    if isinstance(value, Mapping):
        return {key: _as_yaml(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_yaml(item) for item in value]
    if isinstance(value, str):
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            return value
        return parsed if isinstance(parsed, int | float) else value
    return value
