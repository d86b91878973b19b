"""Any database with a DB-API driver: rows by `fetchmany`, answers by batches of typed parameters."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from itertools import chain
from typing import Any
from uuid import uuid4

import pyarrow as pa

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.errors import BatchLLMError, InputError, SourceError, WarehouseBusy, WarehouseError
from airflow_batch_llm.warehouses import find_dialect
from airflow_batch_llm.warehouses.arrow import (
    batches,
    plain_batch,
    quotable,
    record_batch,
    refuse_padded_keys,
)
from airflow_batch_llm.warehouses.base import (
    INPUT_HASHES,
    KNOWN_COLUMNS,
    REVIEW_COLUMNS,
    Part,
    Target,
    Warehouse,
    may_pass,
    translated,
)
from airflow_batch_llm.warehouses.dialect import PARAMETER, Upsert, full_name, is_same, tables_read
from airflow_batch_llm.warehouses.publication import (
    Copying,
    Donor,
    Staged,
    Tables,
    answered,
    donor,
    landings,
    preparation,
    publication,
    staged_columns,
)
from airflow_batch_llm.warehouses.registration import AirflowConnection, Place
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
from airflow_batch_llm.warehouses.sql.catalogue import SqlDialect, described, told_from
from airflow_batch_llm.warehouses.staging import forgotten, is_staged_table, not_staged, run_token
from airflow_batch_llm.warehouses.statements import PLACE, Statements
from airflow_batch_llm.warehouses.target import required_columns

_FIRST_ROWS = 500
_INSERTED_AT_ONCE = 1_000
#: The number of keys of one look-up; SQL Server takes 2,100 parameters, SQLite 500 SELECTs in a UNION.
_ASKED_AT_ONCE = 400
_MOST_PARAMETERS = 2_000


class SqlWarehouse:
    """A database behind a DB-API connection."""

    def __init__(self, connect: Callable[[], Any], dialect: str | SqlDialect, *, asset_uri: str = "") -> None:
        """`connect` opens a connection; `dialect` may be sqlglot's name of its SQL, or that of Airflow's hook."""
        self._connect = connect
        self._dialect = _spoken(dialect)
        self._statements = Statements(self._dialect)
        self._asset_uri = asset_uri
        self._writing: Any = None
        self._reading: list[Any] = []

    @property
    def asset_uri(self) -> str:
        return self._asset_uri or f"{self._dialect.name}://"

    def place(self, table: str) -> Place:
        return Place.of(self.asset_uri, *full_name(self._dialect.parts(table), self._home()))

    def read(self, source: Source) -> pa.RecordBatchReader:
        return self._stream(self._statements.select(source), source.parameters)

    def bounds(self, source: Source, column: str) -> pa.Table:
        return self.read(self._statements.bounds(source, column)).read_all()

    def reads_table(self, source: Source, table: str) -> bool:
        at = self._home()
        wanted = full_name(self._dialect.parts(table), at)
        return any(is_same(found, wanted) for found in tables_read(source, self._dialect, at))

    def _home(self) -> tuple[str, str]:
        with self._transaction() as cursor:
            return self._dialect.catalogue.home(partial(self._ask, cursor))

    def prepare(self, target: Target) -> None:
        with self._transaction() as cursor:
            found = self._ruled(cursor, target, self._tables(cursor, target))
            for statement in preparation(target, found, self._statements):
                cursor.execute(statement)
        self._probe_staging(target)

    def required_columns(self, target: Target) -> frozenset[str]:
        with self._transaction() as cursor:
            found = self._ruled(cursor, target, self._tables(cursor, target)).target
        return required_columns(target, found.rules) if found is not None else frozenset()

    def known(self, target: Target, keys: pa.RecordBatch) -> pa.RecordBatch:
        plain = plain_batch(keys, frozenset(target.key.names), self._dialect).select(target.key.names)
        refuse_padded_keys(plain, target.key.names, self._dialect)
        size = max(1, min(_ASKED_AT_ONCE, _MOST_PARAMETERS // len(target.key)))
        place = self._dialect.quote(PLACE)
        one = ", ".join(
            f"{self._dialect.key_parameter(field.type)} AS {self._dialect.quote(field.name)}"
            for field in target.key
        )
        rows: list[Sequence[Any]] = []
        with self._transaction() as cursor:
            there = self._known_tables(cursor, target)
            for start in range(0, plain.num_rows, size):
                asked = self._values(plain.slice(start, size))
                relation = " UNION ALL ".join(
                    f"SELECT {number} AS {place}, {one}" for number in range(len(asked))
                )
                query = self._statements.known(f"({relation})", target, there)
                self._execute(cursor, query, list(chain.from_iterable(asked)))
                rows.extend(row[1:] for row in cursor.fetchall())
        return record_batch(rows, KNOWN_COLUMNS)

    def load(
        self, target: Target, part: Part, answers: pa.RecordBatchReader, failures: pa.RecordBatchReader
    ) -> None:
        named = self._part_tables(target, part)
        with self._transaction() as cursor:
            for name, reader in zip(named, (failures, answers), strict=True):
                cursor.execute(f"DROP TABLE IF EXISTS {name}")
                columns = staged_columns(reader.schema, target.key.names, self._statements)
                cursor.execute(f"CREATE TABLE {name} ({', '.join(columns)})")
                for batch in reader:
                    self._insert(cursor, name, plain_batch(batch, frozenset(target.key.names), self._dialect))

    def publish(self, target: Target, parts: Sequence[Part]) -> None:
        if not parts:
            return
        with self._published_from(target, parts) as (cursor, staged):
            both = landings(target, self._tables(cursor, target), self._statements)
            for step in publication(target, parts, staged, both, self._statements):
                self._execute(cursor, step.sql, step.parameters)

    def drop_loaded(self, target: Target, parts: Sequence[Part]) -> None:
        with self._transaction() as cursor:
            for part in parts:
                for name in self._part_tables(target, part):
                    cursor.execute(f"DROP TABLE IF EXISTS {name}")

    def prepare_reviews(self, target: Target) -> None:
        name = review_table(target)
        with self._transaction() as cursor:
            found = self._table(cursor, name, target)
            rules = self._dialect.catalogue.rules(partial(self._ask, cursor), self._dialect, name)
            ruled = found and replace(found, rules=rules)
            for statement in review_preparation(target, ruled, self._statements):
                cursor.execute(statement)

    def refresh_reviews(self, target: Target) -> None:
        with self._transaction() as cursor:
            for statement in review_refresh(target, self._statements):
                cursor.execute(statement)

    def read_reviews(self, target: Target) -> pa.RecordBatchReader:
        source = reviewed(target, self._statements)
        return self._stream(source.sql or "", None, self._review_types(target))

    def write_records(self, table: str, rows: pa.RecordBatch) -> None:
        with self._transaction() as cursor:
            found = self._dialect.catalogue.table(
                partial(self._ask, cursor), self._dialect, table, [record_id(rows.schema)]
            )
            present = None if found is None else [self._dialect.unfolded(name) for name in found.columns]
            for statement in record_preparation(table, rows.schema, present, self._statements):
                cursor.execute(statement)
        values = self._values(plain_batch(rows, frozenset({record_id(rows.schema)}), self._dialect))
        with self._transaction() as cursor:
            for statement, parameters in (
                (record_removal(table, rows.schema, self._statements), [row[:1] for row in values]),
                (record_insertion(table, rows.schema, self._statements), values),
            ):
                cursor.executemany(self._dialect.with_parameters(statement), parameters)

    def _review_types(self, target: Target) -> pa.Schema:
        """The types in which the review table is read, of the columns that are not read as the driver tells."""
        return pa.schema([*target.failure_origin, *REVIEW_COLUMNS])

    def sweep(self, target: Target, before: datetime) -> int:
        where = self._staging_home(target)
        newest = self._dialect.quote("_llm_planned_at")
        with self._transaction() as cursor:
            found = self._dialect.catalogue.table_names(partial(self._ask, cursor), self._dialect, where)
            names = filter(is_staged_table, found)
            tables = {name: ".".join(map(self._dialect.quote, (*where, name))) for name in names}
            ages = {
                name: self._ask(cursor, f"SELECT MAX({newest}) FROM {table}", ())[0][0]
                for name, table in tables.items()
            }
        old = forgotten(ages, before)
        for name in old:
            with self._transaction() as cursor:
                cursor.execute(f"DROP TABLE IF EXISTS {tables[name]}")
        return len(old)

    def close(self) -> None:
        for connection in [*self._reading, *([self._writing] if self._writing else [])]:
            with suppress(Exception):  # the connection may be broken already
                connection.close()
        self._reading.clear()
        self._writing = None

    @contextmanager
    def _published_from(self, target: Target, parts: Sequence[Part]) -> Iterator[tuple[Any, Staged]]:
        """A transaction in which the staged rows can be selected."""
        with self._transaction() as cursor:
            named = [self._part_tables(target, part) for part in parts]
            for part, (_, answers) in zip(parts, named, strict=True):
                if not self._table(cursor, answers, target):
                    raise not_staged(part)
            yield (
                cursor,
                Staged(
                    answers=_union(answers for _, answers in named),
                    failures=_union(failures for failures, _ in named),
                ),
            )

    def _probe_staging(self, target: Target) -> None:
        with self._transaction() as cursor:
            trial = self._staging_table(target, f"probe_{uuid4().hex[:16]}")
            cursor.execute(f"CREATE TABLE {trial} (n INTEGER)")
            cursor.execute(f"DROP TABLE {trial}")

    def _stream(self, query: str, parameters: Any, told: pa.Schema | None = None) -> pa.RecordBatchReader:
        """`told`: the types of columns that we know by name."""
        with translated(Exception, self._describe_reading):
            connection = self._open()
            self._reading.append(connection)
            cursor = connection.cursor()
            cursor.execute(query, parameters) if parameters is not None else cursor.execute(query)
            types = self._types(connection, cursor, query, parameters)
            first = self._first_rows(cursor)
            known = [type_ or told_from([row[place] for row in first]) for place, type_ in enumerate(types)]
            names = [self._dialect.unfolded(column[0]) for column in cursor.description]
        ours = {field.name: field.type for field in told or ()}
        schema = pa.schema([(name, ours.get(name, type_)) for name, type_ in zip(names, known, strict=True)])
        return pa.RecordBatchReader.from_batches(schema, self._batches(connection, cursor, first, schema))

    def _first_rows(self, cursor: Any) -> list[tuple[Any, ...]]:
        """The rows that tell the types which the driver does not."""
        return [tuple(row) for row in cursor.fetchmany(_FIRST_ROWS)]

    def _types(
        self, _connection: Any, cursor: Any, _query: str, _parameters: Any
    ) -> list[pa.DataType | None]:
        """The types of a result's columns, as far as the driver tells them."""
        return [described(column, self._dialect) for column in cursor.description]

    def _batches(
        self, connection: Any, cursor: Any, first: list[tuple[Any, ...]], schema: pa.Schema
    ) -> Iterator[pa.RecordBatch]:
        with self._translated():
            if first:
                yield self._record_batch(first, schema)
            yield from batches(cursor.fetchmany, schema, self._record_batch)
            cursor.close()
            connection.close()
            self._reading.remove(connection)

    def _record_batch(self, rows: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.RecordBatch:
        return record_batch(rows, schema)

    def _insert(self, cursor: Any, name: str, batch: pa.RecordBatch) -> None:
        marks = ", ".join([PARAMETER] * batch.num_columns)
        statement = f"INSERT INTO {name} ({self._dialect.quote(*batch.schema.names)}) VALUES ({marks})"
        for start in range(0, batch.num_rows, _INSERTED_AT_ONCE):
            rows = self._values(batch.slice(start, _INSERTED_AT_ONCE))
            cursor.executemany(self._dialect.with_parameters(statement), rows)

    def _values(self, batch: pa.RecordBatch) -> list[tuple[Any, ...]]:
        """Rows in the types that the driver takes."""
        given = quotable if self._dialect.quoted_by_driver else pa.Array.to_pylist
        return list(zip(*map(given, batch.columns), strict=True))

    def _execute(self, cursor: Any, statement: str, parameters: Sequence[Any]) -> None:
        if parameters:
            cursor.execute(self._dialect.with_parameters(statement), tuple(parameters))
        else:
            cursor.execute(statement)

    def _tables(self, cursor: Any, target: Target) -> Tables:
        return Tables(
            target=self._table(cursor, target.table, target),
            failures=self._table(cursor, target.failures, target),
        )

    def _ruled(self, cursor: Any, target: Target, found: Tables) -> Tables:
        """The tables with the rules that the database enforces on them."""
        ask, rules = partial(self._ask, cursor), self._dialect.catalogue.rules
        return Tables(
            target=found.target and replace(found.target, rules=rules(ask, self._dialect, target.table)),
            failures=found.failures
            and replace(found.failures, rules=rules(ask, self._dialect, target.failures)),
        )

    def _table(self, cursor: Any, name: str, target: Target) -> Any:
        return self._dialect.catalogue.table(
            partial(self._ask, cursor), self._dialect, name, target.key.names
        )

    def _known_tables(self, cursor: Any, target: Target) -> dict[str, bool]:
        found = ((target.table, "_llm_planned_at"), (target.failures, "_llm_attempts"))
        tables = ((name, column, self._table(cursor, name, target)) for name, column in found)
        return {
            name: there is not None and self._dialect.folded(column) in there.columns
            for name, column, there in tables
        }

    def _ask(self, cursor: Any, query: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        self._execute(cursor, query, parameters)
        return [tuple(row) for row in cursor.fetchall()]

    def _part_tables(self, target: Target, part: Part) -> tuple[str, str]:
        name = f"{run_token(target, part.run_id)}_{part.round}_{part.shard}"
        return self._staging_table(target, f"{name}_f"), self._staging_table(target, f"{name}_a")

    def _staging_table(self, target: Target, name: str) -> str:
        return ".".join(self._dialect.quote(part) for part in [*self._staging_home(target), f"_llm_{name}"])

    def _staging_home(self, target: Target) -> list[str]:
        """The schema of staging tables, perhaps with its catalog. Empty: the connection's own."""
        *schema, _ = self._dialect.parts(target.table)
        return list(self._dialect.parts(target.staging_schema)) if target.staging_schema else schema

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        with self._cursor() as cursor:
            if self._dialect.begin:
                cursor.execute(self._dialect.begin)
            yield cursor
            self._writing.commit()

    @contextmanager
    def _cursor(self) -> Iterator[Any]:
        with self._translated():
            if self._writing is None:
                self._writing = self._open()
            cursor = self._writing.cursor()
            try:
                yield cursor
                cursor.close()
            except BaseException:
                self._abandon()
                raise

    def _abandon(self) -> None:
        """Roll back, and do not use a connection again that broke in mid-way."""
        connection, self._writing = self._writing, None
        for undo in (connection.rollback, connection.close):
            with suppress(Exception):
                undo()

    def _open(self) -> Any:
        connection = self._connect()
        if self._dialect.session:
            cursor = connection.cursor()
            cursor.execute(self._dialect.session)
            cursor.close()
        return connection

    def _translated(self) -> Any:
        return translated(Exception, self._describe)

    def _describe_reading(self, error: Exception) -> BatchLLMError:
        """An error of the source's query is the source's, whatever the same error would be of another statement."""
        described = self._describe(error)
        if described.retryable or isinstance(described, SourceError) or described is error:
            return described
        return SourceError(
            f"{described} This was reading the source: check that its tables and columns exist, and that the "
            "connection may read them."
        )

    def _describe(self, error: Exception) -> BatchLLMError:
        if isinstance(error, BatchLLMError):
            return error
        code = next((code for code in error.args if isinstance(code, int)), getattr(error, "sqlstate", None))
        said = f"{type(error).__name__}{'' if code is None else f' {code}'}"
        if may_pass(error, code):
            return WarehouseBusy(
                f"{self._dialect.title} at {self.asset_uri} could not be reached, or broke off ({said}). "
                "It is tried again; what has not been "
                "committed is done again. If that does not help, look at the connection and the database's own log."
            )
        return WarehouseError(
            f"{self._dialect.title} refused a statement ({said}). Its message may quote rows and is left out; "
            "the database's own log has it."
        )


def _union(tables: Iterator[str]) -> str:
    return "(" + " UNION ALL ".join(f"SELECT * FROM {name}" for name in tables) + ")"


class CopyingSqlWarehouse(SqlWarehouse):
    """A database that merges rows which come from the table itself."""

    def answered(
        self, target: Target, table: str, spec_hash: str, among: Sequence[str] | None
    ) -> pa.RecordBatchReader:
        with self._transaction() as cursor:
            one = self._donor(cursor, target, table)
        source = answered(target, one, spec_hash, among, self._dialect)
        return self._stream(self._statements.select(source), None, INPUT_HASHES)

    def copy(self, target: Target, part: Part, tables: Sequence[str]) -> int:
        with self._published_from(target.without_answer, [part]) as (cursor, staged):
            both = landings(target, self._tables(cursor, target), self._statements)
            donors = [self._donor(cursor, target, table) for table in tables]
            copying = Copying(
                target=target, statements=self._statements, table=self._dialect.table(target.table)
            )
            for statement in copying.steps(donors, staged.answers, both):
                cursor.execute(statement)
            cursor.execute(copying.count(staged.answers))
            return int(cursor.fetchone()[0])

    def _donor(self, cursor: Any, target: Target, name: str) -> Donor:
        table = self._table(cursor, name, target)
        return donor(target, name, None if table is None else table.columns, self._dialect)


class JoiningSqlWarehouse(CopyingSqlWarehouse):
    """A database that takes any source in a subquery."""

    def read_known(self, source: Source, target: Target) -> pa.RecordBatchReader:
        with self._transaction() as cursor:
            there = self._known_tables(cursor, target)
        query = self._statements.read_known(PARAMETER, source, target, there)
        if source.parameters is not None and "%" in self._dialect.placeholder:
            query = query.replace("%", "%%")
        query = query.replace(PARAMETER, self._statements.select(source))
        reader = self._stream(query, source.parameters, KNOWN_COLUMNS)
        return pa.RecordBatchReader.from_batches(reader.schema, self._checked(reader, target.key.names))

    def _checked(self, reader: pa.RecordBatchReader, key: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for batch in reader:
            refuse_padded_keys(batch, key, self._dialect)
            yield batch


def sql_warehouse(
    connect: Callable[[], Any], dialect: str | SqlDialect, *, asset_uri: str = ""
) -> SqlWarehouse:
    """The adapter of a dialect that has none of its own."""
    spoken = _spoken(dialect)
    made = SqlWarehouse if spoken.upsert is Upsert.DELETE_KEYS_INSERT else CopyingSqlWarehouse
    return (JoiningSqlWarehouse if spoken.joins_sources else made)(connect, spoken, asset_uri=asset_uri)


def _spoken(dialect: str | SqlDialect) -> SqlDialect:
    found = find_dialect(dialect) if isinstance(dialect, str) else dialect
    if not isinstance(found, SqlDialect):
        raise InputError(
            f"{found.title} has an adapter of its own, and is not reached through a DB-API driver."
        )
    return found


def opens(dialect: SqlDialect | None = None) -> Callable[[AirflowConnection], Warehouse]:
    """Build what opens a connection by its hook, in this dialect. Without one, it is the dialect that the hook names."""

    def open_connection(connection: AirflowConnection) -> Warehouse:
        hook = connection.hook(**connection.hook_params)
        spoken = dialect or getattr(hook, "dialect_name", None)
        if spoken is None:
            raise InputError(
                f"The connection {connection.conn_id!r} of type {connection.conn_type!r} is not one of a database."
            )
        return sql_warehouse(hook.get_conn, spoken, asset_uri=connection.uri)

    return open_connection
