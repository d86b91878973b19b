"""Translate what a DB-API driver says of types into Arrow's."""

from collections.abc import Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import pyarrow as pa

from airflow_batch_llm.warehouses.dialect import Dialect
from airflow_batch_llm.warehouses.kind import ColumnKind
from airflow_batch_llm.warehouses.sql.catalogue import SqlDialect

_UTC = pa.timestamp("us", tz="UTC")
_OF_KIND: dict[ColumnKind, pa.DataType] = {
    ColumnKind.STRING: pa.string(),
    ColumnKind.SMALLINT: pa.int64(),
    ColumnKind.INTEGER: pa.int64(),
    ColumnKind.BIGINT: pa.int64(),
    ColumnKind.REAL: pa.float64(),
    ColumnKind.DOUBLE: pa.float64(),
    ColumnKind.BOOLEAN: pa.bool_(),
    ColumnKind.DATE: pa.date32(),
    ColumnKind.TIME: pa.time64("us"),
    ColumnKind.TIMESTAMP: pa.timestamp("us"),
    ColumnKind.TIMESTAMPTZ: _UTC,
    ColumnKind.BINARY: pa.binary(),
    ColumnKind.JSON: pa.json_(pa.string()),
    ColumnKind.UUID: pa.string(),
    ColumnKind.VECTOR: pa.json_(pa.string()),
}
_OF_PYTHON: dict[type, ColumnKind] = {
    str: ColumnKind.STRING,
    int: ColumnKind.BIGINT,
    float: ColumnKind.DOUBLE,
    bool: ColumnKind.BOOLEAN,
    bytes: ColumnKind.BINARY,
    bytearray: ColumnKind.BINARY,
    date: ColumnKind.DATE,
    datetime: ColumnKind.TIMESTAMP,
    time: ColumnKind.TIME,
    Decimal: ColumnKind.DECIMAL,
}


def described(column: Sequence[Any], dialect: SqlDialect) -> pa.DataType | None:
    """Return the type of one column of `cursor.description`. Returns None if the driver does not tell it."""
    code, precision, scale = column[1], column[4], column[5]
    if (special := dialect.described_as(column)) is not None:
        return special
    kind = dialect.type_codes.get(code)
    if kind is None and isinstance(code, type):
        kind = _OF_PYTHON.get(code)
    if kind is None and isinstance(code, str):
        return declared(code, dialect)
    if kind is ColumnKind.DECIMAL:
        return _decimal(precision, scale)
    return None if kind is None else _OF_KIND[kind]


def declared(type_: str, dialect: Dialect) -> pa.DataType | None:
    """Return the type of a column that was declared so. Returns None if that says nothing."""
    from sqlglot import exp

    kind = dialect.kind_of(type_)
    if kind is ColumnKind.DECIMAL:
        digits = [int(item.name) for item in exp.DataType.build(type_, dialect=dialect.name).expressions]
        return _decimal(*digits) if len(digits) == 2 else pa.float64()
    return None if kind is None else _OF_KIND.get(kind)


def told_from(values: Sequence[Any]) -> pa.DataType:
    """Return the type of a column whose first values are these: text if they say nothing or do not agree."""
    try:
        type_ = pa.array(values).type
    except (pa.ArrowException, OverflowError, TypeError):
        return pa.string()
    return pa.string() if pa.types.is_null(type_) else type_


def _decimal(precision: int | None, scale: int | None) -> pa.DataType | None:
    if not precision or scale is None or precision > 38:
        return None
    return pa.int64() if scale == 0 and precision <= 18 else pa.decimal128(precision, scale)
