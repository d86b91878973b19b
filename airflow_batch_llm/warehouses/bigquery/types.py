"""Read BigQuery's types into Arrow, and stage Arrow columns.

A load job takes no Parquet text into a JSON column: JSON is staged as text and parsed when it is published, and bytes
travel the same way, as base64. A NULL array lands as an empty one, since BigQuery has no other.
"""

from __future__ import annotations

import datetime as dt
import decimal
from base64 import b64encode
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from airflow_batch_llm.core.model import ColumnType
from airflow_batch_llm.warehouses.base import ARROW_TYPES
from airflow_batch_llm.warehouses.bigquery.registration import DIALECT
from airflow_batch_llm.warehouses.kind import ColumnKind, of_arrow

if TYPE_CHECKING:
    from google.cloud.bigquery import SchemaField

#: The REST interface's name of a type, where a statement names it otherwise.
_STANDARD_NAMES = {"INTEGER": "INT64", "FLOAT": "FLOAT64", "BOOLEAN": "BOOL", "STRUCT": "RECORD"}

_READ_TYPES: dict[str, pa.DataType] = {
    "INT64": pa.int64(),
    "FLOAT64": pa.float64(),
    "BOOL": pa.bool_(),
    "BYTES": pa.binary(),
    "DATE": pa.date32(),
    "DATETIME": pa.timestamp("us"),
    "TIMESTAMP": ARROW_TYPES[ColumnType.TIMESTAMP],
    "TIME": pa.time64("us"),
    "NUMERIC": pa.decimal128(38, 9),
    "BIGNUMERIC": pa.decimal256(76, 38),
    "JSON": ARROW_TYPES[ColumnType.JSON],
}


def existing_types(columns: Iterable[SchemaField]) -> dict[str, str]:
    """Return the columns of a table that is there. What no answer can be written to has a type that no dialect knows."""
    return {column.name: _existing_type(column) for column in columns}


def _existing_type(column: SchemaField) -> str:
    name = _STANDARD_NAMES.get(column.field_type, column.field_type)
    if name == "RECORD":
        name = f"RECORD of {len(column.fields)} fields"
    if column.mode != "REPEATED":
        return name
    return f"ARRAY<{name}>" if name == "FLOAT64" else f"REPEATED {name}"


def schema_field(field: pa.Field) -> SchemaField:
    """Return the column that is created for an Arrow field."""
    from google.cloud.bigquery import SchemaField

    name = DIALECT.column_type(field.type)
    if name.startswith("ARRAY<"):
        return SchemaField(field.name, name[len("ARRAY<") : -1], mode="REPEATED")
    return SchemaField(field.name, name)


def read_schema(columns: Iterable[SchemaField]) -> pa.Schema:
    """Return the Arrow schema of a result, known before its first row."""
    return pa.schema([_read_field(column) for column in columns])


def _read_field(column: SchemaField) -> pa.Field:
    name = _STANDARD_NAMES.get(column.field_type, column.field_type)
    if name == "RECORD":
        kind: pa.DataType = pa.struct([_read_field(member) for member in column.fields])
    else:
        kind = _READ_TYPES.get(name, pa.string())
    return pa.field(column.name, pa.list_(kind) if column.mode == "REPEATED" else kind)


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return a batch as the client library made it, in the types that were announced."""
    columns = [_cast(batch.column(at), field.type) for at, field in enumerate(schema)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if column.type.equals(kind):
        return column
    if isinstance(kind, pa.JsonType):
        return pa.ExtensionArray.from_storage(kind, column.cast(kind.storage_type))
    if pa.types.is_nested(kind) and "json" in str(kind):  # a cast does not reach an extension inside
        return pa.array(column.to_pylist(), kind)
    return column.cast(kind)


def staged_field(field: pa.Field, name: str) -> SchemaField:
    """Return the column of a staging table for an Arrow field."""
    from google.cloud.bigquery import SchemaField

    if of_arrow(field.type) is ColumnKind.VECTOR:
        return SchemaField(name, "FLOAT64", mode="REPEATED")
    return SchemaField(name, _staged_name(field.type))


def staged_type(kind: pa.DataType) -> pa.DataType:
    """Return the Arrow type in which a column is written to the staged file."""
    if of_arrow(kind) is ColumnKind.VECTOR:
        return pa.list_(pa.float64())
    return _READ_TYPES.get(_staged_name(kind), pa.string())


def _staged_name(kind: pa.DataType) -> str:
    if of_arrow(kind) in (ColumnKind.JSON, ColumnKind.BINARY):
        return "STRING"
    return DIALECT.column_type(kind)


def staged_column(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return a column, as the dialect has it plain, in the type of the staged file."""
    if of_arrow(kind) is ColumnKind.BINARY:
        texts = [None if value is None else b64encode(value).decode() for value in column.to_pylist()]
        return pa.array(texts, pa.string())
    return column.cast(staged_type(kind), safe=False)


def gathered(column: str, kind: pa.DataType, wanted: str) -> str:
    """Return the expression that turns a staged column back into the target's type."""
    if wanted == "JSON":
        # a number with more digits than a double holds is rounded: it must not stop every other row
        return f"PARSE_JSON({column}, wide_number_mode=>'round')"
    if of_arrow(kind) is ColumnKind.BINARY:
        return f"FROM_BASE64({column})"
    if of_arrow(kind) is ColumnKind.JSON or wanted == DIALECT.column_type(kind):
        return column
    return f"CAST({column} AS {wanted})"


def parameter(name: str | None, value: Any) -> Any:
    """Return a query parameter whose BigQuery type follows from the Python value."""
    from google.cloud import bigquery

    if isinstance(value, list | tuple):
        kind = _parameter_type(next((item for item in value if item is not None), ""))
        return bigquery.ArrayQueryParameter(name, kind, list(value))
    return bigquery.ScalarQueryParameter(name, _parameter_type(value), value)


def _parameter_type(value: Any) -> str:
    if isinstance(value, dt.datetime):
        return "TIMESTAMP" if value.tzinfo else "DATETIME"
    kinds: tuple[tuple[type, str], ...] = (
        (bool, "BOOL"),
        (int, "INT64"),
        (float, "FLOAT64"),
        (decimal.Decimal, "BIGNUMERIC"),
        (bytes, "BYTES"),
        (dt.date, "DATE"),
        (dt.time, "TIME"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), "STRING")
