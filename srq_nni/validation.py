"""What a pydantic model refuses, as one sentence that says what is allowed in the words of the model's JSON schema."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Strict

from srq_nni.errors import SRQError, did_you_mean, listing

Schema = Mapping[str, Any]


def _whole(value: Any) -> Any:
    """Take ``!!float 5e3`` for 5000, as YAML users write it, and no text or truth value for a number."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


Whole = Annotated[int, Strict(), BeforeValidator(_whole)]
Number = Annotated[float, Strict()]


def sentence(first: Mapping[str, Any], model: type[BaseModel]) -> str:
    """Return a complaint as one sentence that begins with the keys, from the outside in.

    Args:
        first: one of ``ValidationError.errors()``; an SRQError of a validator speaks for itself.
        model: what was validated.
    """
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, SRQError):
        return str(cause)
    if first["type"] == "invalid_key":
        where = _written(first["loc"][:-1])
        return f"{where}{': ' if where else ''}key {first['loc'][-1]} is not a text; quote it, or delete it"
    root = model.model_json_schema()
    path, found = _locate(root, first["loc"])
    where = _written(path)
    if first["type"] in ("missing", "extra_forbidden"):
        key = str(first["loc"][-1])
        names = [name for part in found for name in part.get("properties", {})]
        outside = f"{_written(path[:-1])}: " if first["type"] == "missing" and path[:-1] else ""
        if first["type"] == "missing":
            return f"{outside}key '{key}' is missing; add it"
        outside = f"{where}: " if where else ""
        return f"{outside}key '{key}' is not known; allowed are {', '.join(names)}{did_you_mean(key, names)}"
    given = first["input"]
    if [part.get("type") for part in found] == ["object"]:
        return f"{where}: {given!r} is not a block of keys; add its keys below it, indented"
    names = [str(name) for part in found for name in part.get("enum", ())]
    near = did_you_mean(given, names) if isinstance(given, str) else ""
    return f"{where}: {given!r} is not allowed; give {allowed(found)}{near}"


def allowed(alternatives: Iterable[Schema]) -> str:
    """Return in words which values parts of a JSON schema allow, such as ``a whole number from 2 to 8, or a text``."""
    phrases: list[str] = []
    for part in alternatives:
        kind = part.get("type")
        if "enum" in part or "const" in part:
            values = [str(value) for value in part.get("enum", [part.get("const")])]
            phrase = values[0] if len(values) == 1 else f"one of {listing(values, 12)}"
        elif kind in ("integer", "number"):
            phrase = f"a {'whole ' if kind == 'integer' else ''}number{_limits(part)}"
        else:
            phrase = {"boolean": "true or false", "array": "a list", "object": "a block of keys"}.get(
                str(kind), "a text"
            )
        if phrase not in phrases:
            phrases.append(phrase)
    return ", or ".join(phrases)


def _limits(part: Schema) -> str:
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "to below"}
    numbers = ((word, part[key]) for key, word in words.items() if key in part)
    return "".join(f" {word} {number if isinstance(number, int) else format(number, 'g')}" for word, number in numbers)


def _written(path: Sequence[str | int]) -> str:
    """Return ``train: scheduler: milestones[2]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f"{': ' if text else ''}{part}"
    return text


def _locate(root: Schema, location: Sequence[str | int]) -> tuple[list[str | int], list[Schema]]:
    """Return the keys of a location, without pydantic's names for the parts of a union, and the schemas found there."""
    path: list[str | int] = []
    found = _alternatives(root, root)
    for part in location:
        inner = [below for schema in found if (below := _below(schema, part)) is not None]
        if inner:
            path.append(part)
            found = [schema for below in inner for schema in _alternatives(below, root)]
    return path, found


def _below(schema: Schema, part: str | int) -> Schema | None:
    if isinstance(part, int):
        items = schema.get("items")
        return items if isinstance(items, Mapping) else None
    properties = schema.get("properties", {})
    below = properties.get(part, schema.get("additionalProperties") if not properties else None)
    return below if isinstance(below, Mapping) else None


def _alternatives(schema: Schema, root: Schema) -> list[Schema]:
    """Return the parts of a union, references followed and null left out."""
    if "$ref" in schema:
        return _alternatives(root["$defs"][str(schema["$ref"]).rsplit("/", 1)[-1]], root)
    parts = [part for one in schema.get("anyOf", ()) for part in _alternatives(one, root)] or [schema]
    return [part for part in parts if part.get("type") != "null"]
