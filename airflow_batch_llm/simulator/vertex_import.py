"""Vertex's import of an input file, which goes through something like a BigQuery load.

What such a table cannot hold fails the whole job with code 3: deep nesting, keys that are no column names, empty
objects, a key path with two types, null in a list or a schema. Row keys that look like numbers become numbers.
"""

import re
from pathlib import Path
from typing import Any

import orjson

from airflow_batch_llm.simulator.bodies import MEGABYTE, lines, parse

IMPORT_FAILED = 3
_DEEPEST = 15
_MOST_ROWS = 200_000
_MOST_BYTES = 1 << 30
_COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_SCHEMAS = ("responseSchema", "responseJsonSchema", "response_schema", "response_json_schema")


class ImportFailure(Exception):
    """The file cannot be imported."""


def import_file(source: Path, target: Path) -> int:
    """Check the rows and write them as Vertex will echo them. Returns how many there are."""
    if source.stat().st_size > _MOST_BYTES:
        raise ImportFailure("the input is larger than 1 GB")
    columns = _Columns()
    number = 0
    with target.open("wb", buffering=MEGABYTE) as file:
        for number, line in enumerate(lines(source), 1):
            if number > _MOST_ROWS:
                raise ImportFailure(f"the input has more than {_MOST_ROWS} rows")
            row = _row(line, number)
            try:
                columns.add(row)
            except ImportFailure as failure:
                raise ImportFailure(f"{failure} (row {number})") from None
            file.write(orjson.dumps(_coerced(row)) + b"\n")
    if number == 0:
        raise ImportFailure("the input is empty")
    return number


def _row(line: bytes, number: int) -> dict[str, Any]:
    try:
        row = parse(line)
    except ValueError as error:
        raise ImportFailure(f"row {number} is not JSON") from error
    if not isinstance(row, dict) or not isinstance(row.get("request"), dict):
        raise ImportFailure(f"row {number} has no request")
    return row


def _coerced(row: dict[str, Any]) -> dict[str, Any]:
    return {
        key: orjson.loads(value.lstrip("0") or "0" if value.isdigit() else value)
        if isinstance(value, str) and _NUMBER.fullmatch(value)
        else value
        for key, value in row.items()
    }


class _Columns:
    """The type of every key path that was met."""

    def __init__(self) -> None:
        self._types: dict[str, str] = {}
        self._legal: set[str] = set()

    def add(self, row: dict[str, Any]) -> None:
        self._object(row, "", 1)

    def _object(self, value: dict[str, Any], path: str, depth: int) -> None:
        if depth > _DEEPEST:
            raise ImportFailure(f"nesting is deeper than {_DEEPEST} levels")
        if not value:
            raise ImportFailure(f"the object at {path} is empty")
        for key, part in value.items():
            if key not in self._legal:
                if not _COLUMN.fullmatch(key):
                    raise ImportFailure(f"{key!r} is not a legal column name")
                self._legal.add(key)
            self._value(part, f"{path}.{key}", depth)

    def _value(self, value: Any, path: str, depth: int) -> None:
        kind = _kind(value)
        if kind == "null":
            if any(f".{name}." in path for name in _SCHEMAS):
                raise ImportFailure(f"null at {path}")
            return
        if self._types.setdefault(path, kind) != kind:
            raise ImportFailure(f"{path} is both {self._types[path]} and {kind}")
        if kind == "object":
            self._object(value, path, depth + 1)
        elif kind == "array":
            for part in value:
                if part is None:
                    raise ImportFailure(f"null in the list at {path}")
                self._value(part, f"{path}[]", depth)


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"
