"""Read one file of each format in pieces: CSV, JSON Lines, Parquet."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from io import BytesIO
from threading import Lock
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from airflow_batch_llm.core.model import ColumnType
from airflow_batch_llm.core.printing import counted
from airflow_batch_llm.errors import SourceError
from airflow_batch_llm.warehouses.arrow import parquet_batches
from airflow_batch_llm.warehouses.base import ARROW_TYPES

#: Sizes of a block, and so of the longest row, tried in turn.
_BLOCKS = (1 << 20, 8 << 20, 64 << 20)

_AT_COLUMN = re.compile(r"In CSV column #(\d+): (?!.*UTF8)")
_RAGGED = re.compile(r"Expected (\d+) columns, got (\d+)")
_TOO_LONG = "straddling"


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvFile:
    """Reads one CSV file with a header line."""

    column_types: Mapping[str, pa.DataType] = field(default_factory=dict)
    delimiter: str = ","

    def schema(self, stream: Any) -> pa.Schema:
        """Return the header's columns, in the types of the first rows, or no columns if the file is empty."""
        complaint = ""
        for block in _BLOCKS[1:]:
            stream.seek(0)
            head = stream.read(2 * block)  # a row may reach into the second block
            if not head:
                return pa.schema([])
            try:
                with self._open(BytesIO(head), self.column_types, block) as rows:
                    return self._readable(rows.schema)
            except pa.ArrowException as error:
                complaint = str(error)
            if _TOO_LONG not in complaint:
                break
        raise SourceError(_said(complaint, []))

    def batches(self, stream: Any, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """Yield the rows in the columns of `schema`; what the file does not have is NULL."""
        if not stream.read(1):
            return
        complaint, given = "", 0
        for block in _BLOCKS:
            skip = given
            try:
                for batch in self._blocks(stream, schema, block):
                    fresh = batch.slice(min(skip, batch.num_rows))
                    skip -= batch.num_rows - fresh.num_rows
                    given += fresh.num_rows
                    yield fresh
                return
            except pa.ArrowException as error:
                complaint = str(error)
            if _TOO_LONG not in complaint:
                break
        raise SourceError(_said(complaint, self._header(stream)))

    def _blocks(self, stream: Any, schema: pa.Schema, block: int) -> Iterator[pa.RecordBatch]:
        stream.seek(0)
        types = {column.name: column.type for column in schema}
        turn = _Turn(stream)
        try:
            with self._open(turn, types, block, include=schema.names) as rows:
                for batch in rows:
                    yield batch.cast(schema)
        finally:
            turn.end()

    def _readable(self, schema: pa.Schema) -> pa.Schema:
        """Return the schema, unless Arrow found in a text what is no UTF-8, and took it for bytes."""
        for column in schema:
            if pa.types.is_binary(column.type) and column.name not in self.column_types:
                raise SourceError(f"column {column.name!r} is not written in UTF-8.")
        return schema

    def _header(self, stream: Any) -> list[str]:
        names: list[str] = self.schema(stream).names
        return names

    def _open(
        self,
        stream: Any,
        types: Mapping[str, pa.DataType],
        block: int,
        *,
        include: list[str] | None = None,
    ) -> Any:
        return pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(block_size=block, use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict(types),
                include_columns=include,
                include_missing_columns=include is not None,
            ),
        )


class _Turn:
    """The stream, for one reader of Arrow's only.

    Arrow reads ahead in threads, which go on for a while when the reader has failed. Without this they would take bytes
    from the next reader of the same stream, and rows would be lost.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._lock = Lock()
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        """Read on, if it is still this reader's turn."""
        with self._lock:
            data: bytes = b"" if self.closed else self._stream.read(size)
            return data

    def end(self) -> None:
        """Wait for a read that goes on, and let none begin after it."""
        with self._lock:
            self.closed = True


def _said(complaint: str, header: list[str]) -> str:
    """Describe the fault of a file, without the value that is wrong."""
    column = _AT_COLUMN.search(complaint)
    if column and int(column[1]) < len(header):
        name = header[int(column[1])]
        return (
            f"column {name!r} has a later value that does not fit the type of its first rows. "
            f"Set its type: column_types={{{name!r}: …}}, a string for instance."
        )
    if column:
        return "a value is not of the type that column_types= asks for."
    if ragged := _RAGGED.search(complaint):
        return f"a row has {counted(int(ragged[2]), 'column')}, and the header {ragged[1]}."
    if "UTF8" in complaint:
        return "it is not written in UTF-8."
    if _TOO_LONG in complaint:
        return f"a row is longer than {_BLOCKS[-1] >> 20} MB, or a quotation mark is never closed."
    return "it is no CSV with a header line."


#: Bytes read at once; a longer line is put together from several pieces.
_PIECE = 8 << 20
_BATCH_ROWS = 8_192
_BATCH_BYTES = 16 << 20


class _Kind(StrEnum):
    """The kinds of value that a field has had so far."""

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
        """Return every field of any line; none where the file is empty."""
        kinds: dict[str, _Kind] = {}
        for number, line in _lines(stream):
            for name, value in _record(line, number).items():
                kind = _KINDS[type(value)]
                before = kinds.setdefault(name, kind)
                if kind is not before and name not in self.column_types:
                    kinds[name] = _together(name, number, before, kind)
        return pa.schema([(name, self.column_types.get(name, _TYPES[kind])) for name, kind in kinds.items()])

    def batches(self, stream: Any, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """Yield the rows in the columns of `schema`; what a line does not have is NULL."""
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
    """Yield the lines that are not blank, and their numbers, from 1."""
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
    """Return the kind that holds the values of both."""
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


#: A row group of more bytes is read through buffers of its columns, which hold this many bytes together.
_LARGE_GROUP, _BUFFERS, _SMALLEST_BUFFER = 64 << 20, 16 << 20, 64 << 10


def _parquet_file(stream: Any) -> pq.ParquetFile:
    """Open a file so that memory holds a row group only if that is small."""
    metadata = pq.read_metadata(stream)
    largest = max(
        (metadata.row_group(at).total_byte_size for at in range(metadata.num_row_groups)), default=0
    )
    buffer = max(_SMALLEST_BUFFER, _BUFFERS // max(1, metadata.num_columns)) if largest > _LARGE_GROUP else 0
    # Read ahead, the whole file would be in memory, whatever its row groups and the buffers are.
    return pq.ParquetFile(stream, metadata=metadata, buffer_size=buffer, pre_buffer=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParquetFile:
    """Reads one Parquet file. The file knows its types; others that are asked for are cast to."""

    column_types: Mapping[str, pa.DataType] = field(default_factory=dict)

    def schema(self, stream: Any) -> pa.Schema:
        """Return the file's columns."""
        found = pq.ParquetFile(stream).schema_arrow
        return pa.schema([(column.name, self.column_types.get(column.name, column.type)) for column in found])

    def batches(self, stream: Any, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """Yield the rows in the columns of `schema`; what the file does not have is NULL."""
        for batch in parquet_batches(_parquet_file(stream), schema.names):
            yield pa.RecordBatch.from_arrays(
                [_file_parquet_column(batch, wanted) for wanted in schema], schema=schema
            )


def _file_parquet_column(batch: pa.RecordBatch, wanted: pa.Field) -> pa.Array:
    if wanted.name not in batch.schema.names:
        return pa.nulls(batch.num_rows, wanted.type)
    try:
        return batch.column(wanted.name).cast(wanted.type)
    except pa.ArrowException:
        pass
    raise SourceError(f"column {wanted.name!r} holds a value that cannot be read as {wanted.type}.")
