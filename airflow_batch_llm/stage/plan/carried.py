"""Convert key and carried columns between the source, the files of a run and the target, without a change of value.

A carried type is the one in which the target's tables take a column. Each column has it from planning to landing. A
stored type is that of the column in the files of a run. Parquet and the embedded database give stored types back bit
for bit, which they do not do for UUIDs, times, decimals and intervals.
"""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa

from airflow_batch_llm.core.request import canonical
from airflow_batch_llm.core.value import plain
from airflow_batch_llm.errors import SourceError
from airflow_batch_llm.warehouses.arrow import json_text, plain_text
from airflow_batch_llm.warehouses.kind import ColumnKind, fits, of_arrow

_CARRIED: dict[ColumnKind, pa.DataType] = {
    ColumnKind.STRING: pa.string(),
    ColumnKind.REAL: pa.float32(),
    ColumnKind.DATE: pa.date32(),
    ColumnKind.TIME: pa.time64("us"),
    ColumnKind.TIMESTAMP: pa.timestamp("us"),
    ColumnKind.TIMESTAMPTZ: pa.timestamp("us", tz="UTC"),
    ColumnKind.BINARY: pa.binary(),
    ColumnKind.UUID: pa.uuid(),
    ColumnKind.JSON: pa.json_(pa.string()),
    ColumnKind.VECTOR: pa.list_(pa.float64()),
}
#: The reason for which a column cannot be a key, by its kind.
_NO_KEYS = {
    ColumnKind.JSON: "equal values of it can be written in several ways",
    ColumnKind.VECTOR: "databases do not compare lists",
}


def carried_schema(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    """Return the carried types of these columns of a source."""
    return pa.schema([(name, _carried_type(schema.field(name).type)) for name in names])


def key_schema(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    """Return the carried types of a key's columns. Raises `SourceError` for a column that cannot be a key."""
    for name in names:
        type_ = schema.field(name).type
        reason = _NO_KEYS.get(of_arrow(type_))
        if pa.types.is_interval(type_) or pa.types.is_duration(type_):
            reason = "equal intervals can be written in several ways"
        if reason is not None:
            raise SourceError(
                f"The column {name!r} cannot be a key: it is {type_}, and {reason}. Choose another key, or make it a"
                f" text in source_sql: CAST({name} AS VARCHAR) AS {name}. Nothing was sent."
            )
    return carried_schema(schema, names)


def carried(array: pa.Array, type_: pa.DataType) -> pa.Array:
    """Return a source's column in its carried type. Instants finer than a microsecond are cut, as tables cut them."""
    if array.type == type_:
        return array
    if isinstance(array, pa.DictionaryArray):
        array = array.dictionary_decode()
    kind = of_arrow(array.type)
    if kind is ColumnKind.JSON:
        return pa.ExtensionArray.from_storage(type_, json_text(array))
    if kind is ColumnKind.STRING:
        return plain_text(array)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    return array.cast(type_, safe=False)


def stored_schema(schema: pa.Schema) -> pa.Schema:
    """Return the stored types of carried columns."""
    return pa.schema([(field.name, _stored_type(field.type)) for field in schema])


def stored(array: pa.Array) -> pa.Array:
    """Return a carried column in its stored type."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    type_ = array.type
    if pa.types.is_decimal(type_):
        array = array.view(pa.binary(type_.byte_width))
    return array.view(_stored_type(type_)) if pa.types.is_temporal(type_) else array.cast(_stored_type(type_))


def stored_rows(rows: pa.RecordBatch, origin: pa.Schema, schema: pa.Schema) -> pa.RecordBatch:
    """Return rows in this schema. The columns of `origin` come in the source's types, and get their stored types.

    They are copied: a column as DuckDB gives it keeps all others of its batch in memory, however long they are.
    """
    columns = [
        pa.concat_arrays([stored(carried(rows.column(name), origin.field(name).type))])
        if name in origin.names
        else rows.column(name)
        for name in schema.names
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def restored(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return the carried columns of stored rows."""
    return pa.RecordBatch.from_arrays(
        [_restored(batch.column(field.name), field.type) for field in schema], schema=schema
    )


def comparable(array: pa.Array, type_: pa.DataType) -> pa.Array:
    """Return another run's key column in the type of this run's key.

    A value that no key of this run can have is NULL.
    """
    if array.type == type_:
        return array
    kinds = of_arrow(array.type), of_arrow(type_)
    if not (fits(*kinds) or fits(*reversed(kinds))):
        return pa.nulls(len(array), type_)
    if pa.types.is_temporal(type_):
        return array.cast(type_)
    return pa.array([_number(value, type_) for value in array.to_pylist()], type_)


def _carried_type(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(type_):
        return _carried_type(type_.value_type)
    if pa.types.is_decimal(type_) and type_.precision <= 38:
        return pa.decimal128(type_.precision, type_.scale)
    known = _CARRIED.get(of_arrow(type_))
    if known is None and isinstance(type_, pa.BaseExtensionType):
        return _carried_type(type_.storage_type)
    return known or type_


def _stored_type(type_: pa.DataType) -> pa.DataType:
    if isinstance(type_, pa.BaseExtensionType):
        return _stored_type(type_.storage_type)
    if pa.types.is_temporal(type_):
        return pa.int32() if type_.bit_width == 32 else pa.int64()
    return pa.binary() if pa.types.is_decimal(type_) or pa.types.is_fixed_size_binary(type_) else type_


def _restored(array: pa.Array, type_: pa.DataType) -> pa.Array:
    if isinstance(type_, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(type_, _restored(array, type_.storage_type))
    if pa.types.is_decimal(type_):
        return array.cast(pa.binary(type_.byte_width)).view(type_)
    return array.view(type_) if pa.types.is_temporal(type_) else array.cast(type_)


def _number(value: Any, type_: pa.DataType) -> object:
    """Return the number in this type, or None if the type cannot hold it."""
    try:
        if pa.types.is_decimal(type_):
            made = pa.array([Decimal(str(value))], type_)[0].as_py()
        else:
            made = pa.scalar((float if pa.types.is_floating(type_) else int)(value), type_).as_py()
    except (pa.ArrowException, ArithmeticError, ValueError, TypeError):
        return None
    return made if canonical(plain(made)) == canonical(plain(value)) else None
