"""local-bigquery, corrected where BigQuery is known to do otherwise. Run by the emulators' own interpreter.

It makes several statements of a MERGE. It begins a transaction for them, which breaks one that is open; and it looks
for the filter that a table requires in the WHERE of each, which is nowhere. In BigQuery a MERGE takes part in a
transaction, and the filter stands in its ON. (A MERGE outside of a transaction is not atomic here: the package runs
none.) And of two that submit a job of one id at once, it lets both run.

It looks a table up by having DuckDB list all tables of all databases, a dozen times a statement, which is most of its
time. Here it asks DuckLake's own records, or the table itself.
"""

import sys
import threading
from contextvars import ContextVar
from typing import Any

import duckdb
from local_bigquery import cli
from local_bigquery.catalog import metadata, names
from local_bigquery.engine import database
from local_bigquery.engine.database import quote
from local_bigquery.errors import BigQueryError
from local_bigquery.jobs import merge, runner
from local_bigquery.models import Table
from local_bigquery.sql.rules import tables
from sqlglot import exp

Name = tuple[str, str, str]

#: The table that the statements at hand are merged into.
_merged: ContextVar[Name | None] = ContextVar("_merged", default=None)
_run, _check, _submit, _fetch = merge.run, tables._check, runner.submit, database.fetch
_objects = database.objects
_submitting = threading.Lock()

#: DuckDB's lists, as DuckLake keeps them in its records {0} of the database {1}.
LISTS = {
    "duckdb_schemas()": "SELECT '{1}' AS database_name, schema_name FROM {0}.ducklake_schema WHERE end_snapshot IS NULL",
    "duckdb_tables()": "SELECT '{1}' AS database_name, schema_name, table_name, coalesce(record_count, 0) AS estimated_size"
    " FROM {0}.ducklake_table t JOIN {0}.ducklake_schema USING (schema_id)"
    " LEFT JOIN {0}.ducklake_table_stats USING (table_id) WHERE t.end_snapshot IS NULL",
    "duckdb_views()": "SELECT '{1}' AS database_name, schema_name, view_name, false AS internal"
    " FROM {0}.ducklake_view v JOIN {0}.ducklake_schema USING (schema_id) WHERE v.end_snapshot IS NULL",
    "duckdb_columns()": "SELECT '{1}' AS database_name, schema_name, table_name, column_name, nulls_allowed AS is_nullable"
    " FROM {0}.ducklake_column c JOIN {0}.ducklake_table t USING (table_id) JOIN {0}.ducklake_schema USING (schema_id)"
    " WHERE c.end_snapshot IS NULL AND t.end_snapshot IS NULL AND parent_column IS NULL",
}


class InTransaction:
    """A cursor that leaves the open transaction whole when another is to begin in it."""

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    def execute(self, sql: str, *bound: Any) -> Any:
        if sql == "BEGIN":
            raise duckdb.TransactionException("a transaction is open")
        return self._cursor.execute(sql, *bound)


def run(cursor: Any, tree: exp.Merge, context: Any) -> Any:
    """Merge in the transaction that is open."""
    name: Name = names.reference(tree.this, context.project_id, context.dataset_id)
    _require_filter(name, tree)
    token = _merged.set(name)
    try:
        return _run(InTransaction(cursor), tree, context)
    finally:
        _merged.reset(token)


def submit(*job: Any, **more: Any) -> Any:
    """Begin a job, if its id is not taken: one after the other."""
    with _submitting:
        return _submit(*job, **more)


def check(tree: exp.Expression, table: exp.Table, is_target: bool) -> None:
    """As before, but that the merged table's filter has been seen to."""
    _check(tree, table, is_target or (table.catalog, table.db, table.name) == _merged.get())


def fetch(sql: str, params: Any = None) -> list[tuple[Any, ...]]:
    """As before, but that what is looked up in one project is asked of its own records. A result requires no column."""
    if params and params[0] in database._attached:
        records = quote(f"__ducklake_metadata_{params[0]}")
        for name, rows in LISTS.items():
            sql = sql.replace(name, f"({rows.format(records, params[0])})")
    elif params and params[0] == "emulator" and "duckdb_columns()" in sql:
        return []
    return _fetch(sql, params)


def objects(project_id: str, dataset_id: str, table_id: str | None = None) -> Any:
    """As before, but that a result is looked at."""
    if project_id != "emulator" or table_id is None:
        return _objects(project_id, dataset_id, table_id)
    try:
        [(rows,)] = _fetch(f"SELECT count(*) FROM {quote(project_id, dataset_id, table_id)}")
    except duckdb.CatalogException:
        return []
    return [(table_id, "TABLE", rows)]


def _require_filter(name: Name, tree: exp.Merge) -> None:
    stored = metadata.load(Table, *name) or Table()
    if not stored.requirePartitionFilter:
        return
    named = {column.name.casefold() for column in tree.args["on"].find_all(exp.Column)}
    if stored.timePartitioning.field.casefold() not in named:
        raise BigQueryError("invalidQuery", f"Cannot merge into {'.'.join(name)} without a filter in ON")


if __name__ == "__main__":
    merge.run, tables._check, runner.submit = run, check, submit
    database.fetch, database.objects = fetch, objects
    sys.exit(cli.main())
