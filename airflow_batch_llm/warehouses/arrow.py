"""Convert between Python's values, a cursor's rows and Arrow, for every database."""

import json
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import accumulate
from typing import Any
from uuid import UUID

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from airflow_batch_llm.core.value import duration_text
from airflow_batch_llm.errors import SourceError
from airflow_batch_llm.warehouses.dialect import Dialect
from airflow_batch_llm.warehouses.kind import ColumnKind, of_arrow

_EPOCH = datetime.fromtimestamp(0, UTC)


#: The rows that are read from a file at once, and their bytes.
_ROWS_AT_ONCE, _BYTES_AT_ONCE = 16_384, 4 << 20
#: The rows that are written together, in bytes. The file's writer remembers a kilobyte for each column of such a group.
_GROUP_BYTES = 12 << 20


def parquet_batches(file: Any, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the rows of an open Parquet file, fewer at once where they are large. `columns` are the wanted ones, or all."""
    metadata = file.metadata
    paths = [metadata.schema.column(at).path for at in range(metadata.num_columns)]
    wanted = [
        at
        for at, path in enumerate(paths)
        if columns is None or path in columns or path.partition(".")[0] in columns
    ]
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    size = sum(group.column(at).total_uncompressed_size for group in groups for at in wanted)
    step = rows_that_fit(metadata.num_rows, size)
    return cut(file.iter_batches(step, columns=columns, use_threads=False))


def rows_that_fit(rows: int, size: int) -> int:
    """Return the number of rows that fit into memory together, given the size in bytes of a number of them."""
    return max(1, min(_ROWS_AT_ONCE, _BYTES_AT_ONCE * rows // max(1, size)))


def cut(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield the same rows in batches that are small enough to process in memory."""
    for batch in batches:
        step = rows_that_fit(batch.num_rows, batch.nbytes)
        yield from (batch.slice(first, step) for first in range(0, batch.num_rows, step))


class RowGroups:
    """Writes rows to a Parquet file in groups. The file's own writer would hold a million rows until they are a group."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._group: list[pa.RecordBatch] = []
        self._rows = self._size = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Write rows, together with those that come next if they are few."""
        self._group.append(batch)
        self._rows, self._size = self._rows + batch.num_rows, self._size + batch.nbytes
        if self._rows >= _ROWS_AT_ONCE or self._size > _GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is left. A group of no rows would cost as much of the writer's memory as another."""
        if self._rows:
            self._writer.write_table(pa.Table.from_batches(self._group))
        self._group, self._rows, self._size = [], 0, 0


class SortedReader:
    """A reader that holds the rows of a sorted stream that were read and not yet taken: one batch at most."""

    def __init__(self, batches: Iterable[pa.RecordBatch], column: str, schema: pa.Schema) -> None:
        self._batches = iter(batches)
        self._column = column
        self._schema = schema
        self._rest: pa.RecordBatch | None = None

    def below(self, value: int) -> pa.Table:
        """Return the rows with less than this in the sorted column that were not taken before."""
        return pa.Table.from_batches(list(self.batches_below(value)), self._schema)

    def batches_below(self, value: int) -> Iterator[pa.RecordBatch]:
        """Yield the same rows batch by batch. They are taken once the last batch is."""
        while (batch := self._next()) is not None:
            count = pc.sum(pc.less(batch.column(self._column), int64_scalar(value)).cast(pa.int64())).as_py()
            if count < batch.num_rows:
                self._rest = batch.slice(count)
            if count:
                yield batch.slice(0, count)
            if self._rest is not None:
                return

    def _next(self) -> pa.RecordBatch | None:
        if self._rest is not None:
            batch, self._rest = self._rest, None
            return batch
        return next((batch for batch in self._batches if batch.num_rows), None)


def answer_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Return the values of an answer's column. `pa.array` would import pandas, which costs 0.2 CPU seconds."""
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, answer_array(values, kind.storage_type))
    if kind == pa.string():
        return string_array(values)
    if kind == pa.float64():
        return float64_array(values)
    if kind == pa.int64():
        return _fixed(values, kind, array("q", [value or 0 for value in values]))
    if kind == pa.bool_():
        return _fixed(values, pa.uint8(), bytes(map(bool, values))).cast(kind)
    if kind == _NUMBERS:
        ends = array("i", accumulate((len(value or ()) for value in values), initial=0))
        numbers = float64_array([number for value in values for number in value or ()])
        offsets = pa.Array.from_buffers(pa.int32(), len(ends), [None, pa.py_buffer(ends)])
        return pa.ListArray.from_arrays(offsets, numbers, mask=bool_array(value is None for value in values))
    # Decimals, dates and times.
    return string_array([None if value is None else str(value) for value in values]).cast(kind)


def int64_array(values: Iterable[int]) -> pa.Int64Array:
    """Whole numbers, none of them NULL."""
    data = array("q", values)
    return pa.Array.from_buffers(pa.int64(), len(data), [None, pa.py_buffer(data)])


def int64_scalar(value: int) -> pa.Int64Scalar:
    """Return a whole number."""
    return int64_array([value])[0]


def bool_array(values: Iterable[bool]) -> pa.BooleanArray:
    """Truth values, none of them NULL."""
    data = bytes(values)
    return pa.Array.from_buffers(pa.uint8(), len(data), [None, pa.py_buffer(data)]).cast(pa.bool_())


def float64_array(values: Sequence[float | None]) -> pa.DoubleArray:
    """Numbers with fractions."""
    return _fixed(values, pa.float64(), array("d", [0.0 if value is None else value for value in values]))


def string_array(values: Sequence[str | None]) -> pa.StringArray:
    """Texts."""
    present = _present(values)
    given = [value or "" for value in values]
    if all(map(str.isascii, given)):
        return _array("".join(given).encode(), map(len, given), present, pa.string())
    return _joined([value.encode() for value in given], present, pa.string())


def string_scalar(value: str) -> pa.StringScalar:
    """Return a text."""
    return string_array([value])[0]


def timestamp_scalar(seconds: float) -> pa.TimestampScalar:
    """Return a time, from seconds since the epoch."""
    since = datetime.fromtimestamp(seconds, UTC) - _EPOCH
    return int64_array([since // timedelta(microseconds=1)]).view(pa.timestamp("us", tz="UTC"))[0]


def binary_array(values: Sequence[bytes]) -> pa.BinaryArray:
    """Strings of bytes, none of them NULL."""
    return _joined(values, None, pa.binary())


def quotable(column: pa.Array) -> list[Any]:
    """Return the values for a driver that writes them into the statement: times with a T, and bytes as a bytearray.

    A session may read a time without the T by its language, and a driver may quote bytes as a text.
    """
    values: list[Any] = column.to_pylist()
    if pa.types.is_temporal(column.type):
        return [None if time is None else time.isoformat() for time in values]
    if of_arrow(column.type) is ColumnKind.BINARY:
        return [None if value is None else bytearray(value) for value in values]
    return values


def _joined(values: Sequence[bytes], present: pa.Buffer | None, kind: pa.DataType) -> pa.Array:
    return _array(b"".join(values), map(len, values), present, kind)


def _array(data: bytes, lengths: Iterable[int], present: pa.Buffer | None, kind: pa.DataType) -> pa.Array:
    ends = array("i", accumulate(lengths, initial=0))
    return pa.Array.from_buffers(kind, len(ends) - 1, [present, pa.py_buffer(ends), pa.py_buffer(data)])


def _fixed(values: Sequence[object], kind: pa.DataType, data: Any) -> pa.Array:
    """Return an array of values of one fixed size from `data`, in which a NULL's bytes may be anything."""
    return pa.Array.from_buffers(kind, len(values), [_present(values), pa.py_buffer(data)])


def _present(values: Sequence[object]) -> pa.Buffer | None:
    """Return the bits that say which values are not NULL, or None if none is NULL."""
    if None not in values:
        return None
    return bool_array(value is not None for value in values).buffers()[1]


_BATCH_BYTES = 16 * 1024 * 1024
_MOST_ROWS = 20_000
_FIRST_ROWS = 500

Fetch = Callable[[int], Sequence[Sequence[Any]]]
Make = Callable[[Sequence[Sequence[Any]], pa.Schema], pa.RecordBatch]


def batches(fetch: Fetch, schema: pa.Schema, make: "Make | None" = None) -> Iterator[pa.RecordBatch]:
    """Yield all rows that `fetch(n)` gives, until it gives none. The size of rows seen so far sets how many come next."""
    make = make or record_batch
    count = _FIRST_ROWS
    while rows := fetch(count):
        batch = make(rows, schema)
        yield batch
        count = max(1, min(_MOST_ROWS, _BATCH_BYTES * len(rows) // max(batch.nbytes, 1)))


def record_batch(rows: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.RecordBatch:
    """Return rows as a record batch. A value that is not of its column's type is an error that names the column."""
    # One pass a column: zip(*rows) would make an iterator for every row.
    arrays = [typed_array([row[place] for row in rows], field) for place, field in enumerate(schema)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def typed_array(values: Sequence[Any], field: pa.Field) -> pa.Array:
    """Return a column of values as a driver gives them, in its type."""
    with suppress(pa.ArrowException, OverflowError, TypeError, ValueError):
        if isinstance(field.type, pa.UuidType | pa.JsonType):
            return typed(pa.array(values, pa.string()), field.type)
        return pa.array(values, field.type)
    if pa.types.is_boolean(field.type) and all(value in (None, 0, 1) for value in values):
        return pa.array([None if value is None else bool(value) for value in values], field.type)
    if pa.types.is_string(field.type) and not any(isinstance(value, bytes) for value in values):
        return pa.array([None if value is None else _text(value) for value in values], pa.string())
    raise SourceError(
        f"The column {field.name} was read as {field.type}, and some of its rows hold something else. "
        "CAST it to one type in the source's query."
    )


def _text(value: Any) -> str:
    # As databases write a number: never with an exponent.
    return format(value, "f") if isinstance(value, Decimal) else str(value)


REPLACEMENT = "\ufffd"
_NUMBERS = pa.list_(pa.float64())
_ESCAPED = r"\\u(0000|[dD][89a-fA-F])"  # NUL or half of a surrogate pair, escaped
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_PLAIN = {ColumnKind.STRING: pa.string(), ColumnKind.JSON: pa.string(), ColumnKind.UUID: pa.string()}


def plain_batch(batch: pa.RecordBatch, key: frozenset[str], dialect: Dialect) -> pa.RecordBatch:
    """Return the batch with the same columns in the types that staging uses."""
    arrays = [
        _plain(batch.column(position), field, dialect, key=field.name in key)
        for position, field in enumerate(batch.schema)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=plain_schema(batch.schema, dialect))


def plain_schema(schema: pa.Schema, dialect: Dialect) -> pa.Schema:
    """Return the schema of `plain_batch`."""
    return pa.schema([pa.field(field.name, _plain_type(field.type, dialect)) for field in schema])


def refuse_padded_keys(batch: pa.RecordBatch, key: Sequence[str], dialect: Dialect) -> None:
    """Refuse keys that end in blanks if the database ignores such blanks: two keys would be one row."""
    for name in key if dialect.pads_text else ():
        column = batch.column(name)
        if pa.types.is_string(column.type) and pc.any(pc.ends_with(column, " ")).as_py():
            raise SourceError(
                f"The key column {name} holds texts that end in blanks, and {dialect.title} takes 'a' and 'a ' "
                "for the same. Cut the blanks off in the source's query, for instance with RTRIM."
            )


def typed(array: pa.Array, type_: pa.DataType) -> pa.Array:
    """Text as a database gives it for JSON and UUIDs, in the type that says so."""
    if array.type == type_:
        return array
    if isinstance(type_, pa.UuidType):
        packed = [
            None if text is None else bytes.fromhex(text.replace("-", "")) for text in array.to_pylist()
        ]
        array = pa.array(packed, type_.storage_type)
    return pa.ExtensionArray.from_storage(type_, array)


def _plain_type(type_: pa.DataType, dialect: Dialect) -> pa.DataType:
    kind = of_arrow(type_)
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind is ColumnKind.VECTOR:
        return pa.string() if dialect.vector_brackets else _NUMBERS
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    if pa.types.is_uint64(type_):
        return pa.decimal128(20, 0)
    if pa.types.is_decimal(type_) and type_.precision > dialect.decimal_digits:
        return pa.decimal128(dialect.decimal_digits, type_.scale)
    if kind is ColumnKind.BINARY:
        return pa.binary()
    if kind is ColumnKind.TIMESTAMP:
        return pa.timestamp("us")
    if kind is ColumnKind.TIMESTAMPTZ:
        return pa.timestamp("us", tz="UTC" if dialect.keeps_zone else None)
    return type_


def _plain(column: pa.Array, field: pa.Field, dialect: Dialect, *, key: bool) -> pa.Array:
    kind = of_arrow(field.type)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if kind is ColumnKind.JSON:
        return _storable_json(json_text(column))
    if kind is ColumnKind.VECTOR:
        numbers = column.cast(_NUMBERS)
        return _vector_text(numbers, dialect.vector_brackets) if dialect.vector_brackets else numbers
    if kind is ColumnKind.UUID:
        return pa.array([_uuid_text(value) for value in column.to_pylist()], pa.string())
    if kind is ColumnKind.STRING:
        return _storable_text(plain_text(column), field.name, dialect, key=key)
    if kind is ColumnKind.DECIMAL:
        return _decimals(column, field, dialect)
    return column.cast(_plain_type(field.type, dialect), safe=False)


def _decimals(column: pa.Array, field: pa.Field, dialect: Dialect) -> pa.Array:
    with suppress(pa.ArrowInvalid):
        return column.cast(_plain_type(field.type, dialect))
    raise SourceError(
        f"The column {field.name} holds numbers with more than {dialect.decimal_digits} digits, which"
        f" {dialect.title} cannot store. Make it a text in the source's query: CAST({field.name} AS VARCHAR)."
    )


def plain_text(column: pa.Array) -> pa.Array:
    """Values as text; an interval in the words of ISO 8601."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_duration(column.type):
        column = column.cast(pa.duration("us"), safe=False)
        return pa.array(
            [None if value is None else duration_text(value) for value in column.to_pylist()], pa.string()
        )
    if pa.types.is_interval(column.type):
        return pa.array(
            [None if value is None else _interval_text(*value) for value in column.to_pylist()], pa.string()
        )
    return column.cast(pa.string())


def _interval_text(months: int, days: int, nanoseconds: int) -> str:
    date = "".join(f"{count}{unit}" for count, unit in ((months, "M"), (days, "D")) if count)
    time = f"T{(Decimal(nanoseconds) / 10**9).normalize():f}S" if nanoseconds or not date else ""
    return f"P{date}{time}"


def _storable_text(column: pa.Array, name: str, dialect: Dialect, *, key: bool) -> pa.Array:
    if dialect.keeps_nul or not pc.any(pc.match_substring(column, "\0")).as_py():
        return column
    if key:
        raise SourceError(
            f"The key column {name} holds texts with the character NUL, which {dialect.title} cannot store. "
            "Leave it out in the source's query, for instance with REPLACE."
        )
    return pc.replace_substring(column, "\0", REPLACEMENT)


def _uuid_text(value: UUID | bytes | None) -> str | None:
    return None if value is None else str(value if isinstance(value, UUID) else UUID(bytes=value))


def json_text(column: pa.Array) -> pa.Array:
    """Return JSON, and nested values that become JSON in a table, as text."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if not pa.types.is_nested(column.type):
        return column.cast(pa.string())
    texts = [
        None if value is None else orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
        for value in column.to_pylist(maps_as_pydicts="lossy")
    ]
    return pa.array(texts, pa.string())


def _storable_json(column: pa.Array) -> pa.Array:
    if not pc.any(pc.match_substring(column, "\\u")).as_py():
        return column
    suspect = pc.fill_null(pc.match_substring_regex(column, _ESCAPED), fill_value=False)
    if not pc.any(suspect).as_py():
        return column
    mended = [_mend(text.as_py()) for text in column.filter(suspect)]
    return pc.replace_with_mask(column, suspect, pa.array(mended, pa.string()))


def _mend(text: str) -> str:
    # The standard library reads a lone surrogate where orjson refuses it.
    return orjson.dumps(_without_unstorable(json.loads(text))).decode()


def _without_unstorable(value: Any) -> Any:
    if isinstance(value, str):
        return _UNSTORABLE.sub(REPLACEMENT, value)
    if isinstance(value, list):
        return [_without_unstorable(item) for item in value]
    if isinstance(value, dict):
        return {_without_unstorable(name): _without_unstorable(item) for name, item in value.items()}
    return value


def _vector_text(column: pa.Array, brackets: str) -> pa.Array:
    texts = column.cast(pa.list_(pa.string()))
    filled = pa.ListArray.from_arrays(texts.offsets, texts.values.fill_null("null"), mask=texts.is_null())
    return pc.binary_join_element_wise(brackets[0], pc.binary_join(filled, ","), brackets[1], "")
