"""Refuse the JSON Schemas that the vendors refuse for structured output.

Each check returns the reason, or None for a schema that is taken. Vendors check per request, so the results for the
few schemas of a run are remembered.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import orjson

_ANTHROPIC_UNSUPPORTED = (
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    "minLength", "maxLength", "maxItems", "uniqueItems", "not", "if", "patternProperties",
)  # fmt: skip
_ANTHROPIC_FORMATS = {
    "date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid",
}  # fmt: skip
_OPENAI_UNSUPPORTED = (
    "allOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies",
    "patternProperties", "oneOf",
)  # fmt: skip
_OPENAI_PROPERTIES = 5000
_OPENAI_LEVELS = 10
_OPENAI_ENUM = 1000


def anthropic_refusal(schema: Any) -> str | None:
    """Why Anthropic's `output_config.format` or a strict tool does not take the schema."""
    return _anthropic(orjson.dumps(schema))


def openai_refusal(schema: Any) -> str | None:
    """Why OpenAI's strict mode does not take the schema."""
    return _openai(orjson.dumps(schema))


@lru_cache(maxsize=256)
def _anthropic(document: bytes) -> str | None:
    schema = orjson.loads(document)
    if not isinstance(schema, dict):
        return "the schema is not an object"
    for part, _ in _parts(schema, 0):
        if reason := _anthropic_part(part):
            return reason
    return "recursive schemas are not supported" if _recursive(schema, schema, ()) else None


def _anthropic_part(part: dict[str, Any]) -> str | None:
    if _is_object(part) and part.get("additionalProperties") is not False:
        return "for 'object' type, 'additionalProperties' must be explicitly set to false"
    if unsupported := [word for word in _ANTHROPIC_UNSUPPORTED if word in part]:
        return f"for '{part.get('type', 'any')}' type, property '{unsupported[0]}' is not supported"
    if part.get("minItems", 0) not in (0, 1):
        return "for 'array' type, 'minItems' values other than 0 or 1 are not supported"
    if (name := part.get("format")) is not None and name not in _ANTHROPIC_FORMATS:
        return f"string format '{name}' is not supported"
    reference = part.get("$ref")
    return "external '$ref' is not supported" if reference and not str(reference).startswith("#") else None


@lru_cache(maxsize=256)
def _openai(document: bytes) -> str | None:
    schema = orjson.loads(document)
    if not isinstance(schema, dict) or schema.get("type") != "object" or "anyOf" in schema:
        return "schema must have type 'object' and not have 'anyOf' at the top level."
    count = 0
    for part, level in _parts(schema, 1):
        count += len(part.get("properties", ()))
        if level > _OPENAI_LEVELS:
            return f"{level} levels of nesting exceeds limit of {_OPENAI_LEVELS}."
        if reason := _openai_part(part):
            return reason
    if count > _OPENAI_PROPERTIES:
        return f"{count} properties exceeds limit of {_OPENAI_PROPERTIES}."
    return None


def _openai_part(part: dict[str, Any]) -> str | None:
    if _is_object(part):
        if part.get("additionalProperties") is not False:
            return "'additionalProperties' is required to be supplied and to be false."
        absent = [name for name in part.get("properties", {}) if name not in part.get("required", ())]
        if absent:
            return (
                "'required' is required to be supplied and to be an array including every key in properties. "
                f"Missing '{absent[0]}'."
            )
    if unsupported := [word for word in _OPENAI_UNSUPPORTED if word in part]:
        return f"'{unsupported[0]}' is not permitted."
    if len(part.get("enum", ())) > _OPENAI_ENUM:
        return f"an enum of {len(part['enum'])} values exceeds limit of {_OPENAI_ENUM}."
    return None


def _is_object(part: dict[str, Any]) -> bool:
    kind = part.get("type")
    return kind == "object" or (isinstance(kind, list) and "object" in kind) or "properties" in part


def _parts(schema: Any, level: int) -> Iterator[tuple[dict[str, Any], int]]:
    """The schema and all schemas in it, each with its depth in objects."""
    if not isinstance(schema, dict):
        return
    yield schema, level
    for word in ("properties", "$defs", "definitions"):
        for part in (schema.get(word) or {}).values():
            yield from _parts(part, level + (word == "properties"))
    for word in ("items", "additionalProperties"):
        yield from _parts(schema.get(word), level)
    for word in ("anyOf", "allOf", "oneOf", "prefixItems"):
        for part in schema.get(word) or ():
            yield from _parts(part, level)


def _recursive(part: Any, root: Any, following: tuple[str, ...]) -> bool:
    if isinstance(part, list):
        return any(_recursive(item, root, following) for item in part)
    if not isinstance(part, dict):
        return False
    reference = part.get("$ref")
    if isinstance(reference, str):
        if reference in following:
            return True
        target = root
        for step in reference.lstrip("#").strip("/").split("/"):
            target = target.get(step, {}) if step else target
        if _recursive(target, root, (*following, reference)):
            return True
    return any(
        _recursive(value, root, following)
        for key, value in part.items()
        if key not in ("$defs", "definitions", "$ref")
    )
