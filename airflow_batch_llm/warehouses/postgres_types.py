"""PostgreSQL's types in Arrow's terms, and record batches in COPY's."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv as csv

from airflow_batch_llm.warehouses.kind import Kind, of_arrow

if TYPE_CHECKING:
    from psycopg import Column, ServerCursor

_BY_OID: dict[int, pa.DataType] = {
    16: pa.bool_(),
    17: pa.binary(),
    20: pa.int64(),
    21: pa.int16(),
    23: pa.int32(),
    114: pa.json_(pa.string()),
    700: pa.float32(),
    701: pa.float64(),
    1005: pa.list_(pa.int16()),
    1007: pa.list_(pa.int32()),
    1009: pa.list_(pa.string()),
    1015: pa.list_(pa.string()),
    1016: pa.list_(pa.int64()),
    1021: pa.list_(pa.float32()),
    1022: pa.list_(pa.float64()),
    1082: pa.date32(),
    1083: pa.time64("us"),
    1114: pa.timestamp("us"),
    1184: pa.timestamp("us", tz="UTC"),
    2950: pa.uuid(),
    3802: pa.json_(pa.string()),
}
_NUMERIC = 1700


def arrow_schema(description: "Sequence[Column]") -> pa.Schema:
    """The schema of a result. What has no type in Arrow, a number without a scale among it, is text."""
    return pa.schema([(column.name, _arrow_type(column)) for column in description])


def _arrow_type(column: "Column") -> pa.DataType:
    if column.type_code == _NUMERIC and column.precision is not None and column.precision <= 38:
        return pa.decimal128(column.precision, column.scale or 0)
    return _BY_OID.get(column.type_code, pa.string())


def csv_type(type_: pa.DataType) -> pa.DataType:
    """The type that Arrow reads from COPY's CSV for a column of a result. Bytes are left for psycopg to read."""
    if isinstance(type_, pa.BaseExtensionType):
        return pa.string()
    return pa.binary() if pa.types.is_nested(type_) else type_


def read_as_text(cursor: "ServerCursor[Any]", columns: "Sequence[Column]", schema: pa.Schema) -> None:
    """Let a cursor give the text that the server sends, for every column that is text with us or made of text."""
    from psycopg.types.string import TextLoader

    for column, type_ in zip(columns, schema.types, strict=True):
        # A number without a scale comes as a Decimal, since another column of the result may have one.
        if csv_type(type_) == pa.string() and column.type_code != _NUMERIC:
            cursor.adapters.register_loader(column.type_code, TextLoader)


def copy_rows(batch: pa.RecordBatch) -> memoryview:
    """A plain record batch as COPY … (FORMAT csv) reads it: texts quoted, NULL an empty field without quotes."""
    arrays = [_csv_column(column) for column in batch.columns]
    sink = pa.BufferOutputStream()
    csv.write_csv(
        pa.RecordBatch.from_arrays(arrays, names=batch.schema.names),
        sink,
        csv.WriteOptions(include_header=False, quoting_style="all_valid"),
    )
    return memoryview(sink.getvalue())


def _csv_column(column: pa.Array) -> pa.Array:
    kind = of_arrow(column.type)
    if kind is Kind.BINARY:
        texts: list[Any] = [None if value is None else "\\x" + value.hex() for value in column.to_pylist()]
        return pa.array(texts, pa.string())
    if kind is Kind.TIMESTAMPTZ:
        # Our sessions are in UTC, and to write the zone takes Arrow thirty times as long.
        return column.cast(pa.timestamp("us"))
    if kind in (Kind.DECIMAL, Kind.TIME) or pa.types.is_float16(column.type):
        return column.cast(pa.string())
    return column
