"""How a database is asked which columns a table has, and whether a key is unique in it.

The first two parameters are always the schema (NULL: the current one) and the table.
"""

from collections.abc import Callable, Sequence
from typing import Any

from airflow_batch_llm.warehouses.dialect import PARAMETER, Dialect
from airflow_batch_llm.warehouses.publication import Table

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
