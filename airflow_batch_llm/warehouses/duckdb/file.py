"""Open and close one DuckDB file, bound its memory, and translate its errors.

The memory limit is for the work of a statement. DuckDB keeps the blocks that it has read until the limit is reached, so the
package makes it drop them from time to time.
"""

import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from airflow_batch_llm.errors import (
    BatchLLMError,
    InputError,
    MissingExtra,
    SourceError,
    TargetError,
    WarehouseBusy,
    WarehouseError,
)
from airflow_batch_llm.warehouses.base import Target, translated
from airflow_batch_llm.warehouses.dialect import folding
from airflow_batch_llm.warehouses.duckdb.registration import DIALECT
from airflow_batch_llm.warehouses.publication import Table, Tables
from airflow_batch_llm.warehouses.target import Constraint, ConstraintKind, Rules

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


logger = logging.getLogger(__name__)

#: A definition without this word has no computed column.
_AS = re.compile(r"\bAS\b", re.IGNORECASE)

#: The pauses between attempts grow, because each attempt costs CPU time.
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 1.0
#: Errors that only quote the statement. Others may quote a value.
_ABOUT_THE_SOURCE = ("Catalog", "Binder", "Parser", "Permission")
_ABOUT_THE_STATEMENT = ("Catalog", "Binder", "Parser", "Permission", "IO", "Dependency")


class DuckDBFile:
    """A database file, and how it is opened."""

    def __init__(
        self, path: str | Path, *, lock_wait_seconds: float, options: Mapping[str, str | int | bool]
    ) -> None:
        if str(path).startswith(":memory:") or not str(path):
            raise TargetError("A DuckDB in memory is gone with its process: name a file.")
        self.path = Path(path).absolute()
        self._lock_wait_seconds = lock_wait_seconds
        self._options = {
            "temp_directory": f"{self.path}.tmp",
            "preserve_insertion_order": False,
            "python_enable_replacements": False,  # no query reads a variable of this process
            **options,
        }

    def open(self, *, read_only: bool) -> "DuckDBPyConnection":
        """Return a connection, as soon as no other process has the file open."""
        duckdb = _driver()
        until = time.monotonic() + self._lock_wait_seconds
        pause, told = _FIRST_PAUSE_SECONDS, ""
        while True:
            try:
                connection: DuckDBPyConnection = duckdb.connect(
                    self.path, read_only=read_only, config=dict(self._options)
                )
                return connection
            except duckdb.InvalidInputException as error:
                raise InputError(
                    f"DuckDB does not take the options for {self.path}: {str(error).splitlines()[0]}. They are in the"
                    " connection's extra, and in source_hook_params or target_hook_params."
                ) from None
            except (duckdb.IOException, duckdb.ConnectionException) as error:
                holder = _holder(str(error))
                if holder is None:
                    raise
            if time.monotonic() > until:
                raise WarehouseBusy(
                    f"{self.path} is held by {holder}, and was not let go in {self._lock_wait_seconds:g} s. "
                    "DuckDB lets one process write at a time: close the other, or let the tasks run one by one."
                )
            if holder != told:
                told = holder
                logger.warning(
                    "%s is held by %s. Waiting up to %g s for it to end.",
                    self.path,
                    holder,
                    self._lock_wait_seconds,
                )
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def work_alone(self, connection: "DuckDBPyConnection") -> None:
        """Let the calling thread do all work from now on, which `forget` requires."""
        connection.execute("SET threads = 1")

    def forget(self, connection: "DuckDBPyConnection") -> None:
        """Give back the memory of blocks that were read and are not in use."""
        with self.keeping(connection, "16MB"):
            pass

    @contextmanager
    def keeping(self, connection: "DuckDBPyConnection", most: str) -> Iterator[None]:
        """A context in which no more than this is kept of blocks that were read, and no more used by a statement."""
        # Another thread that asked for memory at this moment would be refused it: there must be none.
        self.work_alone(connection)
        # What is in use may be more than that. The refusal would end the transaction of the session that asks.
        with suppress(_driver().OutOfMemoryException), connection.cursor() as other:
            other.execute("SET memory_limit = $limit", {"limit": most})
        try:
            yield
        finally:
            connection.execute("SET memory_limit = $limit", {"limit": self._options["memory_limit"]})

    def translated(self) -> Any:
        """Return a context that translates DuckDB's errors into the package's."""
        return translated((_driver().Error, pa.ArrowException, OSError), self._describe)

    def translated_reading(self) -> Any:
        """Return a context that translates DuckDB's errors into the package's, with a `SourceError` for faults of the source."""
        return translated((_driver().Error, pa.ArrowException, OSError), self._describe_reading)

    def _describe_reading(self, error: Exception) -> BatchLLMError:
        name = type(error).__name__.removesuffix("Exception")
        if name in _ABOUT_THE_SOURCE:
            return SourceError(
                f"DuckDB cannot read the source from {self.path} ({name}): {str(error).splitlines()[0]} "
                "Check source_table or source_sql."
            )
        return self._describe(error)

    def _describe(self, error: Exception) -> BatchLLMError:
        name = type(error).__name__.removesuffix("Exception")
        if name == "OutOfMemory":
            return WarehouseError(
                f"DuckDB needs more than its memory_limit of {self._options['memory_limit']} on {self.path}: it reads "
                "some thousand rows at once, however long they are. Raise the limit, read fewer long columns, or name the"
                " table by source_table and create its long columns with USING COMPRESSION uncompressed."
            )
        said = f": {str(error).splitlines()[0]}" if name in _ABOUT_THE_STATEMENT else ""
        return WarehouseError(f"DuckDB refused a statement on {self.path} ({name}){said}")


def _driver() -> Any:
    try:
        import duckdb
    except ImportError as error:
        raise MissingExtra("DuckDB", "duckdb", error) from None
    return duckdb


def _holder(message: str) -> str | None:
    """Return the process that holds the file, from DuckDB's message, or None for any other error."""
    if found := re.search(r"Conflicting lock is held in (.+?) \(PID (\d+)\)", message):
        return f"process {found[2]} ({found[1]})"
    if "different configuration" in message:
        return "this process, which reads it still (release() lets it go)"
    return "another process" if "Could not set lock" in message else None


#: Tables with an index. It may be on the key, so they are merged in the way that works for all tables.
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


def tables_of(connection: "DuckDBPyConnection", target: Target, *, with_rules: bool = False) -> Tables:
    """Both tables of a target as they are now. Their rules are read on request."""
    found = [table_of(connection, name, with_rules=with_rules) for name in (target.table, target.failures)]
    return Tables(target=found[0], failures=found[1])


def table_of(connection: "DuckDBPyConnection", name: str, *, with_rules: bool = False) -> Table | None:
    """Return a table as it is now, or None. Its rules are read on request."""
    columns = columns_of(connection, name)
    if columns is None:
        return None
    unique = bool(_catalog(connection, _INDEXED, "table_name", name))
    table = Table(columns=columns, unique=unique)
    return replace(table, rules=_rules(connection, name)) if with_rules else table


def columns_of(connection: "DuckDBPyConnection", name: str) -> dict[str, str] | None:
    """Return a table's or a view's columns with their types. Returns None if the catalogue has no such relation."""
    found = _catalog(
        connection, "information_schema.columns", "column_name, data_type, ordinal_position", name
    )
    return {column: type_ for column, type_, _ in sorted(found, key=itemgetter(2))} or None


def refuse_view(connection: "DuckDBPyConnection", name: str) -> None:
    """Raise `TargetError` for a view."""
    if ("VIEW",) in _catalog(connection, "information_schema.tables", "table_type", name):
        raise TargetError(f"{name} is a view, which cannot be merged into. Name a table.")


def has_row_numbers(connection: "DuckDBPyConnection", name: str) -> bool:
    """Return True if `rowid` is the number of a row. It is not in a view, nor where a column has that name."""
    kinds = _catalog(connection, "information_schema.tables", "table_type", name)
    return kinds == [("BASE TABLE",)] and "rowid" not in map(str.lower, columns_of(connection, name) or ())


def _catalog(connection: "DuckDBPyConnection", view: str, facts: str, name: str) -> list[tuple[Any, ...]]:
    """Return the catalogue's rows about a table; names count without their case."""
    *qualifiers, table = DIALECT.parts(name)
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
    definitions = [text for (text,) in _catalog(connection, _DEFINITIONS, "sql", name)]
    generated = _generated(list(filter(_AS.search, definitions)))
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
        folds=folding(definitions, DIALECT.name),
    )


def _generated(definitions: Sequence[str]) -> frozenset[str]:
    """Return the computed columns, which the catalogue shows only in a table's definition."""
    if not definitions:
        return frozenset()
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    found: list[str] = []
    kinds = (exp.GeneratedAsIdentityColumnConstraint, exp.ComputedColumnConstraint)
    for definition in definitions:
        try:
            parsed = sqlglot.parse_one(definition, dialect="duckdb")
        except SqlglotError:
            continue  # the trial statements of a preparation find them, too
        found.extend(column.name for column in parsed.find_all(exp.ColumnDef) if column.find(*kinds))
    return frozenset(found)
