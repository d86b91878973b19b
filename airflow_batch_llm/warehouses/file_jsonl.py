"""JSON Lines, a piece of the file at a time.

A line ends at the byte `\\n` and nowhere else. A field may be missing from any line, so the columns are those of the
whole file, which is read once for its types and once for its rows. What is nested is kept as JSON.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson
import pyarrow as pa

from airflow_batch_llm.core.model import ColumnType
from airflow_batch_llm.errors import SourceError
from airflow_batch_llm.warehouses.base import ARROW_TYPES

#: Bytes read at once; a longer line is put together from several pieces.
_PIECE = 8 << 20
_BATCH_ROWS = 8_192
_BATCH_BYTES = 16 << 20


class _Kind(StrEnum):
    """What the values of a field have been so far."""

    NULL = "null"
    BOOLEAN = "boolean"
    INTEGER = "integer"
    NUMBER = "number"
    STRING = "string"
    JSON = "json"  # an object or a list


_KINDS: dict[type, _Kind] = {
    type(None): _Kind.NULL,
    bool: _Kind.BOOLEAN,
    int: _Kind.INTEGER,
    float: _Kind.NUMBER,
    str: _Kind.STRING,
    dict: _Kind.JSON,
    list: _Kind.JSON,
}

_TYPES: dict[_Kind, pa.DataType] = {
    _Kind.NULL: pa.null(),
    _Kind.BOOLEAN: pa.bool_(),
    _Kind.INTEGER: pa.int64(),
    _Kind.NUMBER: pa.float64(),
    _Kind.STRING: pa.string(),
    _Kind.JSON: ARROW_TYPES[ColumnType.JSON],
}

_NUMBERS = frozenset({_Kind.INTEGER, _Kind.NUMBER})


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonlFile:
    """Reads one file of JSON objects, a line each."""

    column_types: Mapping[str, pa.DataType] = field(default_factory=dict)

    def schema(self, stream: Any) -> pa.Schema:
        """Every field of any line; none where the file is empty."""
        kinds: dict[str, _Kind] = {}
        for number, line in _lines(stream):
            for name, value in _record(line, number).items():
                kind = _KINDS[type(value)]
                before = kinds.setdefault(name, kind)
                if kind is not before and name not in self.column_types:
                    kinds[name] = _together(name, number, before, kind)
        return pa.schema([(name, self.column_types.get(name, _TYPES[kind])) for name, kind in kinds.items()])

    def batches(self, stream: Any, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """The rows in the columns of `schema`; what a line does not have is NULL."""
        records: list[dict[str, Any]] = []
        size = 0
        for number, line in _lines(stream):
            records.append(_record(line, number))
            size += len(line)
            if len(records) >= _BATCH_ROWS or size >= _BATCH_BYTES:
                yield _batch(records, schema)
                records, size = [], 0
        if records:
            yield _batch(records, schema)


def _lines(stream: Any) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, and their numbers, from 1."""
    number, rest = 0, b""
    while piece := stream.read(_PIECE):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            number += 1
            if not line.isspace() and line:
                yield number, line
    if rest and not rest.isspace():
        yield number + 1, rest


def _record(line: bytes, number: int) -> dict[str, Any]:
    if number == 1:
        line = line.removeprefix(b"\xef\xbb\xbf")  # some editors begin a file so
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        record = None
    if not isinstance(record, dict):
        raise SourceError(f"line {number} is no JSON object.")
    return record


def _together(name: str, number: int, before: _Kind, kind: _Kind) -> _Kind:
    """The kind that holds the values of both."""
    both = {before, kind} - {_Kind.NULL}
    if len(both) == 1:
        return both.pop()
    if both == _NUMBERS:
        return _Kind.NUMBER
    if _Kind.JSON in both:
        return _Kind.JSON
    raise SourceError(
        f"field {name!r} is a {kind} in line {number} and a {before} before. "
        f"Set its type: column_types={{{name!r}: …}}, a string for instance."
    )


def _batch(records: list[dict[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    columns = [_column([record.get(column.name) for record in records], column) for column in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _column(values: list[Any], column: pa.Field) -> pa.Array:
    if isinstance(column.type, pa.JsonType):
        texts = [None if value is None else orjson.dumps(value).decode() for value in values]
        return pa.ExtensionArray.from_storage(column.type, pa.array(texts, pa.string()))
    if pa.types.is_string(column.type):
        values = [value if value is None or isinstance(value, str) else _text(value) for value in values]
    try:
        # what is text in JSON may be asked for as a date or a number
        typed = pa.array(values) if any(isinstance(value, str) for value in values) else values
        return typed.cast(column.type) if isinstance(typed, pa.Array) else pa.array(typed, column.type)
    except (pa.ArrowException, OverflowError, TypeError):
        pass
    raise SourceError(f"field {column.name!r} holds a value that cannot be read as {column.type}.")


def _text(value: Any) -> str:
    return orjson.dumps(value).decode()
