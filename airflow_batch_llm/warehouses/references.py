"""The tables that a source reads, as far as its SQL tells. A view hides the tables behind it."""

import re
from collections.abc import Iterator

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.warehouses.dialect import Dialect

#: Catalog, schema and table, in small letters. What is unknown is empty.
FullName = tuple[str, str, str]

#: Parameters as drivers write them, which are no SQL.
_PARAMETERS = re.compile(r"%\(\w+\)s|%s")


def tables_read(source: Source, dialect: Dialect, home: tuple[str, str]) -> list[FullName]:
    """The tables of a source. `home`: the catalog and schema of a name without them."""
    if source.table is not None:
        return [full_name(dialect.parts(source.table), home)]
    return [full_name(parts, home) for parts in _referenced(source.sql or "", dialect)]


def full_name(parts: tuple[str, ...], home: tuple[str, str]) -> FullName:
    """A table's name with catalog and schema."""
    catalog, schema, table = (*home[: 3 - len(parts)], *parts)
    return catalog.lower(), schema.lower(), table.lower()


def is_same(one: FullName, other: FullName) -> bool:
    """Whether two names may be of one table."""
    return all(a == b or not a or not b for a, b in zip(one, other, strict=True))


def _referenced(sql: str, dialect: Dialect) -> Iterator[tuple[str, ...]]:
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError
    from sqlglot.optimizer.scope import traverse_scope

    try:
        statements = sqlglot.parse(_PARAMETERS.sub("NULL", sql), dialect=dialect.name)
        scopes = [scope for statement in statements if statement for scope in traverse_scope(statement)]
    except SqlglotError:
        return  # the database says what is wrong with it, or knows more than the parser
    for scope in scopes:
        # A common table expression is a source, too, and is a scope of its own.
        tables = (table for table in scope.sources.values() if isinstance(table, exp.Table))
        yield from (
            parts for table in tables if (parts := tuple(part.name for part in table.parts)) and all(parts)
        )
