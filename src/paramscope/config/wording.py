"""What is wrong with a configuration, in a line that names the key, the value and the mend.

What would do is read from the JSON schema of the model, so that a bound changed there is
worded right here.
"""

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from math import isfinite
from typing import Any, NamedTuple

import yaml

LONGEST = 60  # characters of a value or a foreign key that are shown
Schema = dict[str, Any]


class Place(NamedTuple):
    """Where an error is: its dotted key, and the schemas of the value and of what holds it."""

    key: str
    schema: Schema
    parent_key: str
    parent: Schema


def worded(error: Any, root: Schema) -> str:
    """One line on one of pydantic's error details (`ValidationError.errors()`)."""
    location, value, kind = error["loc"], error.get("input"), error["type"]
    is_name = location[-1:] == ("[key]",) and kind != "extra_forbidden"
    place = _place(location[:-1] if is_name else location, root)
    if kind == "inconsistent":
        context = error["ctx"]
        key = ".".join(part for part in (place.key, context["key"]) if part)
        problem = f" {context['problem']}".rstrip()
        return f"{key} is {shown(context['value'])}{problem}; {context['remedy']}"
    if is_name:
        return (
            f"{place.key} can't be a name in {place.parent_key}, which folders are called by; "
            "use letters, digits, '.', '_' and '-'"
        )
    if kind in ("extra_forbidden", "invalid_key"):
        return f"{place.key} is not a {_unknown(place, root, str(location[-1]))}"
    if kind.startswith("union_tag"):
        tag = value.get("kind") if isinstance(value, dict) else None
        state = f"is {shown(tag)}" if kind == "union_tag_invalid" else "is missing"
        kinds = list(place.schema["discriminator"]["mapping"])
        return f"{place.key}.kind {state}; give {_either(kinds)}{_meant(tag, kinds)}"
    if kind == "missing":
        return f"{place.key} is missing; give {_wanted(place.schema)}{_such_as(place.schema)}"
    name = place.key or "the configuration"
    hint = _number_as_text(value, place.schema) or _such_as(place.schema)
    options = place.schema.get("enum", [])
    return f"{name} is {shown(value)}; give {_wanted(place.schema)}{hint}{_meant(value, options)}"


def shown(value: Any) -> str:
    """A value as YAML has it, on one line, cut where it is long."""
    text = _plain(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _plain(value: Any, depth: int = 0) -> str:
    if depth > 4:
        return "…"  # nobody reads further, and YAML can nest a list in itself
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(_plain(item, depth + 1) for item in value)}]"
    if isinstance(value, dict):
        items = (f"{_step(key)}: {_plain(item, depth + 1)}" for key, item in value.items())
        return "{" + ", ".join(items) + "}"
    return repr(value) if isinstance(value, str) else " ".join(str(value).split())


def _step(key: Any) -> str:
    text = str(key)
    return text if re.fullmatch(r"[\w-][\w.-]*", text) else shown(text)


def _place(location: Sequence[str | int], root: Schema) -> Place:
    place = Place("", root, "", {})
    for step in location:
        schema = place.schema
        tags = schema.get("discriminator", {}).get("mapping", {})
        if step in tags:  # pydantic names the kind that it took, which the file does not
            place = place._replace(schema=_resolved({"$ref": tags[step]}, root))
        elif isinstance(step, int) and "items" in schema:
            key = f"{place.key}[{step}]"
            place = Place(key, _resolved(schema["items"], root), place.key, schema)
        else:
            inner = schema.get("properties", {}).get(step)
            if inner is None:
                inner = next(iter(schema.get("patternProperties", {}).values()), {})
            key = f"{place.key}.{_step(step)}" if place.key else _step(step)
            place = Place(key, _resolved(inner, root), place.key, schema)
    return place


def _resolved(schema: Schema, root: Schema) -> Schema:
    if "$ref" not in schema:
        return schema
    named = root["$defs"][schema["$ref"].rpartition("/")[2]]
    return {**named, **{key: value for key, value in schema.items() if key != "$ref"}}


def _unknown(place: Place, root: Schema, name: str) -> str:
    """The rest of "KEY is not a …": which key may have been meant, or which there are."""
    siblings = list(place.parent.get("properties", {}))
    prefix = f"{place.parent_key}." if place.parent_key else ""
    kind = place.parent.get("properties", {}).get("kind", {}).get("const")
    if close := get_close_matches(name, siblings, 1, 0.7):
        return f"known key; did you mean {prefix}{close[0]}?"
    if kind:
        mend = f"key of kind {kind}, which has {', '.join(siblings)}"
        if any(name in part["properties"] for part in root["$defs"].values()):
            mend += "; files are merged, so give a model of another kind another name"
        return mend
    elsewhere = dict(_keys(root, root))
    if found := [key for key, last in elsewhere.items() if last == name]:
        return f"known key; did you mean {_either(found)}?"
    if close := get_close_matches(name, elsewhere.values(), 1, 0.8):
        found = [key for key, last in elsewhere.items() if last in close]
        return f"known key; did you mean {_either(found)}?"
    return f"known key; {place.parent_key or 'the top level'} has {', '.join(siblings)}"


def _keys(schema: Schema, root: Schema, prefix: str = "") -> Iterator[tuple[str, str]]:
    """All dotted keys below a schema, each with its last part; names of models have none."""
    for name, inner in schema.get("properties", {}).items():
        yield f"{prefix}{name}", name
        yield from _keys(_resolved(inner, root), root, f"{prefix}{name}.")


def _wanted(schema: Schema) -> str:
    if "discriminator" in schema:
        return f"a mapping with kind: {_either(list(schema['discriminator']['mapping']))}"
    if "properties" in schema:
        optional = "" if "required" in schema else ", or leave it out"
        return f"a mapping with keys of {', '.join(schema['properties'])}{optional}"
    if "enum" in schema or "const" in schema:
        return _either(schema.get("enum") or [schema["const"]])
    match schema.get("type"):
        case "array":
            least = " of at least one" if schema.get("minItems") else ""
            return f"a list{least}, each {_wanted(schema['items'])}"
        case "integer":
            return f"a whole number{_bounds(schema)}"
        case "number":
            return f"a number{_bounds(schema)}"
        case "object":
            return "a mapping with at least one name"
    return "text"


def _bounds(schema: Schema) -> str:
    words = {
        "minimum": "of at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    found = [f"{word} {schema[key]}" for key, word in words.items() if key in schema]
    return f" {' and '.join(found)}" if found else ""


def _such_as(schema: Schema) -> str:
    if "enum" in schema or "const" in schema or "properties" in schema:
        return ""
    examples = schema.get("examples") or [schema.get("default")]
    if schema.get("type") == "object" or examples == [None]:
        return ""
    words = [example if isinstance(example, str) else _plain(example) for example in examples]
    return f", such as {_either(words)}"


def _number_as_text(value: Any, schema: Schema) -> str:
    if not isinstance(value, str) or schema.get("type") not in ("integer", "number"):
        return ""
    try:
        number = float(value)
    except ValueError:
        return ""
    if not isfinite(number):
        return ""
    if schema["type"] == "number" and "e" in value.lower():
        written = yaml.safe_dump(number).split()[0]
        return f"; YAML takes {value.strip()} for text, so write {written}"
    return ", without quotes"


def _either(words: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _meant(value: Any, options: Sequence[str]) -> str:
    close = get_close_matches(value, options, 1) if isinstance(value, str) else []
    return f" (did you mean {close[0]}?)" if close else ""
