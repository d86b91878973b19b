"""What a DB-API driver says of a result's columns, and what a database's declared types are, in Arrow's terms.

Drivers agree on nothing but the tuple: a type code may be a number, a word or a Python type. What is not in the
tables below is told from the first rows.
"""

from collections.abc import Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import pyarrow as pa

from airflow_batch_llm.warehouses.kind import Kind, of_database

_UTC = pa.timestamp("us", tz="UTC")
_OF_KIND: dict[Kind, pa.DataType] = {
    Kind.STRING: pa.string(),
    Kind.SMALLINT: pa.int64(),
    Kind.INTEGER: pa.int64(),
    Kind.BIGINT: pa.int64(),
    Kind.REAL: pa.float64(),
    Kind.DOUBLE: pa.float64(),
    Kind.BOOLEAN: pa.bool_(),
    Kind.DATE: pa.date32(),
    Kind.TIME: pa.time64("us"),
    Kind.TIMESTAMP: pa.timestamp("us"),
    Kind.TIMESTAMPTZ: _UTC,
    Kind.BINARY: pa.binary(),
    Kind.JSON: pa.json_(pa.string()),
    Kind.UUID: pa.string(),
    Kind.VECTOR: pa.json_(pa.string()),
}
_OF_PYTHON: dict[type, Kind] = {
    str: Kind.STRING,
    int: Kind.BIGINT,
    float: Kind.DOUBLE,
    bool: Kind.BOOLEAN,
    bytes: Kind.BINARY,
    bytearray: Kind.BINARY,
    date: Kind.DATE,
    datetime: Kind.TIMESTAMP,
    time: Kind.TIME,
    Decimal: Kind.DECIMAL,
}
_TINYINT = 1  # MySQL's type code; a BOOLEAN is one that is shown with one digit
#: Type codes by dialect: MySQL's field types, Snowflake's numbers, Redshift's object ids.
_OF_CODE: dict[str, dict[Any, Kind]] = {
    "mysql": {
        **dict.fromkeys((_TINYINT, 2, 3, 8, 9, 13), Kind.BIGINT),
        **dict.fromkeys((4, 5), Kind.DOUBLE),
        **dict.fromkeys((0, 246), Kind.DECIMAL),
        7: Kind.TIMESTAMPTZ,  # TIMESTAMP: an instant, shown in the zone of the session, which is UTC
        12: Kind.TIMESTAMP,
        10: Kind.DATE,
        245: Kind.JSON,
        **dict.fromkeys((15, 253, 254), Kind.STRING),
    },
    "snowflake": {
        0: Kind.DECIMAL,
        1: Kind.DOUBLE,
        2: Kind.STRING,
        3: Kind.DATE,
        4: Kind.TIMESTAMP,
        8: Kind.TIMESTAMP,
        **dict.fromkeys((5, 9, 10), Kind.JSON),
        **dict.fromkeys((6, 7), Kind.TIMESTAMPTZ),
        11: Kind.BINARY,
        12: Kind.TIME,
        13: Kind.BOOLEAN,
    },
    "redshift": {
        16: Kind.BOOLEAN,
        **dict.fromkeys((20, 21, 23), Kind.BIGINT),
        **dict.fromkeys((700, 701), Kind.DOUBLE),
        1700: Kind.DECIMAL,
        1082: Kind.DATE,
        1083: Kind.TIME,
        1114: Kind.TIMESTAMP,
        1184: Kind.TIMESTAMPTZ,
        **dict.fromkeys((25, 1042, 1043), Kind.STRING),
    },
}


def described(column: Sequence[Any], dialect: str) -> pa.DataType | None:
    """The type of one column of `cursor.description`; None where the driver does not tell."""
    code, precision, scale = column[1], column[4], column[5]
    kind = _OF_CODE.get(dialect, {}).get(code)
    if kind is None and isinstance(code, type):
        kind = _OF_PYTHON.get(code)
    if kind is None and isinstance(code, str):
        return declared(code, dialect)
    if dialect == "mysql" and code == _TINYINT and column[3] == 1:
        return pa.bool_()
    if dialect == "snowflake" and (kind, precision, scale) == (Kind.DECIMAL, 38, 0):
        return pa.int64()  # Snowflake has no other integer
    if kind is Kind.DECIMAL:
        return _decimal(precision, scale)
    return None if kind is None else _OF_KIND[kind]


def declared(type_: str, dialect: str) -> pa.DataType | None:
    """The type of a column that was declared so; None where that says nothing."""
    from sqlglot import exp

    kind = of_database(type_, dialect)
    if kind is Kind.DECIMAL:
        digits = [int(item.name) for item in exp.DataType.build(type_, dialect=dialect).expressions]
        return _decimal(*digits) if len(digits) == 2 else pa.float64()
    return None if kind is None else _OF_KIND.get(kind)


def told_from(values: Sequence[Any]) -> pa.DataType:
    """The type of a column whose first values are these; text where they say nothing or do not agree."""
    try:
        type_ = pa.array(values).type
    except (pa.ArrowException, OverflowError, TypeError):
        return pa.string()
    return pa.string() if pa.types.is_null(type_) else type_


def _decimal(precision: int | None, scale: int | None) -> pa.DataType | None:
    if not precision or scale is None or precision > 38:
        return None
    return pa.int64() if scale == 0 and precision <= 18 else pa.decimal128(precision, scale)
