"""DuckDB: one file, one writing process at a time.

The file is opened when a verb needs it and let go as soon as it does not: readers share it, a writer has it
alone. Answers are staged as Parquet files in a folder next to it, so the lock is held for a publish and no longer.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.errors import SourceError, TargetError
from airflow_batch_llm.warehouses.arrow import int64_array, plain_batch, typed
from airflow_batch_llm.warehouses.base import KNOWN_COLUMNS, Part, Target
from airflow_batch_llm.warehouses.dialect import full_name, is_same, tables_read
from airflow_batch_llm.warehouses.duckdb.file import DuckDBFile, columns_of, refuse_view, table_of, tables_of
from airflow_batch_llm.warehouses.duckdb.registration import DIALECT
from airflow_batch_llm.warehouses.duckdb.slices import Storage, read_sliced
from airflow_batch_llm.warehouses.publication import (
    Copying,
    Donor,
    Staged,
    answered,
    donor,
    landings,
    preparation,
    publication,
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
from airflow_batch_llm.warehouses.staging import StagedFiles, StagingBounds, StagingFolder, rows_of
from airflow_batch_llm.warehouses.statements import PLACE, Landing, Statements
from airflow_batch_llm.warehouses.target import required_columns

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

#: The settings on which values and their equality depend.
_SESSION = "SET TimeZone = 'UTC'; SET default_collation = ''"
#: DuckDB's types that come out as text, and say more than that.
_ALSO_TYPED = {"JSON": pa.json_(pa.string()), "UUID": pa.uuid()}
_BATCH_ROWS, _BATCH_VALUES, _FEWEST_ROWS = 8_192, 400_000, 2_048
#: A merge holds its rows in memory, so one statement takes no more; the transaction holds all statements.
_MERGED_AT_ONCE = StagingBounds(rows=25_000, bytes=32 << 20)
#: Bytes of rows after which DuckDB drops what it has read of the file.
_FORGOTTEN_AFTER = 32 << 20
#: The memory of one look-up of keys, and of the blocks of the target that it leaves behind.
_LOOK_UP_MEMORY = "32MB"


class DuckDBWarehouse:
    """A DuckDB database file."""

    def __init__(
        self,
        path: str | Path,
        *,
        staging: str | Path | None = None,
        memory_limit: str = "512MB",
        lock_wait_seconds: float = 300.0,
        options: Mapping[str, str | int | bool] | None = None,
    ) -> None:
        """`staging`: a folder that all workers of a run see; by default one next to the file."""
        self._file = DuckDBFile(
            path,
            lock_wait_seconds=lock_wait_seconds,
            options={**(options or {}), "memory_limit": memory_limit},
        )
        staging = staging or f"{self._file.path}.staging"
        self._folder = StagingFolder(Path(staging), DIALECT)
        self._statements = Statements(DIALECT)
        self._reading: DuckDBPyConnection | None = None
        self._sessions: list[DuckDBPyConnection] = []
        self._look_ups: dict[tuple[str, ...], str | None] = {}

    @property
    def asset_uri(self) -> str:
        return self._file.path.as_uri()

    def place(self, table: str) -> Place:
        _, schema, name = full_name(DIALECT.parts(table), ("", "main"))
        return Place(database=self._file.path.resolve().as_uri(), table=f"{schema}.{name}")

    def read(self, source: Source) -> pa.RecordBatchReader:
        if source.table is not None:
            self._refuse_missing(source.table)
        return self._stream(self._statements.select_needed(source), source)

    def bounds(self, source: Source, column: str) -> pa.Table:
        return self.read(self._statements.bounds(source, column)).read_all()

    def reads_table(self, source: Source, table: str) -> bool:
        home = self._home()
        wanted = full_name(DIALECT.parts(table), home)
        return any(is_same(found, wanted) for found in tables_read(source, DIALECT, home))

    def _home(self) -> tuple[str, str]:
        with self._file.translated():
            found = self._session().execute("SELECT current_database(), current_schema()").fetchone()
        return found or ("", "")

    def prepare(self, target: Target) -> None:
        try:
            self._folder.probe()
        except OSError as error:
            raise TargetError(
                f"Answers cannot be staged beside {self._file.path}: {error.strerror}."
            ) from None
        with self._file.translated(), self._transaction() as connection:
            for name in (target.table, target.failures):
                refuse_view(connection, name)
            for statement in preparation(
                target, tables_of(connection, target, with_rules=True), self._statements
            ):
                connection.execute(statement)

    def required_columns(self, target: Target) -> frozenset[str]:
        with self._file.translated(), self._transaction() as connection:
            found = tables_of(connection, target, with_rules=True).target
        return required_columns(target, found.rules) if found is not None else frozenset()

    def known(self, target: Target, keys: pa.RecordBatch) -> pa.RecordBatch:
        plain = plain_batch(keys, frozenset(target.key.names), DIALECT)
        numbered = pa.Table.from_batches([plain]).append_column(PLACE, int64_array(range(keys.num_rows)))
        with self._file.translated():
            query = self._known_query(target)
            if query is None:
                return _nothing_known(keys.num_rows)
            connection = self._session()
            connection.register("asked", numbered)
            # The keys may lie anywhere in the target: a limit keeps what is read of it from staying in memory.
            with self._file.keeping(connection, _LOOK_UP_MEMORY):
                found = connection.sql(query).to_arrow_table()
            connection.close()
        found = found.drop_columns(PLACE).cast(KNOWN_COLUMNS)
        return pa.RecordBatch.from_arrays(
            [column.combine_chunks() for column in found.columns], schema=KNOWN_COLUMNS
        )

    def load(
        self, target: Target, part: Part, answers: pa.RecordBatchReader, failures: pa.RecordBatchReader
    ) -> None:
        self._folder.put(target, part, answers, failures)

    def publish(self, target: Target, parts: Sequence[Part]) -> None:
        if not parts:
            return
        self._folder.files(target, parts)  # all of them are there, before the file is locked
        with self._file.translated(), self._transaction() as connection:
            both = landings(target, tables_of(connection, target), self._statements)
            self._file.work_alone(connection)  # on several threads a merge is no faster, and holds more
            connection.execute("SET write_buffer_row_group_count = 1")  # a full row group goes to the disk
            for portion in self._folder.portions(target, parts, _MERGED_AT_ONCE):
                staged = self._staged(connection, self._folder.files(target, portion), both)
                for step in publication(target, portion, staged, both, self._statements):
                    connection.execute(DIALECT.with_parameters(step.sql), step.parameters)
                self._file.forget(connection)

    def _staged(
        self, connection: "DuckDBPyConnection", files: StagedFiles, both: Sequence[Landing]
    ) -> Staged:
        answers, failures = _parquet(files.answers), _parquet(files.failures)
        return Staged(
            answers=answers,
            failures=failures if any(map(rows_of, files.failures)) else None,
            answers_twice=_any(connection, self._statements.twice(both[0], answers)),
        )

    def answered(
        self, target: Target, table: str, spec_hash: str, among: Sequence[str] | None
    ) -> pa.RecordBatchReader:
        with self._file.translated():
            session = self._session()
            one = _donor(session, target, table)
            session.close()
        return self.read(answered(target, one, spec_hash, among, DIALECT))

    def copy(self, target: Target, part: Part, tables: Sequence[str]) -> int:
        staged = _parquet(self._folder.files(target, [part]).answers)
        with self._file.translated(), self._transaction() as connection:
            both = landings(target, tables_of(connection, target), self._statements)
            donors = [_donor(connection, target, table) for table in tables]
            self._file.work_alone(connection)
            copying = Copying(target=target, statements=self._statements, table=DIALECT.table(target.table))
            for statement in copying.steps(donors, staged, both):
                connection.execute(statement)
            count = connection.execute(copying.count(staged)).fetchone()
        return int(count[0]) if count is not None else 0

    def drop_loaded(self, target: Target, parts: Sequence[Part]) -> None:
        self._folder.remove(target, parts)

    def prepare_reviews(self, target: Target) -> None:
        name = review_table(target)
        with self._file.translated(), self._transaction() as connection:
            refuse_view(connection, name)
            found = table_of(connection, name, with_rules=True)
            for statement in review_preparation(target, found, self._statements):
                connection.execute(statement)

    def refresh_reviews(self, target: Target) -> None:
        with self._file.translated(), self._transaction() as connection:
            for statement in review_refresh(target, self._statements):
                connection.execute(statement)

    def read_reviews(self, target: Target) -> pa.RecordBatchReader:
        return self.read(reviewed(target, self._statements))

    def write_records(self, table: str, rows: pa.RecordBatch) -> None:
        plain = plain_batch(rows, frozenset({record_id(rows.schema)}), DIALECT)
        values = list(zip(*(column.to_pylist() for column in plain.columns), strict=True))
        self.release()  # a file that is read here cannot be written
        with self._file.translated(), self._transaction() as connection:
            refuse_view(connection, table)
            for statement in record_preparation(
                table, rows.schema, columns_of(connection, table), self._statements
            ):
                connection.execute(statement)
            for row in values:
                removal = record_removal(table, rows.schema, self._statements)
                connection.execute(DIALECT.with_parameters(removal), row[:1])
                insertion = record_insertion(table, rows.schema, self._statements)
                connection.execute(DIALECT.with_parameters(insertion), row)

    def release(self) -> None:
        for session in self._sessions:
            session.close()
        self._sessions.clear()
        self._look_ups.clear()
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    def sweep(self, target: Target, before: datetime) -> int:  # noqa: ARG002 - the folder is the whole database's
        with self._file.translated():
            return self._folder.sweep(before)

    def close(self) -> None:
        self.release()

    def _refuse_missing(self, table: str) -> None:
        """Raise `SourceError` if there is no such table. DuckDB would take its name for that of a file."""
        with self._file.translated():
            session = self._session()
            is_missing = columns_of(session, table) is None
            session.close()
        if is_missing:
            raise SourceError(
                f"There is no table or view {table} in {self._file.path}. Check source_table. Files are named by source_uri."
            )

    def _stream(self, query: str, source: Source) -> pa.RecordBatchReader:
        """Return the rows of a query. It is begun with the first row, since its schema alone costs nothing."""
        with self._file.translated_reading():
            relation = self._session().sql(query, params=source.parameters)
            types = [str(type_) for type_ in relation.types]
            fields = relation.limit(0).to_arrow_table().schema
        schema = pa.schema(
            [
                field.with_type(_ALSO_TYPED.get(type_, field.type))
                for field, type_ in zip(fields, types, strict=True)
            ]
        )
        return pa.RecordBatchReader.from_batches(schema, self._batches(relation, schema, source))

    def _batches(self, relation: Any, schema: pa.Schema, source: Source) -> Iterator[pa.RecordBatch]:
        handed_out = 0
        control = self._session()
        with self._file.translated_reading():
            reader = self._read(control, relation, schema, source)
        with self._file.translated():
            # The statement's own work was done on all threads; one is enough to hand the rows out.
            self._file.work_alone(control)
            for batch in reader:
                arrays = [
                    typed(array, field.type) for array, field in zip(batch.columns, schema, strict=True)
                ]
                size = batch.nbytes
                del batch
                yield pa.RecordBatch.from_arrays(arrays, schema=schema)
                del arrays
                handed_out += size
                if handed_out > _FORGOTTEN_AFTER:
                    self._file.forget(control)
                    handed_out = 0

    def _read(
        self, control: "DuckDBPyConnection", relation: Any, schema: pa.Schema, source: Source
    ) -> Iterable[pa.RecordBatch]:
        """Begin to read. A table whose rows are wide or long is read in slices."""
        rows = max(_FEWEST_ROWS, min(_BATCH_ROWS, _BATCH_VALUES // len(schema)))
        if source.table is not None:
            self._file.work_alone(control)  # each thread would hold a block of each column
            storage = Storage.of(control, source.table, schema.names)
            if storage is not None and storage.is_sliced:
                return read_sliced(self._file, control, source, storage)
            if storage is not None:
                storage.warn(source.table)
                rows = min(rows, storage.rows)
        reader: Iterable[pa.RecordBatch] = relation.to_arrow_reader(rows)
        return reader

    def _known_query(self, target: Target) -> str | None:
        """Return the look-up, or None if there is nothing to look up. While the file is open, no other process writes to it."""
        asked = (target.table, target.failures, *target.key.names)
        if asked not in self._look_ups:
            connection = self._session()
            filled = {
                name: column in (columns_of(connection, name) or {})
                and _any(connection, f"SELECT 1 FROM {DIALECT.table(name)} LIMIT 1")
                for name, column in ((target.table, "_llm_planned_at"), (target.failures, "_llm_attempts"))
            }
            query = self._statements.known("asked", target, filled) if any(filled.values()) else None
            self._look_ups[asked] = query
        return self._look_ups[asked]

    def _session(self) -> "DuckDBPyConnection":
        """A connection of its own to the open file: one stream does not stand in another's way."""
        session = self._reader().cursor()
        session.execute(_SESSION)
        self._sessions.append(session)
        return session

    def _reader(self) -> "DuckDBPyConnection":
        if self._reading is None:
            if not self._file.path.exists():
                raise SourceError(f"There is no DuckDB file {self._file.path}.")
            self._reading = self._file.open(read_only=True)
        return self._reading

    @contextmanager
    def _transaction(self) -> Iterator["DuckDBPyConnection"]:
        connection = self._file.open(read_only=False)
        try:
            connection.execute(_SESSION)
            connection.begin()
            yield connection
            connection.commit()
        except BaseException:
            with suppress(Exception):  # the transaction may be gone with its error
                connection.rollback()
            raise
        finally:
            connection.close()


def _nothing_known(rows: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [pa.nulls(rows, field.type) for field in KNOWN_COLUMNS], schema=KNOWN_COLUMNS
    )


def _donor(connection: "DuckDBPyConnection", target: Target, name: str) -> Donor:
    return donor(target, name, columns_of(connection, name), DIALECT)


def _any(connection: "DuckDBPyConnection", query: str) -> bool:
    return connection.execute(query).fetchone() is not None


def _parquet(files: Sequence[Path]) -> str:
    listed = [str(file).replace("'", "''") for file in files]
    return "read_parquet([" + ", ".join(f"'{file}'" for file in listed) + "])"
