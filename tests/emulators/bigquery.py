"""local-bigquery, corrected where BigQuery is known to do otherwise. Run by the emulators' own interpreter.

It makes several statements of a MERGE. It begins a transaction for them, which breaks one that is open; and it looks
for the filter that a table requires in the WHERE of each, which is nowhere. In BigQuery a MERGE takes part in a
transaction, and the filter stands in its ON. (A MERGE outside of a transaction is not atomic here: the package runs
none.) And of two that submit a job of one id at once, it lets both run.

Its tables are in memory, since nobody reads them after the session: DuckLake would ask records of its own about each
table that a statement names. It looks a result up by having DuckDB list all that there are. Here it asks the table itself.
"""

import sys
import threading
from contextvars import ContextVar
from functools import cache
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
_objects, _connect = database.objects, database._connect
_submitting = threading.Lock()


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
    """Check as before, without the filter of the merged table."""
    _check(tree, table, is_target or (table.catalog, table.db, table.name) == _merged.get())


def fetch(sql: str, params: Any = None) -> list[tuple[Any, ...]]:
    """Fetch as before, without the search of a result for required columns: it has none."""
    return [] if params and params[0] == "emulator" and "duckdb_columns()" in sql else _fetch(sql, params)


def objects(project_id: str, dataset_id: str, table_id: str | None = None) -> Any:
    """Return the objects as before, with the results."""
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


@cache
def connect() -> duckdb.DuckDBPyConnection:
    """Open the database. Each caller's thread does its own work: on tables this small, helpers cost more than they do."""
    connection = _connect()
    connection.execute("SET threads = 1")
    return connection


def attach(connection: duckdb.DuckDBPyConnection, project: str) -> None:
    """Keep a project in memory."""
    connection.execute(f"ATTACH IF NOT EXISTS ':memory:' AS {quote(project)}")
    database._attached.add(project)


if __name__ == "__main__":
    database._connect, database._attach = connect, attach
    merge.run, tables._check, runner.submit = run, check, submit
    database.fetch, database.objects = fetch, objects
    sys.exit(cli.main())
