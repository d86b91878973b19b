"""How a database is asked which columns a table has, and whether a key is unique in it.

The first two parameters are always the schema (NULL: the current one) and the table.
"""

from collections.abc import Callable, Sequence
from typing import Any

from airflow_batch_llm.warehouses.dialect import PARAMETER, Dialect
from airflow_batch_llm.warehouses.publication import Table
from airflow_batch_llm.warehouses.rules import Constraint, ConstraintKind, Rules
from airflow_batch_llm.warehouses.sqlite_rules import sqlite_rules

Ask = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]

_TYPE = {  # how `information_schema.columns` tells a type whole
    "mysql": "column_type",
    "databricks": "full_data_type",
    "snowflake": "CASE data_type WHEN 'NUMBER' THEN 'NUMBER(' || numeric_precision || ',' || numeric_scale || ')' "
    "ELSE data_type END",
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


def current_schema(ask: Ask, dialect: Dialect) -> str:
    """The schema of a table that is named without one."""
    if dialect.name == "sqlite":
        return "main"
    [(found,)] = ask(f"SELECT {_CURRENT.get(dialect.name, 'CURRENT_SCHEMA()')}", [])
    return str(found or "")


def rules(ask: Ask, dialect: Dialect, name: str) -> Rules:
    """What the database enforces on a table that is there, as far as its catalogue tells."""
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
