"""Translate a JSON Schema into Gemini's `responseSchema`, a subset of OpenAPI.

Vertex imports the request lines as a table, so JSON Schema itself cannot be sent: references, keys with a `$`, and
types that are names in one place and lists in another fail the whole job. A keyword that the subset cannot express is
refused with its path. One that only narrows (`multipleOf`, `uniqueItems`) moves into the description. Landing validates
every answer.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from airflow_batch_llm.core.answer_schema import DECIMAL_PLACES, MAX_DIGITS
from airflow_batch_llm.core.schema_rules import inline_refs, told_in_words
from airflow_batch_llm.errors import OutputTypeError

Node = Mapping[str, Any]

_TYPES = {
    "object": "OBJECT",
    "array": "ARRAY",
    "string": "STRING",
    "integer": "INTEGER",
    "number": "NUMBER",
    "boolean": "BOOLEAN",
}

# Keywords that change the meaning of a schema and have no equivalent in the subset.
_INEXPRESSIBLE = (
    "not",
    "if",
    "patternProperties",
    "propertyNames",
    "prefixItems",
    "contains",
    "dependentSchemas",
    "dependentRequired",
)

# The formats that Gemini knows for a string. Any other fails every row.
_STRING_FORMATS = frozenset({"date", "date-time", "duration", "time"})

# By type, the keywords that the subset has under the same name.
_KEPT = {
    "array": ("minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern"),
    "integer": ("minimum", "maximum"),
    "number": ("minimum", "maximum"),
}

# By type, the keywords that only narrow and that the subset has no word for.
_TOLD = {
    "array": ("uniqueItems",),
    "string": ("format", MAX_DIGITS, DECIMAL_PLACES),
    "integer": ("multipleOf",),
    "number": ("exclusiveMinimum", "exclusiveMaximum", "multipleOf", "format", MAX_DIGITS, DECIMAL_PLACES),
}


def response_schema(schema: Node) -> dict[str, Any]:
    """Return the `responseSchema` that asks for answers of this JSON Schema. Raises `OutputTypeError`, naming the path."""
    return _translated(inline_refs(schema), "$")


def _translated(node: object, path: str) -> dict[str, Any]:
    told = [_typed(one, path) for one in _alternatives(node, path)]
    branches = [one for one in told if one]
    if not branches:
        raise _refusal(path, "a value that is always null cannot be asked for")
    answer: dict[str, Any] = branches[0] if len(branches) == 1 else {"anyOf": branches}
    if len(branches) < len(told):
        answer["nullable"] = True
    if isinstance(node, Mapping) and isinstance(text := node.get("description"), str) and text:
        inner = answer.get("description", text)
        answer["description"] = inner if inner.startswith(text) else f"{text}\n\n{inner}"
    return answer


def _alternatives(node: object, path: str) -> list[Node]:
    """Return a node as alternatives of one type each; null is one of them."""
    if not isinstance(node, Mapping) or not node:
        raise _refusal(path, "any value is allowed here; give it a type")
    for keyword in _INEXPRESSIBLE:
        if keyword in node:
            raise _refusal(path, f"there is no equivalent of {keyword!r}")
    node = _merged(node, path)
    for keyword in ("anyOf", "oneOf"):
        if keyword in node:
            return [one for branch in node[keyword] for one in _alternatives(branch, path)]
    if "const" in node or "enum" in node:
        return _by_kind(node, path)
    names = node.get("type", _implied_type(node))
    if names is None:
        raise _refusal(path, "any value is allowed here; give it a type")
    return [{**node, "type": name} for name in ([names] if isinstance(names, str) else names)]


def _merged(node: Node, path: str) -> Node:
    """Replace an `allOf` around one schema by that schema. Such an `allOf` only adds a description to a reference."""
    if "allOf" not in node:
        return node
    rest = {key: value for key, value in node.items() if key != "allOf"}
    if len(node["allOf"]) != 1 or not isinstance(node["allOf"][0], Mapping):
        raise _refusal(path, "there is no equivalent of 'allOf' with several schemas; write them as one")
    return _merged({**node["allOf"][0], **rest}, path)


def _by_kind(node: Node, path: str) -> list[Node]:
    """Return the values of an enum, sorted into one alternative per type."""
    values: Sequence[Any] = [node["const"]] if "const" in node else node["enum"]
    kinds: dict[str, list[Any]] = {}
    for value in values:
        kinds.setdefault(_kind(value, path), []).append(value)
    return [{"type": kind, "enum": members} for kind, members in kinds.items()]


def _kind(value: object, path: str) -> str:
    match value:
        case None:
            return "null"
        case str():
            return "string"
        case int() if not isinstance(value, bool):
            return "integer"
        case _:
            raise _refusal(path, "an enum may hold strings, whole numbers and null only")


def _implied_type(node: Node) -> str | None:
    if "properties" in node:
        return "object"
    return "array" if "items" in node else None


def _typed(node: Node, path: str) -> dict[str, Any]:
    """Return one alternative, or nothing for null, which the subset expresses by `nullable`."""
    kind = node["type"]
    if kind == "null":
        return {}
    if kind not in _TYPES:
        raise _refusal(path, f"there is no type {kind!r}")
    told: dict[str, Any] = {"type": _TYPES[kind]}
    told |= {keyword: node[keyword] for keyword in _KEPT.get(kind, ()) if keyword in node}
    if "enum" in node:
        # The subset spells every member as a string, also those of a whole number.
        told |= {"format": "enum", "enum": [str(member) for member in node["enum"]]}
    elif node.get("format") in _STRING_FORMATS and kind == "string":
        told["format"] = node["format"]
    if kind == "object":
        told |= _object(node, path)
    elif kind == "array":
        told["items"] = _translated(node.get("items"), f"{path}[]")
    elif kind == "integer":
        told |= _whole_bounds(node)
    text = node.get("description")
    rules = {name: node[name] for name in _TOLD.get(kind, ()) if name in node and name not in told}
    if rules or (isinstance(text, str) and text):
        told["description"] = told_in_words(text, rules) if rules else text
    return told


def _object(node: Node, path: str) -> dict[str, Any]:
    properties = node.get("properties")
    if isinstance(node.get("additionalProperties"), Mapping) or not properties:
        raise _refusal(path, "an object needs named properties; send a mapping as a list of names and values")
    told: dict[str, Any] = {
        "properties": {name: _translated(value, f"{path}.{name}") for name, value in properties.items()},
        "propertyOrdering": list(properties),
    }
    if required := [name for name in node.get("required", ()) if name in properties]:
        told["required"] = required
    return told


def _whole_bounds(node: Node) -> dict[str, int]:
    """Turn open bounds of a whole number into closed ones. Landing checks those of other numbers."""
    bounds: dict[str, int] = {}
    if (low := node.get("exclusiveMinimum")) is not None:
        bounds["minimum"] = math.floor(low) + 1
    if (high := node.get("exclusiveMaximum")) is not None:
        bounds["maximum"] = math.ceil(high) - 1
    return bounds


def _refusal(path: str, reason: str) -> OutputTypeError:
    return OutputTypeError(f"Vertex cannot be asked for this output type: at {path}, {reason}.")
