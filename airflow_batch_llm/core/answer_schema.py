"""Turn the JSON Schema of an answer into one with an object at its root, and into columns.

An answer that is not an object (a list, a number, a union) is wrapped into one property. The definitions are kept at
the root, so that every `$ref` still finds its target.
"""

from collections.abc import Iterator, Mapping
from typing import Any, assert_never

from airflow_batch_llm.core.model import ColumnType
from airflow_batch_llm.core.schema_rules import map_children, resolve, walk
from airflow_batch_llm.errors import OutputTypeError

Schema = Mapping[str, Any]

_DEFINITIONS = ("$defs", "definitions")
_AT_ROOT = (*_DEFINITIONS, "$schema")
_SCALARS = {
    "string": ColumnType.STRING,
    "integer": ColumnType.INTEGER,
    "number": ColumnType.NUMBER,
    "boolean": ColumnType.BOOLEAN,
}
_FORMATS = {"date": ColumnType.DATE, "date-time": ColumnType.TIMESTAMP}
#: The format of a number, or of a text, that is a decimal. JSON Schema has no keyword for digits: the two are the package's own.
DECIMAL, MAX_DIGITS, DECIMAL_PLACES = "decimal", "maxDigits", "decimalPlaces"
#: The digits that most databases keep in all, and those that BigQuery's NUMERIC keeps after the point.
_MOST_DIGITS, _USUAL_PLACES = 38, 9


def check(schema: Schema) -> None:
    """Raise `OutputTypeError` if this is not a valid schema, or has a reference to a definition that it lacks."""
    import jsonschema_rs

    for _, node, _ in walk(schema):
        if "$ref" in node:
            resolve(node["$ref"], schema)
    try:
        jsonschema_rs.validator_for(dict(schema))
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise OutputTypeError(f"The output type is not a valid JSON Schema: {reason}") from None


def with_root(schema: Schema) -> Schema:
    """Return the schema with its root written out, where the root only refers to a definition."""
    passed: set[str] = set()
    while "$ref" in schema:
        if schema["$ref"] in passed:
            raise OutputTypeError("The output type refers to itself and to nothing else.")
        passed.add(schema["$ref"])
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        schema = {**resolve(schema["$ref"], schema), **beside}
    return schema


def has_columns(schema: Schema) -> bool:
    """Return whether answers are objects with known property names, so that each property makes a column."""
    return schema.get("type", "object") == "object" and bool(schema.get("properties"))


def wrapped(schema: Schema, name: str) -> dict[str, Any]:
    """Return an object schema whose one property is the answer."""
    return _around(_moved(schema, f"#/properties/{name}"), name)


def packed_schema(schema: Schema | None) -> dict[str, Any]:
    """Return the schema of the answer to a packed request: a list of answers of this schema, each with its item's number.

    With None the answers are text.
    """
    place = "#/properties/answers/items/properties/answer"
    body = {"type": "string"} if schema is None else _moved(schema, place)
    definitions = {key: body[key] for key in _AT_ROOT if key in body}
    answer = {key: value for key, value in body.items() if key not in _AT_ROOT}
    entry = {
        "type": "object",
        "properties": {"item": {"type": "integer"}, "answer": answer},
        "required": ["item", "answer"],
        "additionalProperties": False,
    }
    return _around({"type": "array", "items": entry, **definitions}, "answers")


def _moved(node: Any, place: str) -> Any:
    """Return a schema whose references to itself hold at another place."""
    if not isinstance(node, Mapping):
        return node
    copy = map_children(node, lambda child: _moved(child, place))
    ref = copy.get("$ref", "")
    if ref.startswith("#") and not ref.startswith(("#/$defs/", "#/definitions/")):
        copy["$ref"] = place + ref.removeprefix("#")
    return copy


def _around(body: Schema, name: str) -> dict[str, Any]:
    """Return an object schema with one property. The definitions stay at the root."""
    return {
        "type": "object",
        "properties": {name: {key: value for key, value in body.items() if key not in _AT_ROOT}},
        "required": [name],
        "additionalProperties": False,
        **{key: body[key] for key in _AT_ROOT if key in body},
    }


def column_type(schema: Schema, path: tuple[str, ...]) -> ColumnType:
    """Return the type of the column that holds the value at `path`. Raises `OutputTypeError` if no type can hold it."""
    kinds = {kind for branch in branches_at(schema, path) for kind in _kinds(branch)}
    if len(kinds) == 1:
        return kinds.pop()
    wider = {_widest(kind) for kind in kinds}
    if wider == {ColumnType.NUMBER, ColumnType.DECIMAL}:
        return ColumnType.DECIMAL
    return wider.pop() if len(wider) == 1 else ColumnType.JSON


def _widest(kind: ColumnType) -> ColumnType:
    """Return the type that holds a value of this type together with values of the types most like it."""
    match kind:
        case ColumnType.STRING | ColumnType.DATE | ColumnType.TIMESTAMP:
            return ColumnType.STRING
        case ColumnType.INTEGER | ColumnType.NUMBER:
            return ColumnType.NUMBER
        case ColumnType.DECIMAL:
            return ColumnType.DECIMAL
        case ColumnType.BOOLEAN | ColumnType.JSON | ColumnType.VECTOR:
            return ColumnType.JSON
        case _:
            assert_never(kind)


def decimal_digits(schema: Schema, path: tuple[str, ...]) -> tuple[int, int]:
    """Return the digits that the decimal at `path` may have: in all, and after the point."""
    branches = branches_at(schema, path)
    places = max(
        (int(node[DECIMAL_PLACES]) for node in branches if DECIMAL_PLACES in node), default=_USUAL_PLACES
    )
    digits = max((int(node[MAX_DIGITS]) for node in branches if MAX_DIGITS in node), default=_MOST_DIGITS)
    if not 0 <= places <= _MOST_DIGITS or not 1 <= digits <= _MOST_DIGITS:
        raise OutputTypeError(
            f"The decimal at {'.'.join(path)!r} may have {digits} digits, {places} of them after the point. Tables hold"
            f" at most {_MOST_DIGITS}: set max_digits and decimal_places (in a JSON Schema {MAX_DIGITS} and"
            f" {DECIMAL_PLACES}) to fewer."
        )
    return max(digits, places), places


def branches_at(schema: Schema, path: tuple[str, ...]) -> list[Schema]:
    """Return the schemas that a value at `path` may match."""
    nodes = [schema]
    for depth, name in enumerate(path):
        branches = [branch for node in nodes for branch in _branches(node, schema)]
        nodes = [branch["properties"][name] for branch in branches if name in branch.get("properties", ())]
        if not nodes:
            known = sorted({known for branch in branches for known in branch.get("properties", ())})
            raise OutputTypeError(
                f"The output type has no property {'.'.join(path[: depth + 1])!r}. There are: "
                f"{', '.join(known) or 'none'}."
            )
    return [branch for node in nodes for branch in _branches(node, schema)]


def is_always_filled(schema: Schema, path: tuple[str, ...]) -> bool:
    """Return whether every valid answer has a value other than null at `path`."""
    nodes = [schema]
    for name in path:
        branches = [branch for node in nodes for branch in _branches(node, schema)]
        if not all(
            name in branch.get("required", ()) and name in branch.get("properties", ()) for branch in branches
        ):
            return False
        nodes = [branch["properties"][name] for branch in branches]
    return not any(_may_be_null(branch) for node in nodes for branch in _branches(node, schema))


def string_enum(schema: Schema) -> tuple[str, ...] | None:
    """Return the labels if an answer is one text of a fixed few."""
    values = schema.get("enum")
    if isinstance(values, list) and values and all(isinstance(value, str) for value in values):
        return tuple(values)
    return None


def closed_values(schema: Schema, path: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return the texts or booleans that are valid at `path`, by name. Returns None if they are not a fixed few."""
    found: dict[str, None] = {}
    for branch in branches_at(schema, path) if schema else ({},):
        values = [branch["const"]] if "const" in branch else branch.get("enum")
        if values is None and branch.get("type") == "boolean":
            values = [True, False]
        if values is None and branch.get("type") == "null":
            continue
        if values is None or not all(value is None or isinstance(value, bool | str) for value in values):
            return None
        found |= {
            str(value).lower() if isinstance(value, bool) else value: None
            for value in values
            if value is not None
        }
    return tuple(found)


def _branches(node: Any, root: Schema, depth: int = 0) -> Iterator[Schema]:
    """Yield the schemas that a value may match, with references resolved and unions split."""
    if not isinstance(node, Mapping) or depth > 50:  # 50: a chain of references that never ends
        yield {}
        return
    if "$ref" in node:
        yield from _branches(resolve(node["$ref"], root), root, depth + 1)
        return
    union = (
        node.get("anyOf") or node.get("oneOf") or (node.get("allOf") if "properties" not in node else None)
    )
    if not union:
        yield node
        return
    for branch in union:
        yield from _branches(branch, root, depth + 1)


def _kinds(node: Schema) -> set[ColumnType]:
    values = [node["const"]] if "const" in node else node.get("enum")
    if values is not None:
        return {_kind_of_value(value) for value in values if value is not None}
    kinds = node.get("type", "any")
    names: list[str] = kinds if isinstance(kinds, list) else [kinds]
    if node.get("format") == DECIMAL and {*names} <= {"string", "number", "null"}:
        return {ColumnType.DECIMAL}
    if names == ["string"] and node.get("format") in _FORMATS:
        return {_FORMATS[node["format"]]}
    return {_SCALARS.get(name, ColumnType.JSON) for name in names if name != "null"}


def _may_be_null(node: Schema) -> bool:
    values = [node["const"]] if "const" in node else node.get("enum")
    if values is not None:
        return None in values
    kinds = node.get("type", "null")  # without a type it may be anything
    return "null" in ([kinds] if isinstance(kinds, str) else kinds)


def _kind_of_value(value: object) -> ColumnType:
    if isinstance(value, bool):
        return ColumnType.BOOLEAN
    if isinstance(value, int):
        return ColumnType.INTEGER
    if isinstance(value, float):
        return ColumnType.NUMBER
    return ColumnType.STRING if isinstance(value, str) else ColumnType.JSON
