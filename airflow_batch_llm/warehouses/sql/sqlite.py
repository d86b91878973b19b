"""SQLite: one file, one writer at a time, and values that know less than their columns say.

Parts are staged as Parquet files next to the database and loaded into a temporary table, which is no part of the
file; so the file is locked for the merge alone. Dates, times and decimals are kept as ISO texts and numbers.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_batch_llm.errors import BatchLLMError, SourceError, TargetError, WarehouseBusy, WarehouseError
from airflow_batch_llm.warehouses.arrow import plain_schema, record_batch
from airflow_batch_llm.warehouses.base import Part, Target, Warehouse
from airflow_batch_llm.warehouses.dialect import ANSI_TYPES, PARAMETER, Dialect, Upsert, folding, full_name
from airflow_batch_llm.warehouses.kind import ColumnKind
from airflow_batch_llm.warehouses.publication import Staged, Table, staged_columns
from airflow_batch_llm.warehouses.registration import (
    AirflowConnection,
    Place,
    SpecFile,
    UriForm,
    WarehouseType,
)
from airflow_batch_llm.warehouses.sql.catalogue import (
    Ask,
    SqlDialect,
    constraints,
    declared,
    full_parts,
    is_unique,
)
from airflow_batch_llm.warehouses.sql.warehouse import JoiningSqlWarehouse
from airflow_batch_llm.warehouses.staging import StagingFolder
from airflow_batch_llm.warehouses.target import Constraint, ConstraintKind, Rules

_TYPES = f"SELECT name, type, pk FROM pragma_table_info({PARAMETER}, {PARAMETER}) ORDER BY cid"
_WHOLE_UNIQUE = (
    f"SELECT l.name, i.name FROM pragma_index_list({PARAMETER}, {PARAMETER}) AS l, "
    f'pragma_index_info(l.name, {PARAMETER}) AS i WHERE l."unique" = 1 AND l.partial = 0'
)
_COLUMNS = f'SELECT name, "notnull", dflt_value, hidden FROM pragma_table_xinfo({PARAMETER}, {PARAMETER}) ORDER BY cid'
_PRIMARY = f"SELECT 'PRIMARY KEY', name FROM pragma_table_info({PARAMETER}, {PARAMETER}) WHERE pk > 0"
_UNIQUE = (
    f"SELECT l.name, i.name FROM pragma_index_list({PARAMETER}, {PARAMETER}) AS l, "
    f'pragma_index_info(l.name, {PARAMETER}) AS i WHERE l."unique" = 1 AND i.name IS NOT NULL'
)
_FOREIGN = f"""SELECT 'to ' || "table", "from" FROM pragma_foreign_key_list({PARAMETER}, {PARAMETER})"""
#: pragma_table_xinfo's marks of virtual and of stored computed columns.
_COMPUTED = (2, 3)


@dataclass(frozen=True, slots=True)
class SQLiteCatalogue:
    """SQLite's pragmas, as tables."""

    def table(self, ask: Ask, dialect: Dialect, name: str, key: Sequence[str]) -> Table | None:
        schema, plain = _place(dialect, name)
        columns = ask(_TYPES, [plain, schema])
        if not columns:
            return None
        primary = {column for column, _, place in columns if place}
        unique = primary == set(key) or is_unique(ask(_WHOLE_UNIQUE, [plain, schema, schema]), key)
        return Table(columns={column: type_ for column, type_, _ in columns}, unique=unique)

    def rules(self, ask: Ask, dialect: Dialect, name: str) -> Rules:
        schema, plain = _place(dialect, name)
        columns = ask(_COLUMNS, [plain, schema])
        listed = f"SELECT sql FROM {dialect.quote(schema)}.sqlite_master WHERE type = 'table'"
        definitions = [text for (text,) in ask(f"{listed} AND lower(name) = lower({PARAMETER})", [plain])]
        return Rules(
            not_null=frozenset(column for column, is_not_null, _, _ in columns if is_not_null),
            with_default=frozenset(column for column, _, default, _ in columns if default is not None),
            generated=frozenset(column for column, _, _, hidden in columns if hidden in _COMPUTED),
            constraints=(*constraints(_named(ask, schema, plain)), *_checks(definitions)),
            folds=folding(definitions, "sqlite"),
        )

    def home(self, ask: Ask) -> tuple[str, str]:  # noqa: ARG002  the verb of every catalogue
        return "", "main"

    def table_names(self, ask: Ask, dialect: Dialect, where: Sequence[str]) -> list[str]:
        schema = dialect.quote([*where, "main"][0])
        return [
            str(name) for (name,) in ask(f"SELECT name FROM {schema}.sqlite_master WHERE type = 'table'", [])
        ]


def _place(dialect: Dialect, name: str) -> tuple[str, str]:
    _, schema, plain = full_parts(dialect, name)
    return schema or "main", plain


def _named(ask: Ask, schema: str, name: str) -> Iterator[tuple[ConstraintKind, str, str]]:
    for called, column in [*ask(_PRIMARY, [name, schema]), *ask(_UNIQUE, [name, schema, schema])]:
        yield ConstraintKind.UNIQUE, called, column
    # SQLite checks foreign keys only where the connection asks for that.
    if ask("SELECT foreign_keys FROM pragma_foreign_keys", []) == [(1,)]:
        for called, column in ask(_FOREIGN, [name, schema]):
            yield ConstraintKind.FOREIGN_KEY, called, column


def _checks(definitions: Sequence[str]) -> tuple[Constraint, ...]:
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    try:
        parsed = [sqlglot.parse_one(definition, dialect="sqlite") for definition in definitions]
    except SqlglotError:
        return ()
    checks = [check for definition in parsed for check in definition.find_all(exp.CheckColumnConstraint)]
    return tuple(
        Constraint(
            kind=ConstraintKind.CHECK,
            name=check.sql(dialect="sqlite"),
            columns=frozenset(column.name for column in check.find_all(exp.Column)),
        )
        for check in checks
    )


DIALECT = SqlDialect(
    name="sqlite",
    title="SQLite",
    types={
        **ANSI_TYPES,
        ColumnKind.STRING: "TEXT",
        ColumnKind.SMALLINT: "INTEGER",
        ColumnKind.BIGINT: "INTEGER",
        ColumnKind.DOUBLE: "REAL",
        ColumnKind.BINARY: "BLOB",
        ColumnKind.UUID: "TEXT",
        ColumnKind.JSON: "JSON",
        ColumnKind.VECTOR: "JSON",
    },
    own_types={"": ColumnKind.ANY},
    upsert=Upsert.ON_CONFLICT,
    begin="BEGIN IMMEDIATE",
    exact_digits=15,
    max_identifier=65_536,
    catalogue=SQLiteCatalogue(),
)


_ROWS = 10_000
#: SQLite has no decimals, and stores them as doubles.
_EXACT_DIGITS = 15


class SQLiteWarehouse(JoiningSqlWarehouse):
    """A SQLite database file."""

    def __init__(
        self,
        connect: "Callable[[], sqlite3.Connection] | str | Path",
        *,
        staging: str | Path | None = None,
        lock_wait_seconds: float = 300.0,
    ) -> None:
        """`connect` opens a connection, or is the file's path. `staging`: a folder that all workers of a run see."""
        super().__init__(connect if callable(connect) else lambda: sqlite3.connect(connect), DIALECT)
        self._lock_wait_seconds = lock_wait_seconds
        self._staging = Path(staging) if staging else None
        self._file: Path | None = None

    @property
    def asset_uri(self) -> str:
        return f"sqlite://{self._path()}"

    def place(self, table: str) -> Place:
        _, schema, name = full_name(self._dialect.parts(table), ("", "main"))
        return Place(database=f"sqlite://{self._path().resolve()}", table=f"{schema}.{name}")

    def prepare(self, target: Target) -> None:
        _refuse_rounded_keys(target)
        super().prepare(target)

    def release(self) -> None:
        """Let go of the file."""
        self.close()

    def load(
        self, target: Target, part: Part, answers: pa.RecordBatchReader, failures: pa.RecordBatchReader
    ) -> None:
        self._folder().put(target, part, answers, failures)

    def drop_loaded(self, target: Target, parts: Sequence[Part]) -> None:
        self._folder().remove(target, parts)

    def sweep(self, target: Target, before: datetime) -> int:  # noqa: ARG002 - the folder is the whole database's
        with self._translated():
            return self._folder().sweep(before)

    def _review_types(self, target: Target) -> pa.Schema:
        """Read what people fill in as text: SQLite lets them write anything into any column."""
        filled = [pa.field(name, pa.string()) for name in (*target.answer.names, "reviewed_at")]
        kept = [field for field in super()._review_types(target) if field.name != "reviewed_at"]
        return pa.schema([*kept, *filled])

    @contextmanager
    def _published_from(self, target: Target, parts: Sequence[Part]) -> Iterator[tuple[Any, Staged]]:
        files = self._folder().files(target, parts)
        with self._cursor() as cursor:
            tables = (
                ("answers", files.answers, target.answer_columns),
                ("failures", files.failures, target.failure_columns),
            )
            for name, paths, schema in tables:
                columns = staged_columns(schema, target.key.names, self._statements)
                cursor.execute(f"DROP TABLE IF EXISTS temp._llm_{name}")
                cursor.execute(f"CREATE TEMP TABLE _llm_{name} ({', '.join(columns)})")
                cursor.execute("BEGIN")
                for batch in _stored(paths, plain_schema(schema, self._dialect)):
                    self._insert(cursor, f"temp._llm_{name}", batch)
                cursor.execute("COMMIT")
        with self._transaction() as cursor:
            yield cursor, Staged(answers="temp._llm_answers", failures="temp._llm_failures")
        # The temporary tables go with their connection.
        self.release()

    def _probe_staging(self, target: Target) -> None:  # noqa: ARG002  the verb of every database
        try:
            self._folder().probe()
        except OSError as error:
            raise TargetError(f"Answers cannot be staged beside {self._path()}: {error.strerror}.") from None

    def _types(self, connection: Any, cursor: Any, query: str, parameters: Any) -> list[pa.DataType | None]:
        """Return the types of a query's columns, which a view on the query shows. The driver does not say them."""
        look = connection.cursor()
        try:
            look.execute(f"CREATE TEMP VIEW _llm_described AS {_without_parameters(query, parameters)}")
            types = dict(look.execute("SELECT cid, type FROM pragma_table_info('_llm_described')").fetchall())
            look.execute("DROP VIEW temp._llm_described")
        except sqlite3.Error:
            types = {}  # the first rows will tell
        look.close()
        return [declared(types.get(place, ""), DIALECT) for place in range(len(cursor.description))]

    def _record_batch(self, rows: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.RecordBatch:
        columns = [
            _from_sqlite(values, field) for values, field in zip(zip(*rows, strict=True), schema, strict=True)
        ]
        return record_batch(list(zip(*columns, strict=True)), schema)

    def _values(self, batch: pa.RecordBatch) -> list[tuple[Any, ...]]:
        return list(zip(*(_to_sqlite(column) for column in batch.columns), strict=True))

    def _open(self) -> Any:
        connection = super()._open()
        connection.isolation_level = None  # transactions begin where we say so
        connection.execute(f"PRAGMA busy_timeout = {int(self._lock_wait_seconds * 1000)}")
        return connection

    def _path(self) -> Path:
        if self._file is None:
            connection = self._connect()
            file = connection.execute("SELECT file FROM pragma_database_list WHERE name = 'main'").fetchone()[
                0
            ]
            connection.close()
            if not file:
                raise TargetError("A SQLite database in memory is gone with its connection: name a file.")
            self._file = Path(file)
        return self._file

    def _folder(self) -> StagingFolder:
        return StagingFolder(self._staging or Path(f"{self._path()}.staging"), self._dialect)

    def _describe(self, error: Exception) -> BatchLLMError:
        if isinstance(error, BatchLLMError):
            return error
        name = getattr(error, "sqlite_errorname", "") or type(error).__name__
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return WarehouseBusy(
                f"Another process writes to {self._path()}, and did not end in {self._lock_wait_seconds:g} s. "
                "SQLite lets one process write at a time: end the other, or let the tasks run one by one."
            )
        # SQLite's own messages name tables and columns; only the one about undecodable text quotes a value.
        said = f": {error}" if isinstance(error, sqlite3.Error) and "decode" not in str(error) else ""
        kind = TargetError if name.startswith(("SQLITE_READONLY", "SQLITE_PERM")) else WarehouseError
        return kind(f"SQLite refused a statement on {self._path()} ({name}){said}")


def _refuse_rounded_keys(target: Target) -> None:
    for field in target.key:
        long = pa.types.is_decimal(field.type) and field.type.precision > _EXACT_DIGITS
        if long or pa.types.is_uint64(field.type):
            raise TargetError(
                f"The key column {field.name} is {field.type}, of which SQLite keeps {_EXACT_DIGITS} digits: two keys could "
                "become one. CAST it to TEXT in the source's query."
            )


def _stored(paths: Sequence[Path], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for path in paths:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS):
                yield batch.cast(schema)


def _without_parameters(query: str, parameters: Any) -> str:
    """Return the query with NULL for each parameter: a view cannot have any."""
    if parameters is None:
        return query
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    try:
        parsed = sqlglot.parse_one(query, dialect="sqlite")
    except SqlglotError:
        return query
    marks = (exp.Placeholder, exp.Parameter)
    return parsed.transform(lambda node: exp.null() if isinstance(node, marks) else node).sql(
        dialect="sqlite"
    )


def _to_sqlite(column: pa.Array) -> list[Any]:
    values: list[Any] = column.to_pylist()
    if pa.types.is_decimal(column.type):
        return [None if value is None else str(value) for value in values]
    if pa.types.is_timestamp(column.type):
        return [None if value is None else value.isoformat(" ", "microseconds") for value in values]
    if pa.types.is_date(column.type) or pa.types.is_time(column.type):
        return [None if value is None else value.isoformat() for value in values]
    return values


def _from_sqlite(values: Sequence[Any], field: pa.Field) -> Sequence[Any]:
    convert = _reading(field.type)
    if convert is None:
        return values
    with suppress(ArithmeticError, TypeError, ValueError):
        return [None if value is None else convert(value) for value in values]
    raise SourceError(
        f"The column {field.name} is declared so that it holds {field.type}, and some of its rows hold something else."
        " CAST it to TEXT in the source's query."
    )


def _reading(type_: pa.DataType) -> Callable[[Any], Any] | None:
    if pa.types.is_boolean(type_):
        return bool
    if pa.types.is_decimal(type_):
        step = Decimal(1).scaleb(-type_.scale)
        return lambda value: Decimal(str(value)).quantize(step)
    if pa.types.is_timestamp(type_):
        return _instant if type_.tz else datetime.fromisoformat
    if pa.types.is_date(type_):
        return date.fromisoformat
    if pa.types.is_time(type_):
        return time.fromisoformat
    return None


def _instant(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found


def _open_connection(connection: AirflowConnection) -> Warehouse:
    return SQLiteWarehouse(connection.hook().get_conn, **connection.hook_params)


def _open_section(path: str, file: SpecFile) -> Warehouse:
    return SQLiteWarehouse(file.path(path))


WAREHOUSE = WarehouseType(
    name="sqlite",
    dialect=DIALECT,
    uri_form=UriForm.FILE,
    connection_types=frozenset({"sqlite"}),
    open_connection=_open_connection,
    requirement="apache-airflow-providers-sqlite",
    hook_params=frozenset({"lock_wait_seconds", "staging"}),
    section=str,
    open_section=_open_section,
)
