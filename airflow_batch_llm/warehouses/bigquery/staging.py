"""Load rows into tables of BigQuery's own: a shard's answers and failures until they are published, or keys for one query.

A shard's rows are one file, one staging table and one load job, so that a part is staged whole or not at all. The columns are
called by their place: no name of the user's has to survive a file format.

Keys from elsewhere become a table that lives for the query that asks what the target knows of them. Rows of BigQuery's own are
joined where they are. In a partitioned target only the partitions between the lowest and the highest of the rows are read.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.warehouses.arrow import plain_batch
from airflow_batch_llm.warehouses.base import KNOWN_COLUMNS, Target
from airflow_batch_llm.warehouses.bigquery.connection import (
    Connection,
    Query,
    TableName,
    query_parameters,
    quoted,
)
from airflow_batch_llm.warehouses.bigquery.jobs import Work, stem_of
from airflow_batch_llm.warehouses.bigquery.registration import DIALECT
from airflow_batch_llm.warehouses.bigquery.sql import (
    GOOD,
    HIGHEST,
    LOWEST,
    BigQueryTables,
    bound,
    bounds_of,
    known_join,
    staged_name,
    staged_schema,
)
from airflow_batch_llm.warehouses.bigquery.tables import TargetTables
from airflow_batch_llm.warehouses.bigquery.types import gathered, staged_column, staged_field, staged_type

if TYPE_CHECKING:
    from google.cloud.bigquery import Client, LoadJob, LoadJobConfig


#: BigQuery drops a staging table after this time if no run has.
_LIFETIME = dt.timedelta(days=7)


def staged_rows(
    target: Target, answers: pa.RecordBatchReader, failures: pa.RecordBatchReader
) -> pa.RecordBatchReader:
    """Answers, then failures, as rows of the staging table."""
    return pa.RecordBatchReader.from_batches(
        file_schema(staged_schema(target)), _both(target, answers=answers, failures=failures)
    )


def _both(
    target: Target, *, answers: pa.RecordBatchReader, failures: pa.RecordBatchReader
) -> Iterator[pa.RecordBatch]:
    schema, key = staged_schema(target), frozenset(target.key.names)
    for rows, good in ((answers, True), (failures, False)):
        for batch in rows:
            marked = batch.append_column(GOOD, pa.repeat(pa.scalar(good), batch.num_rows))
            yield staged_batch(marked, schema, key)


def write_file(rows: pa.RecordBatchReader, path: Path) -> None:
    """Write all rows to one Parquet file, batch by batch."""
    with pq.ParquetWriter(path, rows.schema) as file:
        for batch in rows:
            file.write_batch(batch)


def file_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema of the staged file for columns of these names and types."""
    return pa.schema([(staged_name(at), staged_type(field.type)) for at, field in enumerate(schema)])


def staged_batch(batch: pa.RecordBatch, schema: pa.Schema, key: frozenset[str]) -> pa.RecordBatch:
    """Return a batch in the shape of the staged file: a column that it does not have is NULL."""
    plain, file = plain_batch(batch, key, DIALECT), file_schema(schema)
    there = set(batch.schema.names)
    arrays = [
        staged_column(plain.column(column.name), column.type)
        if column.name in there
        else pa.nulls(batch.num_rows, staged.type)
        for column, staged in zip(schema, file, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=file)


def content_of(path: Path) -> str:
    """Return the name of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


@dataclass(frozen=True, slots=True, kw_only=True)
class StagingTable:
    """One table that is loaded whole from one file."""

    name: TableName
    schema: pa.Schema  # the staged columns under their own names
    location: str | None
    labels: Mapping[str, str]

    def load(self, client: Client, path: Path, job_id: str | None = None) -> LoadJob:
        """Begin to replace the table's content by a file's; the table is given its end before its rows."""
        from google.cloud.bigquery import Table

        table = Table(str(self.name), schema=self._fields())
        table.expires = dt.datetime.now(dt.UTC) + _LIFETIME
        client.create_table(table, exists_ok=True)
        with path.open("rb") as file:
            return client.load_table_from_file(
                file,
                str(self.name),
                size=path.stat().st_size,
                job_id=job_id,
                location=self.location,
                job_config=self._config(),
            )

    def _fields(self) -> list[Any]:
        return [staged_field(column, staged_name(at)) for at, column in enumerate(self.schema)]

    def _config(self) -> LoadJobConfig:
        from google.cloud.bigquery import LoadJobConfig, ParquetOptions, SourceFormat, WriteDisposition

        lists = ParquetOptions()  # type: ignore[no-untyped-call]
        lists.enable_list_inference = True
        return LoadJobConfig(
            source_format=SourceFormat.PARQUET,
            parquet_options=lists,
            write_disposition=WriteDisposition.WRITE_TRUNCATE,
            schema=self._fields(),
            labels=dict(self.labels),
        )


_ORDINAL = "_llm_ordinal"

#: The limits as positional parameters, for a source that has positional parameters.
_POSITIONAL = ("?", "?")
_NAMED = (f"@{LOWEST}", f"@{HIGHEST}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLookup:
    """Looks keys up in one target."""

    connection: Connection
    target_tables: TargetTables

    def of_keys(self, keys: pa.RecordBatch) -> pa.RecordBatch:
        """Return `KNOWN_COLUMNS` for each row of keys, in order."""
        numbered = keys.append_column(_ORDINAL, pa.array(range(keys.num_rows), pa.int64()))
        name = replace(self.target_tables.staging, table=f"llm_keys_{uuid.uuid4().hex}")
        try:
            self._load(name, numbered)
            found = self._join(name, numbered).read_all()
        finally:
            self.connection.drop(name)
        found = found.sort_by(_ORDINAL).drop_columns([_ORDINAL]).cast(KNOWN_COLUMNS)
        return pa.RecordBatch.from_struct_array(found.to_struct_array().combine_chunks())

    def of_source(self, source: Source) -> pa.RecordBatchReader:
        """Return the rows of a source, each with `KNOWN_COLUMNS`."""
        needed = ", ".join(f"S.{quoted(name)}" for name in source.columns) or "S.*"
        return self._query(self.target_tables.look(), *self.statement(source, columns=needed))

    def statement(self, source: Source, *, columns: str) -> tuple[str, list[Any]]:
        """Return the query for these columns of a source's rows, each with `KNOWN_COLUMNS`, and its parameters."""
        tables = self.target_tables.look()
        select, parameters = self.connection.select(source), query_parameters(source.parameters)
        within = None
        if tables.bounded:
            places = _NAMED if isinstance(source.parameters, Mapping) or not parameters else _POSITIONAL
            within = bound(tables.target, "T", *places)
            limits = self._limits_of(tables, select, parameters)
            parameters = [*parameters, *limit_parameters(tables, limits, named=places is _NAMED)]
        return known_join(tables, select, columns=columns, within=within), parameters

    def _limits_of(self, tables: BigQueryTables, select: str, parameters: Sequence[Any]) -> tuple[Any, Any]:
        found = self._query(tables, bounds_of(tables.target, select), parameters).read_all()
        [row] = found.to_pylist()
        return row[LOWEST], row[HIGHEST]

    def _query(self, tables: BigQueryTables, sql: str, parameters: Sequence[Any]) -> pa.RecordBatchReader:
        query = Query(
            sql=sql,
            doing=f"looking up keys in {tables.answers.name}",
            parameters=parameters,
            labels=self.connection.labels(tables.target),
            location=self.connection.settings.location,
        )
        return self.connection.reads.query(query)

    def _join(self, name: TableName, keys: pa.RecordBatch) -> pa.RecordBatchReader:
        tables = self.target_tables.look()
        within, parameters = None, []
        if tables.bounded:
            within = bound(tables.target, "T", *_NAMED)
            limits = pc.min_max(keys.column(tables.target.partition_by)).as_py()
            parameters = limit_parameters(tables, (limits["min"], limits["max"]))
        columns = ", ".join(
            f"{gathered(staged_name(at), field.type, DIALECT.column_type(field.type))} AS {quoted(field.name)}"
            for at, field in enumerate(keys.schema)
        )
        source = f"SELECT {columns} FROM {name.quoted}"
        sql = known_join(tables, source, columns=f"S.{_ORDINAL}", within=within)
        return self._query(tables, sql, parameters)

    def _load(self, name: TableName, keys: pa.RecordBatch) -> None:
        table = StagingTable(
            name=name,
            schema=keys.schema,
            location=self.target_tables.location(),
            labels=self.connection.labels(self.target_tables.target),
        )
        batch = staged_batch(keys, keys.schema, frozenset(self.target_tables.target.key.names))
        with tempfile.TemporaryDirectory(prefix="bigquery-") as folder:
            path = Path(folder) / "keys.parquet"
            write_file(pa.RecordBatchReader.from_batches(file_schema(keys.schema), [batch]), path)
            self.connection.jobs.perform(
                Work(
                    doing=f"loading keys to look up in {self.target_tables.answers}",
                    stem=stem_of("keys", name),
                    content="keys",
                    location=table.location,
                    submit=lambda job_id: table.load(self.connection.client, path, job_id),
                )
            )


def limit_parameters(tables: BigQueryTables, limits: tuple[Any, Any], *, named: bool = True) -> list[Any]:
    """Return the lowest and the highest partition as query parameters, in the type of the target's column."""
    from google.cloud.bigquery import ScalarQueryParameter

    kind = tables.partition_type
    names = (LOWEST, HIGHEST) if named else (None, None)
    return [ScalarQueryParameter(name, kind, value) for name, value in zip(names, limits, strict=True)]
