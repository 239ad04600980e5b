"""A hook of mkdocs: the YAML reference, written from the JSON schema, so that it cannot lag behind the code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGE = "yaml-reference.md"
INTRODUCTION = """# YAML reference

Every key that srq-nni knows in an option file of BasicSR, from the schema with which a run checks it. Editors read the
same schema: the first line of each file in `basicsr_configs/` names it, and `srq schema -o FILE` writes it for files
elsewhere.

Keys that are not listed belong to BasicSR or to the registered class named by `type` beside them.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page to those of the docs folder."""
    from srq_nni.models.json_schema import json_schema

    files.append(File.generated(config, PAGE, content=render(json_schema())))
    return files


def render(schema: Mapping[str, Any]) -> str:
    """Return the reference as Markdown: a table for the file itself, and one for each block."""
    parts = [INTRODUCTION, *_table("The file", schema)]
    for name, block in _blocks(schema):
        parts += _table(f"`{name}:`", block)
    return "\n".join(parts) + "\n"


def _blocks(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (path, block) of each block below the file, depth first, each kind of block once."""
    seen: set[str] = set()

    def walk(path: str, block: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for key, value in block.get("properties", {}).items():
            name = _definition(value)
            if name and name not in seen:
                seen.add(name)
                inner = schema["$defs"][name]
                where = f"{path}: {key}" if path else key
                yield where, inner
                yield from walk(where, inner)

    yield from walk("", schema)


def _definition(value: Mapping[str, Any]) -> str:
    """Return the name of the block that a key holds, in one of the shapes of JSON schema, or an empty text."""
    for choice in (value, *value.get("anyOf", ())):
        if "$ref" in choice:
            return str(choice["$ref"]).rpartition("/")[2]
        inner = choice.get("additionalProperties")
        if isinstance(inner, Mapping) and "$ref" in inner:
            return str(inner["$ref"]).rpartition("/")[2]
    return ""


def _table(title: str, block: Mapping[str, Any]) -> list[str]:
    required = set(block.get("required", ()))
    lines = [
        f"\n## {title}\n",
        block.get("description", ""),
        "",
        "| key | value | default | meaning |",
        "|---|---|---|---|",
    ]
    for key, value in block.get("properties", {}).items():
        default = "needed" if key in required else _literal(value.get("default"))
        lines.append(f"| `{key}` | {_allowed(value)} | {default} | {value.get('description', '')} |")
    return lines


def _literal(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _allowed(value: Mapping[str, Any]) -> str:
    """Return in words what a key may hold; registries are too long to list and end in "a registered name"."""
    choices = [choice for choice in value.get("anyOf", [value]) if choice.get("type") != "null"]
    if any("enum" in choice for choice in choices) and any(choice.get("minLength") for choice in choices):
        return "a registered name"
    return " or ".join(_one(choice) for choice in choices)


def _one(choice: Mapping[str, Any]) -> str:
    if "enum" in choice:
        return ", ".join(f"`{item}`" for item in choice["enum"])
    if "const" in choice:
        return f"`{choice['const']}`"
    if "$ref" in choice or choice.get("type") == "object":
        return "a block"
    word = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "array": "a list"}
    least, most = choice.get("minimum", choice.get("exclusiveMinimum")), choice.get("maximum")
    below = choice.get("exclusiveMaximum")
    limits = [f"from {least}"] * (least is not None) + [f"to {most}"] * (most is not None)
    limits += [f"below {below}"] * (below is not None)
    return " ".join([word.get(str(choice.get("type")), "a text"), *limits])
