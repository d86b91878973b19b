"""DuckDB's catalogue: a table's columns, its indexes, and the rules that it enforces."""

from dataclasses import replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from airflow_batch_llm.errors import TargetError
from airflow_batch_llm.warehouses.base import Target
from airflow_batch_llm.warehouses.dialect import DIALECTS
from airflow_batch_llm.warehouses.publication import Table, Tables
from airflow_batch_llm.warehouses.rules import Constraint, ConstraintKind, Rules

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_DIALECT = DIALECTS["duckdb"]
#: Tables with an index. It is taken for one of the key, so that they are merged in the way that suits all.
_INDEXED = """(
SELECT database_name AS table_catalog, schema_name AS table_schema, table_name FROM duckdb_indexes() UNION ALL
SELECT database_name, schema_name, table_name FROM duckdb_constraints()
WHERE constraint_type IN ('PRIMARY KEY', 'UNIQUE', 'FOREIGN KEY')
)"""
_CONSTRAINTS = """(
SELECT database_name AS table_catalog, schema_name AS table_schema, table_name, constraint_type,
    constraint_name, constraint_column_names AS columns FROM duckdb_constraints()
UNION ALL
SELECT database_name, schema_name, table_name, 'UNIQUE', index_name,
    list_transform(string_split(trim(expressions, '[]'), ', '), lambda name: trim(name, '"''')) FROM duckdb_indexes()
WHERE is_unique
)"""
_DEFAULTS = """(
SELECT database_name AS table_catalog, schema_name AS table_schema, table_name, column_name FROM duckdb_columns()
WHERE column_default IS NOT NULL
)"""
_DEFINITIONS = """(
SELECT database_name AS table_catalog, schema_name AS table_schema, table_name, sql FROM duckdb_tables()
)"""


def tables(connection: "DuckDBPyConnection", target: Target, *, with_rules: bool = False) -> Tables:
    """Both tables of a target as they are now. Their rules are read on request."""
    found = [_table(connection, name) for name in (target.table, target.failures)]
    if with_rules:
        named = zip(found, (target.table, target.failures), strict=True)
        found = [table and replace(table, rules=_rules(connection, name)) for table, name in named]
    return Tables(target=found[0], failures=found[1])


def _table(connection: "DuckDBPyConnection", name: str) -> Table | None:
    columns = columns_of(connection, name)
    if columns is None:
        return None
    return Table(columns=columns, unique=bool(_catalog(connection, _INDEXED, "table_name", name)))


def columns_of(connection: "DuckDBPyConnection", name: str) -> dict[str, str] | None:
    """A table's or a view's columns with their types. Returns None if the catalogue has no such relation."""
    found = _catalog(
        connection, "information_schema.columns", "column_name, data_type, ordinal_position", name
    )
    return {column: type_ for column, type_, _ in sorted(found, key=itemgetter(2))} or None


def refuse_view(connection: "DuckDBPyConnection", name: str) -> None:
    """Raise `TargetError` for a view."""
    if ("VIEW",) in _catalog(connection, "information_schema.tables", "table_type", name):
        raise TargetError(f"{name} is a view, which cannot be merged into. Name a table.")


def _catalog(connection: "DuckDBPyConnection", view: str, facts: str, name: str) -> list[tuple[Any, ...]]:
    """What the catalog says of a table; names count without their case."""
    *qualifiers, table = _DIALECT.parts(name)
    catalog, schema = [None, None, *qualifiers][-2:]
    return connection.execute(
        f"SELECT {facts} FROM {view} "
        "WHERE table_catalog = coalesce(?, current_database()) "
        "AND lower(table_schema) = lower(coalesce(?, current_schema())) "
        "AND lower(table_name) = lower(?)",
        [catalog, schema, table],
    ).fetchall()


def _rules(connection: "DuckDBPyConnection", name: str) -> Rules:
    found = _catalog(connection, _CONSTRAINTS, "constraint_type, constraint_name, columns", name)
    generated = _generated(connection, name)
    defaults = _catalog(connection, _DEFAULTS, "column_name", name)
    return Rules(
        not_null=frozenset(column for kind, _, columns in found if kind == "NOT NULL" for column in columns),
        with_default=frozenset(column for (column,) in defaults) - generated,
        generated=generated,
        constraints=tuple(
            Constraint(
                kind=ConstraintKind("UNIQUE" if kind == "PRIMARY KEY" else kind),
                name=called,
                columns=frozenset(columns),
            )
            for kind, called, columns in found
            if kind != "NOT NULL"
        ),
    )


def _generated(connection: "DuckDBPyConnection", name: str) -> frozenset[str]:
    """The computed columns. The catalogue tells of them only in the table's definition."""
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    found: list[str] = []
    kinds = (exp.GeneratedAsIdentityColumnConstraint, exp.ComputedColumnConstraint)
    for (definition,) in _catalog(connection, _DEFINITIONS, "sql", name):
        try:
            parsed = sqlglot.parse_one(definition, dialect="duckdb")
        except SqlglotError:
            continue  # the trial statements of a preparation find them, too
        found.extend(column.name for column in parsed.find_all(exp.ColumnDef) if column.find(*kinds))
    return frozenset(found)
