"""What every part of a configuration is: closed, frozen, and strict about types."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A part of the configuration: no key but the declared ones, no type but the declared one."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
    )


def inconsistent(key: str, value: Any, problem: str, remedy: str) -> PydanticCustomError:
    """The error of a value that is right by itself and wrong beside another.

    It reads "KEY is VALUE PROBLEM; REMEDY", `key` counting from the model that raises it.
    """
    context = {"key": key, "value": value, "problem": problem, "remedy": remedy}
    return PydanticCustomError("inconsistent", "{key}: {problem}; {remedy}", context)


def unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The check of a list that names nothing twice."""
    if len(set(values)) < len(values):
        raise inconsistent("", values, "and repeats itself", "name each once")
    return values


def a_list() -> Any:
    """The field of a list of at least one that a file may give; its check is `unique`."""
    return Field(strict=False, min_length=1, json_schema_extra={"uniqueItems": True})
