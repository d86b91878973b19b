"""Define the kinds of column that the package distinguishes, and map Arrow's and databases' types to them.

A type without a kind is not guessed: `of_name` returns None, and nothing is written to such a column.
"""

from enum import StrEnum

import pyarrow as pa
import pyarrow.types as arrow


class ColumnKind(StrEnum):
    """The kinds of value that a column holds."""

    STRING = "string"
    SMALLINT = "smallint"  # at most 16 bits
    INTEGER = "integer"  # at most 32 bits
    BIGINT = "bigint"  # at most 64 bits
    REAL = "real"
    DOUBLE = "double"
    DECIMAL = "decimal"
    BOOLEAN = "boolean"
    DATE = "date"
    TIME = "time"
    TIMESTAMP = "timestamp"  # a wall clock, no zone
    TIMESTAMPTZ = "timestamptz"  # an instant; in UTC wherever we write it
    BINARY = "binary"
    UUID = "uuid"
    JSON = "json"
    VECTOR = "vector"  # a list of numbers
    ANY = "any"  # SQLite's column without a type


_INTEGERS = frozenset({ColumnKind.SMALLINT, ColumnKind.INTEGER, ColumnKind.BIGINT})
_FLOATS = frozenset({ColumnKind.REAL, ColumnKind.DOUBLE})

#: The further kinds of column to which a value of a kind may be written without loss.
_ALSO_FITS: dict[ColumnKind, frozenset[ColumnKind]] = {
    ColumnKind.SMALLINT: _INTEGERS | _FLOATS | {ColumnKind.DECIMAL},
    ColumnKind.INTEGER: _INTEGERS | _FLOATS | {ColumnKind.DECIMAL},
    ColumnKind.BIGINT: _INTEGERS | _FLOATS | {ColumnKind.DECIMAL},
    ColumnKind.REAL: _FLOATS | {ColumnKind.DECIMAL},
    ColumnKind.DOUBLE: _FLOATS | {ColumnKind.DECIMAL},
    ColumnKind.TIMESTAMPTZ: frozenset({ColumnKind.TIMESTAMP}),
    ColumnKind.JSON: frozenset({ColumnKind.STRING}),
}


def fits(value: ColumnKind, column: ColumnKind) -> bool:
    """Return whether values of one kind may be written to a column of another."""
    return column in (value, ColumnKind.ANY) or column in _ALSO_FITS.get(value, frozenset())


_ARROW: tuple[tuple[tuple[str, ...], ColumnKind], ...] = (
    (("is_boolean",), ColumnKind.BOOLEAN),
    (("is_int8", "is_int16", "is_uint8"), ColumnKind.SMALLINT),
    (("is_int32", "is_uint16"), ColumnKind.INTEGER),
    (("is_int64", "is_uint32"), ColumnKind.BIGINT),
    (("is_float16", "is_float32"), ColumnKind.REAL),
    (("is_float64",), ColumnKind.DOUBLE),
    (("is_uint64", "is_decimal"), ColumnKind.DECIMAL),
    (("is_date",), ColumnKind.DATE),
    (("is_time",), ColumnKind.TIME),
    (
        ("is_binary", "is_large_binary", "is_binary_view", "is_fixed_size_binary"),
        ColumnKind.BINARY,
    ),
    (("is_struct", "is_map", "is_union"), ColumnKind.JSON),
)


def of_arrow(type_: pa.DataType) -> ColumnKind:
    """Return the kind of an Arrow type. A type without its own kind (intervals, nulls) is text."""
    if isinstance(type_, pa.UuidType):
        return ColumnKind.UUID
    if isinstance(type_, pa.JsonType):
        return ColumnKind.JSON
    if isinstance(type_, pa.BaseExtensionType):
        return of_arrow(type_.storage_type)
    if arrow.is_dictionary(type_):
        return of_arrow(type_.value_type)
    if arrow.is_timestamp(type_):
        return ColumnKind.TIMESTAMP if type_.tz is None else ColumnKind.TIMESTAMPTZ
    if arrow.is_nested(type_) and hasattr(type_, "value_type"):
        return ColumnKind.VECTOR if arrow.is_floating(type_.value_type) else ColumnKind.JSON
    for tests, kind in _ARROW:
        if any(getattr(arrow, test)(type_) for test in tests):
            return kind
    return ColumnKind.STRING


_DATABASE: dict[ColumnKind, str] = {
    ColumnKind.STRING: "char nchar varchar nvarchar text tinytext mediumtext longtext bpchar name",
    ColumnKind.SMALLINT: "tinyint utinyint smallint",
    ColumnKind.INTEGER: "int mediumint umediumint usmallint",
    ColumnKind.BIGINT: "bigint uint",
    ColumnKind.REAL: "float",
    ColumnKind.DOUBLE: "double",
    ColumnKind.DECIMAL: "decimal bigdecimal money smallmoney ubigint int128 uint128",
    ColumnKind.BOOLEAN: "boolean bit",
    ColumnKind.DATE: "date date32",
    ColumnKind.TIME: "time",
    ColumnKind.TIMESTAMP: "timestamp timestampntz datetime datetime2 smalldatetime"
    " timestamp_s timestamp_ms timestamp_ns",
    ColumnKind.TIMESTAMPTZ: "timestamptz timestampltz",
    ColumnKind.BINARY: "binary varbinary blob tinyblob mediumblob longblob rowversion",
    ColumnKind.UUID: "uuid",
    ColumnKind.JSON: "json jsonb variant super",
    ColumnKind.VECTOR: "vector",
}
_KINDS = {name: kind for kind, names in _DATABASE.items() for name in names.split()}
NUMBERS = _INTEGERS | _FLOATS | {ColumnKind.DECIMAL}


def of_name(name: str) -> ColumnKind | None:
    """Return the kind of a type by its name in sqlglot, or None if the package has no such kind."""
    return _KINDS.get(name)
