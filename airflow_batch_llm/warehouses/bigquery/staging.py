"""A shard's rows on their way into BigQuery: one file, one staging table, one load job.

Answers and failures of a part share the table, so that a part is staged whole or not at all. The columns are called
by their place: no name of the user's has to survive a file format.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_batch_llm.warehouses.arrow import plain_batch
from airflow_batch_llm.warehouses.base import Target
from airflow_batch_llm.warehouses.bigquery.connection import TableName
from airflow_batch_llm.warehouses.bigquery.registration import DIALECT
from airflow_batch_llm.warehouses.bigquery.sql import GOOD, staged_name, staged_schema
from airflow_batch_llm.warehouses.bigquery.types import staged_column, staged_field, staged_type

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
    """The schema of the staged file for columns of these names and types."""
    return pa.schema([(staged_name(at), staged_type(field.type)) for at, field in enumerate(schema)])


def staged_batch(batch: pa.RecordBatch, schema: pa.Schema, key: frozenset[str]) -> pa.RecordBatch:
    """A batch in the shape of the staged file: a column that it does not have is NULL."""
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
    """The name of a file's content."""
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
