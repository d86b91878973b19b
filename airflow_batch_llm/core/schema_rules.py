"""Operations on a JSON Schema that do not depend on a vendor: each adapter composes its own dialect of them.

Schemas go in and come out as plain dicts and are never changed in place. What a rewrite takes away, landing
still checks: it validates every answer against the schema as the user wrote it.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from airflow_batch_llm.errors import OutputTypeError

Schema: TypeAlias = Mapping[str, Any]

# Where a schema holds other schemas: by name, in a list, or directly.
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
_DEFINITIONS = ("$defs", "definitions")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaSize:
    """The measures of a schema that vendors limit."""

    depth: int  # levels of objects and lists within each other
    properties: int
    optional: int  # properties that an answer may leave out
    unions: int  # nodes of more than one type
    enum_values: int
    name_chars: int  # characters of property names, definition names, enum and const values


def map_children(node: Schema, rewrite: Callable[[Any], Any]) -> dict[str, Any]:
    """Return a copy of this node with each schema directly below it rewritten."""
    copy: dict[str, Any] = {}
    for key, value in node.items():
        if key in _NAMED and isinstance(value, Mapping):
            copy[key] = {name: rewrite(child) for name, child in value.items()}
        elif key in _LISTED and isinstance(value, Sequence):
            copy[key] = [rewrite(child) for child in value]
        elif key in _SINGLE and isinstance(value, Mapping):
            copy[key] = rewrite(value)
        else:
            copy[key] = value
    return copy


def walk(node: object, path: str = "$", depth: int = 0) -> Iterator[tuple[str, Schema, int]]:
    """Yield every schema in this one, itself first: its path, the node, how many objects and lists are around it."""
    if not isinstance(node, Mapping):
        return
    yield path, node, depth
    inner = depth + (1 if is_object(node) or "items" in node or "prefixItems" in node else 0)
    for key, value in node.items():
        if key in _NAMED and isinstance(value, Mapping):
            for name, child in value.items():
                yield from walk(child, f"{path}.{name}", 0 if key in _DEFINITIONS else inner)
        elif key in _LISTED and isinstance(value, Sequence):
            for child in value:
                yield from walk(child, path, inner if key == "prefixItems" else depth)
        elif key in _SINGLE:
            yield from walk(value, f"{path}[]" if key == "items" else path, inner)


def is_object(node: Schema) -> bool:
    """Return whether the node describes objects."""
    kinds = node.get("type")
    return kinds == "object" or (isinstance(kinds, list) and "object" in kinds) or "properties" in node


def is_open_map(node: Schema) -> bool:
    """Return whether the node describes objects whose property names the answer chooses."""
    extra = node.get("additionalProperties")
    free = isinstance(extra, Mapping) or (extra is not False and not node.get("properties"))
    return is_object(node) and (free or "patternProperties" in node)


def resolve(ref: object, root: Schema) -> Schema:
    """Return the schema that a `$ref` within the document points to."""
    if not isinstance(ref, str) or not ref.startswith("#"):
        raise OutputTypeError(
            f"The output type refers to {ref!r}, which lies outside the schema. Write it into the schema."
        )
    target: Any = root
    for part in ref.removeprefix("#").lstrip("/").split("/") if ref != "#" else ():
        name = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(target, Mapping) or name not in target:
            raise OutputTypeError(f"The output type refers to {ref!r}, which the schema does not define.")
        target = target[name]
    if not isinstance(target, Mapping):
        raise OutputTypeError(f"The output type refers to {ref!r}, which is not a schema.")
    return target


def inline_refs(schema: Schema) -> dict[str, Any]:
    """Return the schema without definitions: each reference is replaced by its target.

    Raises `OutputTypeError` for a schema that refers to itself, and for a reference that leads nowhere.
    """
    if refs := _recursive_refs(schema):
        raise OutputTypeError(
            f"The output type contains itself (at {min(refs)!r}), which this provider cannot be asked for. "
            "Give it a fixed depth, or ask for a list of parts that name their parent."
        )
    inlined: dict[str, Any] = _inlined(schema, schema, frozenset())
    return inlined


def inline_plain_refs(schema: Schema) -> dict[str, Any]:
    """`inline_refs` for what does not contain itself. The definitions that do, stay, and so do references to them."""
    recursive = _recursive_refs(schema)
    inlined: dict[str, Any] = _inlined(schema, schema, recursive)
    kept = {ref.rsplit("/", 1)[-1] for ref in recursive}
    for section in _DEFINITIONS:
        if definitions := {
            name: _inlined(child, schema, recursive)
            for name, child in schema.get(section, {}).items()
            if name in kept
        }:
            inlined[section] = definitions
    return inlined


def _recursive_refs(root: Schema) -> frozenset[str]:
    targets: dict[str, frozenset[str]] = {}
    waiting = _refs_in({key: value for key, value in root.items() if key not in _DEFINITIONS})
    while waiting:
        ref = waiting.pop()
        if ref not in targets:
            targets[ref] = frozenset(_refs_in(resolve(ref, root)))
            waiting |= targets[ref]
    return frozenset(ref for ref in targets if ref in _reach(ref, targets))


def _reach(start: str, targets: Mapping[str, frozenset[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = set(targets[start])
    while waiting:
        ref = waiting.pop()
        if ref not in seen:
            seen.add(ref)
            waiting |= targets[ref]
    return seen


def _refs_in(node: Schema) -> set[str]:
    return {found["$ref"] for _, found, _ in walk(node) if "$ref" in found}


def _inlined(node: Any, root: Schema, kept: frozenset[str]) -> Any:
    if not isinstance(node, Mapping):
        return node
    ref = node.get("$ref")
    if ref in kept:
        return {"$ref": ref}
    rest = {key: value for key, value in node.items() if key not in ("$ref", *_DEFINITIONS)}
    # A keyword next to a reference (a description, say) wins over the same keyword of its target.
    merged = {**resolve(ref, root), **rest} if ref is not None else rest
    return (
        _inlined(merged, root, kept)
        if "$ref" in merged
        else map_children(merged, lambda child: _inlined(child, root, kept))
    )


def measure(schema: Schema) -> SchemaSize:
    """Return the size of a schema in the terms that vendors limit."""
    nodes = list(walk(schema))
    enums = [value for _, node, _ in nodes for value in node.get("enum", ())]
    names = [name for _, node, _ in nodes for name in (*node.get("properties", ()), *node.get("$defs", ()))]
    consts = [node["const"] for _, node, _ in nodes if "const" in node]
    return SchemaSize(
        depth=1 + max(depth for _, _, depth in nodes),
        properties=sum(len(node.get("properties", ())) for _, node, _ in nodes),
        optional=sum(
            len(set(node.get("properties", ())) - set(node.get("required", ()))) for _, node, _ in nodes
        ),
        unions=sum("anyOf" in node or isinstance(node.get("type"), list) for _, node, _ in nodes),
        enum_values=len(enums),
        name_chars=sum(len(str(text)) for text in (*names, *enums, *consts)),
    )


def admits_null(node: object, root: Schema) -> bool:
    """Return whether the schema accepts null."""
    if not isinstance(node, Mapping):
        return node is not False
    if "$ref" in node:
        return admits_null(resolve(node["$ref"], root), root)
    if "const" in node:
        return node["const"] is None
    if "enum" in node:
        return None in node["enum"]
    for union in ("anyOf", "oneOf"):
        if union in node:
            return any(admits_null(branch, root) for branch in node[union])
    kinds = node.get("type", "null" if not is_object(node) and "allOf" not in node else "object")
    return kinds == "null" or (isinstance(kinds, list) and "null" in kinds)


def require_all(schema: Schema) -> dict[str, Any]:
    """Every property required; one that was optional may be null instead. `AddedNulls` is the way back."""

    def required(node: Any) -> Any:
        if not isinstance(node, Mapping):
            return node
        copy = map_children(node, required)
        if isinstance(properties := copy.get("properties"), dict):
            obligatory = node.get("required", ())
            copy["properties"] = {
                name: child if name in obligatory or admits_null(child, schema) else _or_null(child)
                for name, child in properties.items()
            }
            copy["required"] = list(properties)
        return copy

    result: dict[str, Any] = required(schema)
    return result


def _or_null(node: Schema) -> dict[str, Any]:
    if set(node) == {"anyOf"}:
        return {"anyOf": [*node["anyOf"], {"type": "null"}]}
    return {"anyOf": [dict(node), {"type": "null"}]}


def told_in_words(description: object, rules: Mapping[str, object]) -> str:
    """Return a description that ends with the rules that a vendor's schema cannot express, such as `{"maximum": 5}`."""
    spelled = json.dumps(rules, ensure_ascii=False)
    return f"{description}\n\n{spelled}" if description else spelled


def rules_in_words(description: object) -> dict[str, Any]:
    """Return the rules that `told_in_words` has put into a description; none where there are none."""
    last = str(description).rpartition("\n\n")[2] if isinstance(description, str) else ""
    if not (last.startswith("{") and last.endswith("}")):
        return {}
    try:
        rules: dict[str, Any] = json.loads(last)
    except ValueError:
        return {}
    return rules


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """The rules for a part of an answer, by the schemas that describe it."""

    added: frozenset[str]  # optional properties that admit no null
    properties: Mapping[str, Sequence[Any]]  # the schemas of each
    items: Sequence[Any]


class AddedNulls:
    """Takes out the nulls that `require_all` lets an answer have: those for optional properties that admit none.

    The rules for a part of an answer are read from the schema once, when an answer first has that part.
    """

    def __init__(self, schema: Schema) -> None:
        self._root = schema
        self._parts: dict[tuple[int, ...], _Part] = {}

    def drop(self, answer: Any) -> Any:
        """Return an answer in the terms of the schema that was written."""
        return self._dropped(answer, [self._root])

    def _dropped(self, value: Any, nodes: Sequence[Any]) -> Any:
        if isinstance(value, list):
            items = self._part(nodes).items
            return [self._dropped(item, items) for item in value]
        if not isinstance(value, dict):
            return value
        part = self._part(nodes)
        kept: dict[str, Any] = {}
        for name, item in value.items():
            if isinstance(item, dict | list):
                kept[name] = self._dropped(item, part.properties.get(name, ()))
            elif item is not None or name not in part.added:
                kept[name] = item
        return kept

    def _part(self, nodes: Sequence[Any]) -> _Part:
        key = tuple(map(id, nodes))  # of schemas within the one that is held here
        if (part := self._parts.get(key)) is None:
            part = self._parts[key] = self._read(nodes)
        return part

    def _read(self, nodes: Sequence[Any]) -> _Part:
        plain = {id(one): one for node in nodes for one in _alternatives(node, self._root)}.values()
        properties: dict[str, list[Any]] = {}
        takes_null: set[str] = set()
        for node in plain:
            for name, child in node.get("properties", {}).items():
                properties.setdefault(name, []).append(child)
                if name in node.get("required", ()) or admits_null(child, self._root):
                    takes_null.add(name)
        return _Part(
            added=frozenset(properties) - takes_null,
            properties=properties,
            items=[node["items"] for node in plain if "items" in node],
        )


def _alternatives(node: Any, root: Schema) -> Iterator[Schema]:
    if not isinstance(node, Mapping):
        return
    yield node
    if "$ref" in node:
        yield from _alternatives(resolve(node["$ref"], root), root)
    for union in ("anyOf", "oneOf", "allOf"):
        for branch in node.get(union, ()):
            yield from _alternatives(branch, root)
