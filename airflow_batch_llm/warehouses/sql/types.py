"""Translate what a DB-API driver and a database's catalogue say of types into Arrow's."""

from collections.abc import Callable, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import pyarrow as pa

from airflow_batch_llm.warehouses.dialect import PARAMETER, Dialect
from airflow_batch_llm.warehouses.kind import Kind, of_database
from airflow_batch_llm.warehouses.publication import Table
from airflow_batch_llm.warehouses.sql.sqlite_rules import sqlite_rules
from airflow_batch_llm.warehouses.target import Constraint, ConstraintKind, Rules

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


Ask = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]

_TYPE = {  # how `information_schema.columns` tells a type whole
    "mysql": "column_type",
    "databricks": "full_data_type",
    "snowflake": "CASE data_type WHEN 'NUMBER' THEN 'NUMBER(' || numeric_precision || ',' || numeric_scale || ')' "
    "ELSE data_type END",
}
#: Databases of which one connection sees several, so that a URI may leave it open which one it is.
_CATALOG = {
    "databricks": "CURRENT_CATALOG()",
    "redshift": "CURRENT_DATABASE()",
    "snowflake": "CURRENT_DATABASE()",
    "tsql": "DB_NAME()",
}
_CURRENT = {"mysql": "DATABASE()", "tsql": "SCHEMA_NAME()"}
_SQLITE_COLUMNS = f"SELECT name, type, pk FROM pragma_table_info({PARAMETER}, {PARAMETER}) ORDER BY cid"
_SQLITE_UNIQUE = (
    f"SELECT l.name, i.name FROM pragma_index_list({PARAMETER}, {PARAMETER}) AS l, "
    f'pragma_index_info(l.name, {PARAMETER}) AS i WHERE l."unique" = 1 AND l.partial = 0'
)
_MYSQL_UNIQUE = (
    "SELECT index_name, column_name FROM information_schema.statistics WHERE non_unique = 0 "
    f"AND table_schema = COALESCE({PARAMETER}, DATABASE()) AND table_name = {PARAMETER}"
)
_MYSQL_FOREIGN = (
    "SELECT constraint_name, column_name FROM information_schema.key_column_usage "
    f"WHERE referenced_table_name IS NOT NULL AND table_schema = COALESCE({PARAMETER}, DATABASE()) "
    f"AND table_name = {PARAMETER}"
)
_TSQL_PROPERTY = (
    "COLUMNPROPERTY(OBJECT_ID(QUOTENAME(table_schema) + '.' + QUOTENAME(table_name)), column_name, '{}')"
)
# MySQL's words for a column that takes no value (GENERATED) or needs none (AUTO_INCREMENT), from each database's catalogue.
_FILLED = {
    "mysql": "extra",
    "snowflake": "CASE WHEN is_identity = 'YES' THEN 'AUTO_INCREMENT' END",
    "tsql": f"CASE WHEN {_TSQL_PROPERTY.format('IsIdentity')} = 1 OR {_TSQL_PROPERTY.format('IsComputed')} = 1 "
    "THEN 'GENERATED' END",
}


def table(ask: Ask, dialect: Dialect, name: str, key: Sequence[str]) -> Table | None:
    """The table, if it is there."""
    *qualifiers, plain = (dialect.folded(part) for part in dialect.parts(name))
    catalog, schema = [None, None, *qualifiers][-2:]
    if dialect.name == "sqlite":
        return _sqlite_table(ask, schema or "main", plain, key)
    where = f"{dialect.quote(catalog)}." if catalog else ""
    columns = ask(
        f"SELECT column_name, {_TYPE.get(dialect.name, 'data_type')} FROM {where}information_schema.columns "
        f"WHERE table_schema = COALESCE({PARAMETER}, {_CURRENT.get(dialect.name, 'CURRENT_SCHEMA()')}) "
        f"AND table_name = {PARAMETER} ORDER BY ordinal_position",
        [schema, plain],
    )
    if not columns:
        return None
    unique = dialect.name == "mysql" and _same_columns(ask(_MYSQL_UNIQUE, [schema, plain]), key)
    return Table(columns={column: str(type_) for column, type_ in columns}, unique=unique)


def table_names(ask: Ask, dialect: Dialect, where: Sequence[str]) -> list[str]:
    """List the tables of a schema that begin as ours do. `where`: the schema, perhaps with its catalog."""
    catalog, schema = [None, None, *map(dialect.folded, where)][-2:]
    if dialect.name == "sqlite":
        rows = ask(
            f"SELECT name FROM {dialect.quote(schema or 'main')}.sqlite_master WHERE type = 'table'", []
        )
    else:
        prefix = f"{dialect.quote(catalog)}." if catalog else ""
        rows = ask(
            f"SELECT table_name FROM {prefix}information_schema.tables "
            f"WHERE table_schema = COALESCE({PARAMETER}, {_CURRENT.get(dialect.name, 'CURRENT_SCHEMA()')}) "
            f"AND table_name LIKE '{dialect.folded('_llm_')}%'",
            [schema],
        )
    return [str(name) for (name,) in rows]


def home(ask: Ask, dialect: Dialect) -> tuple[str, str]:
    """Return the catalog and the schema of a table that is named without them. An empty catalog is not known."""
    if dialect.name == "sqlite":
        return "", "main"
    catalog, schema = _CATALOG.get(dialect.name, "''"), _CURRENT.get(dialect.name, "CURRENT_SCHEMA()")
    [found] = ask(f"SELECT {catalog}, {schema}", [])
    return str(found[0] or ""), str(found[1] or "")


def rules(ask: Ask, dialect: Dialect, name: str) -> Rules:
    """Return the rules that the database enforces on an existing table, as far as its catalogue tells."""
    *qualifiers, plain = (dialect.folded(part) for part in dialect.parts(name))
    catalog, schema = [None, None, *qualifiers][-2:]
    if dialect.name == "sqlite":
        return sqlite_rules(ask, schema or "main", plain)
    where = f"{dialect.quote(catalog)}." if catalog else ""
    found = ask(
        f"SELECT column_name, is_nullable, column_default, {_FILLED.get(dialect.name, 'NULL')} "
        f"FROM {where}information_schema.columns "
        f"WHERE table_schema = COALESCE({PARAMETER}, {_CURRENT.get(dialect.name, 'CURRENT_SCHEMA()')}) "
        f"AND table_name = {PARAMETER}",
        [schema, plain],
    )
    columns = [
        (
            dialect.unfolded(column),
            str(is_nullable).upper() == "NO",
            default,
            str(filled or "").upper().split(),
        )
        for column, is_nullable, default, filled in found
    ]
    return Rules(
        not_null=frozenset(column for column, is_not_null, _, _ in columns if is_not_null),
        with_default=frozenset(
            column
            for column, _, default, filled in columns
            if default is not None or "AUTO_INCREMENT" in filled
        ),
        generated=frozenset(column for column, _, _, filled in columns if "GENERATED" in filled),
        constraints=_mysql_constraints(ask, schema, plain) if dialect.name == "mysql" else (),
    )


def _mysql_constraints(ask: Ask, schema: str | None, name: str) -> tuple[Constraint, ...]:
    columns: dict[tuple[ConstraintKind, str], set[str]] = {}
    for kind, query in ((ConstraintKind.UNIQUE, _MYSQL_UNIQUE), (ConstraintKind.FOREIGN_KEY, _MYSQL_FOREIGN)):
        for called, column in ask(query, [schema, name]):
            columns.setdefault((kind, called), set()).add(column)
    return tuple(
        Constraint(kind=kind, name=called, columns=frozenset(names))
        for (kind, called), names in columns.items()
    )


def _sqlite_table(ask: Ask, schema: str, name: str, key: Sequence[str]) -> Table | None:
    columns = ask(_SQLITE_COLUMNS, [name, schema])
    if not columns:
        return None
    primary = {column for column, _, place in columns if place}
    unique = primary == set(key) or _same_columns(ask(_SQLITE_UNIQUE, [name, schema, schema]), key)
    return Table(columns={column: type_ for column, type_, _ in columns}, unique=unique)


def _same_columns(rows: Sequence[tuple[Any, ...]], key: Sequence[str]) -> bool:
    indexes: dict[str, set[str]] = {}
    for index, column in rows:
        indexes.setdefault(index, set()).add(column)
    return any(columns == set(key) for columns in indexes.values())
