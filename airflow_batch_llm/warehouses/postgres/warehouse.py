"""PostgreSQL: rows leave and answers come in through COPY; rows of a query with parameters leave through a cursor.

A part is staged in unlogged tables of its own. After a crash of the server such a table is there and empty, so
its comment, which is not lost, tells how many rows it holds; a publish takes nothing for staged that lacks some.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pyarrow as pa

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.errors import (
    BatchLLMError,
    MissingExtra,
    SourceError,
    TargetError,
    WarehouseBusy,
    WarehouseError,
    WarehouseUnreachable,
)
from airflow_batch_llm.warehouses.arrow import plain_batch, record_batch
from airflow_batch_llm.warehouses.base import KNOWN_COLUMNS, Part, Target, may_pass, translated
from airflow_batch_llm.warehouses.dialect import PARAMETER, full_name, is_same, tables_read
from airflow_batch_llm.warehouses.postgres.reads import (
    PostgresRead,
    copy_rows,
    known_tables,
    refuse_malformed,
    table_of,
    tables,
)
from airflow_batch_llm.warehouses.postgres.registration import DIALECT
from airflow_batch_llm.warehouses.publication import (
    Copying,
    Donor,
    Staged,
    answered,
    donor,
    landings,
    preparation,
    publication,
    staged_columns,
)
from airflow_batch_llm.warehouses.registration import Place
from airflow_batch_llm.warehouses.side_tables import (
    record_id,
    record_insertion,
    record_preparation,
    record_removal,
    review_preparation,
    review_refresh,
    review_table,
    reviewed,
)
from airflow_batch_llm.warehouses.staging import forgotten, is_staged_table, not_staged, run_token
from airflow_batch_llm.warehouses.statements import PLACE, Landing, Statements
from airflow_batch_llm.warehouses.target import required_columns

if TYPE_CHECKING:
    from psycopg import Connection, ConnectionInfo, RawCursor

    Connections = Callable[[], Connection[Any]]

#: Classes of errors (the first two characters of their code) that speak of the statement, never of a value.
_ABOUT_THE_STATEMENT = frozenset({"08", "25", "28", "3D", "3F", "40", "42", "53", "54", "55", "57"})
_ABOUT_THE_SOURCE = frozenset({"3F", "42"})  # names, rights, syntax
_NO_PRIVILEGE = "42501"
_NOT_ALLOWED = frozenset({_NO_PRIVILEGE, "25006"})  # no privilege; a read-only transaction
#: Connections, what a server has too little of, its restart, deadlocks: another try may not meet them.
_PASSING = frozenset({"08", "40", "53", "57"})
_TIMED_OUT = "57014"  # the statement's own time limit, or a user's cancel
#: The settings by which values are written as text, in both directions.
_SESSION = (
    "SET TIME ZONE 'UTC'; SET client_encoding TO 'UTF8'; SET datestyle TO 'ISO'; SET intervalstyle TO 'postgres'; "
    "SET extra_float_digits TO 3"
)
_BEFORE_AT = re.compile(r"[^\s'\"]+@")
_VALUE = re.compile(r'value "[^"]*"')


def _server(host: str) -> str:
    """Return the name of a host. A socket is on this machine."""
    return "localhost" if host.startswith(("/", "@")) else host.lower()


class PostgresWarehouse:
    """A PostgreSQL database, by psycopg 3."""

    def __init__(
        self, connect: "Connections | str", *, called: str = "", servers: Mapping[str, Any] | None = None
    ) -> None:
        """`connect` opens a connection of psycopg 3, or is what such a connection is opened with (a DSN, a URI).

        `called` says in messages which connection this is. `servers` has the `host` and the `port` that such a function
        connects to, as libpq takes them. Default: those of the open connection.
        """
        self._called = called
        self._servers = servers or {}
        self._connect = connect
        self._statements = Statements(DIALECT)
        self._writing: Connection[Any] | None = None
        self._reading: list[PostgresRead] = []

    @property
    def asset_uri(self) -> str:
        with self._translated():
            info = self._connection().info
        return f"postgres://{_server(info.host)}:{info.port}/{info.dbname}"

    def place(self, table: str) -> Place:
        """Return where a table is. Of several hosts all count, whichever of them has answered."""
        _, schema, name = full_name(DIALECT.parts(table), self._home())
        with self._translated():
            info = self._connection().info
        hosts, ports = self._configured(info)
        if len(ports) != len(hosts):
            ports = ports[:1] * len(hosts)
        servers = sorted({f"{_server(host)}:{port}" for host, port in zip(hosts, ports, strict=True)})
        return Place(database=f"postgres://{','.join(servers)}/{info.dbname}", table=f"{schema}.{name}")

    def _configured(self, info: "ConnectionInfo") -> tuple[list[str], list[str]]:
        """Return the hosts and the ports that were given. An open connection knows only the one that answered."""
        from psycopg.conninfo import conninfo_to_dict

        given = conninfo_to_dict(self._connect) if isinstance(self._connect, str) else self._servers
        hosts = given.get("host") or given.get("hostaddr") or info.host
        return str(hosts).split(","), str(given.get("port") or info.port).split(",")

    def read(self, source: Source) -> pa.RecordBatchReader:
        return self._stream(self._statements.select_needed(source), source.parameters, source.key)

    def read_known(self, source: Source, target: Target) -> pa.RecordBatchReader:
        with self._transaction() as cursor:
            there = known_tables(cursor, target)
        query = self._statements.read_known(PARAMETER, source, target, there)
        if source.parameters is not None:
            query = query.replace("%", "%%")
        return self._stream(
            query.replace(PARAMETER, self._statements.select(source)), source.parameters, target.key.names
        )

    def bounds(self, source: Source, column: str) -> pa.Table:
        return self.read(self._statements.bounds(source, column)).read_all()

    def reads_table(self, source: Source, table: str) -> bool:
        home = self._home()
        wanted = full_name(DIALECT.parts(table), home)
        return any(is_same(found, wanted) for found in tables_read(source, DIALECT, home))

    def _home(self) -> tuple[str, str]:
        with self._transaction() as cursor:
            found = cursor.execute(
                "SELECT current_database()::text, coalesce(current_schema()::text, '')"
            ).fetchone()
        return found or ("", "")

    def prepare(self, target: Target) -> None:
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", [DIALECT.table(target.table)]
            )
            for statement in preparation(target, tables(cursor, target, with_rules=True), self._statements):
                cursor.execute(statement)
            trial = self._staging_table(target, f"probe_{uuid4().hex[:16]}")
            cursor.execute(f"CREATE UNLOGGED TABLE {trial} (n int); DROP TABLE {trial}")

    def required_columns(self, target: Target) -> frozenset[str]:
        with self._transaction() as cursor:
            found = tables(cursor, target, with_rules=True).target
        return required_columns(target, found.rules) if found is not None else frozenset()

    def known(self, target: Target, keys: pa.RecordBatch) -> pa.RecordBatch:
        plain = plain_batch(keys, frozenset(target.key.names), DIALECT).select(target.key.names)
        types = [DIALECT.column_type(field.type, key=True) for field in target.key]
        lists = ", ".join(f"CAST({PARAMETER} AS {type_}[])" for type_ in types)
        relation = f"(SELECT * FROM unnest({lists}) WITH ORDINALITY AS u ({DIALECT.quote(*target.key.names, PLACE)}))"
        with self._transaction() as cursor:
            query = self._statements.known(relation, target, known_tables(cursor, target))
            cursor.execute(DIALECT.with_parameters(query), [column.to_pylist() for column in plain.columns])
            rows = [row[1:] for row in cursor.fetchall()]
        return record_batch(rows, KNOWN_COLUMNS)

    def load(
        self, target: Target, part: Part, answers: pa.RecordBatchReader, failures: pa.RecordBatchReader
    ) -> None:
        named = self._part_tables(target, part)
        with self._transaction() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", [named[0]])
            counts = [
                self._fill(cursor, table, target, reader)
                for table, reader in zip(named, (answers, failures), strict=True)
            ]
            cursor.execute(f"COMMENT ON TABLE {named[0]} IS '{counts[0]} {counts[1]}'")

    def publish(self, target: Target, parts: Sequence[Part]) -> None:
        if not parts:
            return
        from psycopg.errors import CardinalityViolation

        with self._publishing(target) as (cursor, both), translated(CardinalityViolation, _two_in_one):
            staged = self._staged(cursor, target, parts, both)
            for step in publication(target, parts, staged, both, self._statements):
                cursor.execute(DIALECT.with_parameters(step.sql), step.parameters or None)

    @contextmanager
    def _publishing(self, target: Target) -> "Iterator[tuple[RawCursor[Any], tuple[Landing, Landing]]]":
        """A transaction that changes both tables, one at a time.

        Two publishes that update the same rows in different orders would lock each other out.
        """
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", [DIALECT.table(target.table)]
            )
            found = tables(cursor, target)
            for name, table in ((target.table, found.target), (target.failures, found.failures)):
                if table is not None and not table.unique:
                    cursor.execute(f"LOCK TABLE {DIALECT.table(name)} IN SHARE ROW EXCLUSIVE MODE")
            yield cursor, landings(target, found, self._statements)

    def answered(
        self, target: Target, table: str, spec_hash: str, among: Sequence[str] | None
    ) -> pa.RecordBatchReader:
        with self._transaction() as cursor:
            one = self._donor(cursor, target, table)
        return self.read(answered(target, one, spec_hash, among, DIALECT))

    def copy(self, target: Target, part: Part, tables: Sequence[str]) -> int:
        named = self._part_tables(target, part)
        with self._publishing(target) as (cursor, both):
            self._check_whole(cursor, part, named)
            donors = [self._donor(cursor, target, table) for table in tables]
            copying = Copying(target=target, statements=self._statements, table=DIALECT.table(target.table))
            for statement in copying.steps(donors, named[0], both):
                cursor.execute(statement)
            (count,) = cursor.execute(copying.count(named[0])).fetchone() or (0,)
        return int(count)

    def _donor(self, cursor: "RawCursor[Any]", target: Target, name: str) -> Donor:
        table = table_of(cursor, name, target.key.names)
        return donor(target, name, None if table is None else table.columns, DIALECT)

    def drop_loaded(self, target: Target, parts: Sequence[Part]) -> None:
        for part in parts:
            with self._transaction() as cursor:
                cursor.execute(f"DROP TABLE IF EXISTS {', '.join(self._part_tables(target, part))}")

    def prepare_reviews(self, target: Target) -> None:
        with self._reviewing(target) as cursor:
            found = table_of(cursor, review_table(target), target.key.names, with_rules=True)
            for statement in review_preparation(target, found, self._statements):
                cursor.execute(statement)

    def refresh_reviews(self, target: Target) -> None:
        with self._reviewing(target) as cursor:
            for statement in review_refresh(target, self._statements):
                cursor.execute(statement)

    def read_reviews(self, target: Target) -> pa.RecordBatchReader:
        return self.read(reviewed(target, self._statements))

    def write_records(self, table: str, rows: pa.RecordBatch) -> None:
        plain = plain_batch(rows, frozenset({record_id(rows.schema)}), DIALECT)
        values = list(zip(*(column.to_pylist() for column in plain.columns), strict=True))
        with self._transaction() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", [DIALECT.table(table)])
            found = table_of(cursor, table, [record_id(rows.schema)])
            present = None if found is None else found.columns
            for statement in record_preparation(table, rows.schema, present, self._statements):
                cursor.execute(statement)
            removal, insertion = (
                record_removal(table, rows.schema, self._statements),
                record_insertion(table, rows.schema, self._statements),
            )
            cursor.executemany(DIALECT.with_parameters(removal), [row[:1] for row in values])
            cursor.executemany(DIALECT.with_parameters(insertion), values)

    @contextmanager
    def _reviewing(self, target: Target) -> Iterator["RawCursor[Any]"]:
        """A transaction that changes the review table, one at a time: two would add the same rows."""
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))",
                [DIALECT.table(review_table(target))],
            )
            yield cursor

    def sweep(self, target: Target, before: datetime) -> int:
        home = self._staging_home(target)
        with self._transaction() as cursor:
            found = cursor.execute(
                "SELECT tablename::text FROM pg_tables WHERE schemaname = coalesce($1, current_schema())",
                [home[-1] if home else None],
            ).fetchall()
            tables = {
                name: ".".join(map(DIALECT.quote, (*home, name)))
                for (name,) in found
                if is_staged_table(name)
            }
            ages = {name: _newest(cursor, table) for name, table in tables.items()}
        old = forgotten(ages, before)
        for name in old:
            with self._transaction() as cursor:
                cursor.execute(f"DROP TABLE IF EXISTS {tables[name]}")
        return len(old)

    def close(self) -> None:
        for read in self._reading:
            read.close()
        self._reading.clear()
        if self._writing is not None:
            self._writing.close()
            self._writing = None

    def _stream(self, query: str, parameters: Any, key: Sequence[str] = ()) -> pa.RecordBatchReader:
        with self._translated_reading():
            read = PostgresRead(self._open(), query, parameters, key)
        self._reading.append(read)
        return pa.RecordBatchReader.from_batches(read.schema, self._batches(read))

    def _batches(self, read: PostgresRead) -> Iterator[pa.RecordBatch]:
        with self._translated():
            yield from read.batches()

    def _fill(
        self, cursor: "RawCursor[Any]", table: str, target: Target, reader: pa.RecordBatchReader
    ) -> int:
        """Create a staging table and copy the rows in; the table is left out where there are none of a failure."""
        columns = staged_columns(reader.schema, target.key.names, self._statements)
        cursor.execute(f"DROP TABLE IF EXISTS {table}; CREATE UNLOGGED TABLE {table} ({', '.join(columns)})")
        with cursor.copy(f"COPY {table} FROM STDIN (FORMAT csv)") as copy:
            for batch in reader:
                copy.write(copy_rows(plain_batch(batch, frozenset(target.key.names), DIALECT)))
        return cursor.rowcount

    def _staged(
        self, cursor: "RawCursor[Any]", target: Target, parts: Sequence[Part], both: Sequence[Any]
    ) -> Staged:
        named = [self._part_tables(target, part) for part in parts]
        for part, pair in zip(parts, named, strict=True):
            self._check_whole(cursor, part, pair)
        answers = _union(pair[0] for pair in named)
        failures = _union(pair[1] for pair in named)
        return Staged(
            answers=answers,
            failures=failures,
            answers_twice=_any(cursor, self._statements.twice(both[0], answers)),
            failures_twice=_any(cursor, self._statements.twice(both[1], failures)),
        )

    def _check_whole(self, cursor: "RawCursor[Any]", part: Part, tables: Sequence[str]) -> None:
        (said,) = cursor.execute("SELECT obj_description(to_regclass($1))", [tables[0]]).fetchone() or (None,)
        if said is None:
            raise not_staged(part)
        count = cursor.execute(
            f"SELECT concat_ws(' ', (SELECT count(*) FROM {tables[0]}), (SELECT count(*) FROM {tables[1]}))"
        ).fetchone()
        if count != (said,):
            raise not_staged(part)

    def _part_tables(self, target: Target, part: Part) -> tuple[str, str]:
        name = f"{run_token(target, part.run_id)}_{part.round}_{part.shard}"
        return self._staging_table(target, f"{name}_a"), self._staging_table(target, f"{name}_f")

    def _staging_table(self, target: Target, name: str) -> str:
        return ".".join(DIALECT.quote(part) for part in [*self._staging_home(target), f"_llm_{name}"])

    def _staging_home(self, target: Target) -> list[str]:
        """The schema of staging tables. Empty: the connection's own."""
        *schema, _ = DIALECT.parts(target.table)
        return list(DIALECT.parts(target.staging_schema)) if target.staging_schema else schema

    @contextmanager
    def _transaction(self) -> Iterator["RawCursor[Any]"]:
        from psycopg import RawCursor

        with self._translated():
            connection = self._connection()
            try:
                with connection.transaction(), RawCursor(connection) as cursor:
                    yield cursor
            except BaseException:
                # A connection that broke in mid-way is not used again.
                self._writing = None
                with suppress(Exception):
                    connection.close()
                raise

    def _connection(self) -> "Connection[Any]":
        if self._writing is None or self._writing.closed:
            self._writing = self._open()
        return self._writing

    def _open(self) -> "Connection[Any]":
        try:
            import psycopg
        except ImportError as error:
            raise MissingExtra("PostgreSQL", "postgres", error) from None
        with self._translated():
            connect = self._connect
            if isinstance(connect, str):
                refuse_malformed(connect)
            with translated(psycopg.OperationalError, self._unreachable):
                connection = psycopg.connect(connect) if isinstance(connect, str) else connect()
            connection.execute(_SESSION)
            connection.commit()
        return connection

    def _unreachable(self, error: Exception) -> BatchLLMError:
        """The message of a connection that fails names host, port, user and database. It holds no row and no password."""
        # The text before an @, or for a number, may be the tail of a password that was not quoted in a URI.
        said = _BEFORE_AT.sub("…@", _VALUE.sub('value "…"', " ".join(str(error).split())))
        named = f" by {self._called}" if self._called else ""
        if "FATAL:" in said:  # a server has answered
            return WarehouseUnreachable(
                f"PostgreSQL does not let us in{named}: {said}. Check the connection's login, password and database."
            )
        return WarehouseUnreachable(
            f"PostgreSQL cannot be reached{named}: {said}. Check that the server runs and that the connection's host "
            "and port are right."
        )

    def _translated_reading(self) -> Any:
        with self._translated():
            import psycopg
        return translated((psycopg.Error, UnicodeError, pa.ArrowException), _describe_reading)

    def _translated(self) -> Any:
        try:
            import psycopg
        except ImportError as error:
            raise MissingExtra("PostgreSQL", "postgres", error) from None
        return translated((psycopg.Error, UnicodeError, pa.ArrowException), _describe)


def _describe_reading(error: Exception) -> BatchLLMError:
    """An error of the source's query is the source's, whatever the same error would be of another statement."""
    code = getattr(error, "sqlstate", None) or ""
    if code[:2] not in _ABOUT_THE_SOURCE:
        return _describe(error)
    said = getattr(error, "diag").message_primary  # noqa: B009  the class is known only where psycopg is
    advice = (
        "Grant SELECT to the connection's role"
        if code == _NO_PRIVILEGE
        else "Check source_table or source_sql"
    )
    return SourceError(
        f"PostgreSQL cannot read the source ({type(error).__name__} {code}): {said}. {advice}."
    )


def _describe(error: Exception) -> BatchLLMError:
    code = getattr(error, "sqlstate", None) or ""
    diagnosis = getattr(error, "diag", None)
    said = f": {diagnosis.message_primary}" if diagnosis and code[:2] in _ABOUT_THE_STATEMENT else ""
    message = f"PostgreSQL refused a statement ({type(error).__name__}{' ' + code if code else ''}){said}"
    if code in _NOT_ALLOWED:
        return TargetError(message)
    lost = not code and may_pass(error)  # the connection broke: no server has answered
    if lost or (code[:2] in _PASSING and code != _TIMED_OUT):
        return WarehouseBusy(f"{message}. It is tried again; what has not been committed is done again.")
    return WarehouseError(message)


def _two_in_one(_: Exception) -> BatchLLMError:
    return TargetError(
        "Two rows have one key in the table, since its key column holds less than the source's. Give the column the source's"
        " type, and clear the task. What was answered is staged, and lands then."
    )


def _any(cursor: "RawCursor[Any]", query: str) -> bool:
    return cursor.execute(query).fetchone() is not None


def _union(tables: Iterator[str]) -> str:
    return "(" + " UNION ALL ".join(f"SELECT * FROM {table}" for table in tables) + ")"


def _newest(cursor: "RawCursor[Any]", table: str) -> object:
    """The newest plan of a staged table's rows. None: it has no rows."""
    (newest,) = cursor.execute(f"SELECT max(_llm_planned_at) FROM {table}").fetchone() or (None,)
    return newest
