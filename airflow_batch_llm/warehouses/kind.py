"""The kinds of column that matter to us, and how Arrow's and a database's own types fall into them.

A type that falls into no kind is not guessed at: `of_name` answers None, and nothing is written there.
"""

from enum import StrEnum

import pyarrow as pa
import pyarrow.types as arrow


class Kind(StrEnum):
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


_INTEGERS = frozenset({Kind.SMALLINT, Kind.INTEGER, Kind.BIGINT})
_FLOATS = frozenset({Kind.REAL, Kind.DOUBLE})

#: Besides its own kind, what a value of a kind may be written to without losing what it says.
_ALSO_FITS: dict[Kind, frozenset[Kind]] = {
    Kind.SMALLINT: _INTEGERS | _FLOATS | {Kind.DECIMAL},
    Kind.INTEGER: _INTEGERS | _FLOATS | {Kind.DECIMAL},
    Kind.BIGINT: _INTEGERS | _FLOATS | {Kind.DECIMAL},
    Kind.REAL: _FLOATS | {Kind.DECIMAL},
    Kind.DOUBLE: _FLOATS | {Kind.DECIMAL},
    Kind.TIMESTAMPTZ: frozenset({Kind.TIMESTAMP}),
    Kind.JSON: frozenset({Kind.STRING}),
}


def fits(value: Kind, column: Kind) -> bool:
    """Return whether values of one kind may be written to a column of another."""
    return column in (value, Kind.ANY) or column in _ALSO_FITS.get(value, frozenset())


_ARROW: tuple[tuple[tuple[str, ...], Kind], ...] = (
    (("is_boolean",), Kind.BOOLEAN),
    (("is_int8", "is_int16", "is_uint8"), Kind.SMALLINT),
    (("is_int32", "is_uint16"), Kind.INTEGER),
    (("is_int64", "is_uint32"), Kind.BIGINT),
    (("is_float16", "is_float32"), Kind.REAL),
    (("is_float64",), Kind.DOUBLE),
    (("is_uint64", "is_decimal"), Kind.DECIMAL),
    (("is_date",), Kind.DATE),
    (("is_time",), Kind.TIME),
    (
        ("is_binary", "is_large_binary", "is_binary_view", "is_fixed_size_binary"),
        Kind.BINARY,
    ),
    (("is_struct", "is_map", "is_union"), Kind.JSON),
)


def of_arrow(type_: pa.DataType) -> Kind:
    """The kind of an Arrow type. Whatever has no kind of its own (intervals, nulls) is text."""
    if isinstance(type_, pa.UuidType):
        return Kind.UUID
    if isinstance(type_, pa.JsonType):
        return Kind.JSON
    if isinstance(type_, pa.BaseExtensionType):
        return of_arrow(type_.storage_type)
    if arrow.is_dictionary(type_):
        return of_arrow(type_.value_type)
    if arrow.is_timestamp(type_):
        return Kind.TIMESTAMP if type_.tz is None else Kind.TIMESTAMPTZ
    if arrow.is_nested(type_) and hasattr(type_, "value_type"):
        return Kind.VECTOR if arrow.is_floating(type_.value_type) else Kind.JSON
    for tests, kind in _ARROW:
        if any(getattr(arrow, test)(type_) for test in tests):
            return kind
    return Kind.STRING


_DATABASE: dict[Kind, str] = {
    Kind.STRING: "char nchar varchar nvarchar text tinytext mediumtext longtext bpchar name",
    Kind.SMALLINT: "tinyint utinyint smallint",
    Kind.INTEGER: "int mediumint umediumint usmallint",
    Kind.BIGINT: "bigint uint",
    Kind.REAL: "float",
    Kind.DOUBLE: "double",
    Kind.DECIMAL: "decimal bigdecimal money smallmoney ubigint int128 uint128",
    Kind.BOOLEAN: "boolean bit",
    Kind.DATE: "date date32",
    Kind.TIME: "time",
    Kind.TIMESTAMP: "timestamp timestampntz datetime datetime2 smalldatetime"
    " timestamp_s timestamp_ms timestamp_ns",
    Kind.TIMESTAMPTZ: "timestamptz timestampltz",
    Kind.BINARY: "binary varbinary blob tinyblob mediumblob longblob rowversion",
    Kind.UUID: "uuid",
    Kind.JSON: "json jsonb variant super",
    Kind.VECTOR: "vector",
}
_KINDS = {name: kind for kind, names in _DATABASE.items() for name in names.split()}
NUMBERS = _INTEGERS | _FLOATS | {Kind.DECIMAL}


def of_name(name: str) -> Kind | None:
    """The kind of a type by sqlglot's name of it. Returns None if it is none of ours."""
    return _KINDS.get(name)
