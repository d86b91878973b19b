"""A table of records in BigQuery: it is shaped if need be, and one MERGE writes many records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from airflow_batch_llm.errors import TargetError
from airflow_batch_llm.warehouses.bigquery.connection import Connection, TableName
from airflow_batch_llm.warehouses.bigquery.jobs import Work, content_label, digest, stem_of, translated
from airflow_batch_llm.warehouses.bigquery.registration import DIALECT
from airflow_batch_llm.warehouses.bigquery.sql import records_merge
from airflow_batch_llm.warehouses.bigquery.types import schema_field

if TYPE_CHECKING:
    from google.cloud.bigquery import QueryJob, Table

#: Rows of one statement, which takes 10,000 parameters at most.
_ROWS_PER_MERGE = 200

#: Two tasks that shape one table at once disturb each other at most so often.
_ROUNDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordTable:
    """One table of records, by its name."""

    connection: Connection
    name: TableName

    def write(self, rows: pa.RecordBatch) -> None:
        """Merge rows by their ids."""
        table = self._shaped(rows.schema)
        for start in range(0, rows.num_rows, _ROWS_PER_MERGE):
            self._merge(rows.slice(start, _ROWS_PER_MERGE), table)

    def _shaped(self, columns: pa.Schema) -> Table:
        """Give the table its columns."""
        from google.api_core.exceptions import Conflict, PreconditionFailed
        from google.cloud.bigquery import Table

        client, retry = self.connection.client, self.connection.patience.retry()
        for _ in range(_ROUNDS):
            table = self.connection.table(self.name)
            there = set() if table is None else {field.name.lower() for field in table.schema}
            missing = [schema_field(field) for field in columns if field.name not in there]
            if table is not None and not missing:
                return table
            with translated(f"shaping {self.name}"):
                try:
                    if table is None:
                        client.create_table(Table(str(self.name), schema=missing), retry=retry)
                    else:
                        table.schema = [*table.schema, *missing]
                        client.update_table(table, ["schema"], retry=retry)
                except (Conflict, PreconditionFailed):
                    continue
        raise TargetError(f"Other tasks keep changing the table {self.name}. The next run writes to it.")

    def _merge(self, rows: pa.RecordBatch, table: Table) -> None:
        content = digest(table.created, *(value for row in rows.to_pylist() for value in row.values()))
        location = table.location
        self.connection.jobs.perform(
            Work(
                doing=f"writing to {self.name}",
                stem=stem_of("records", self.name),
                content=content,
                location=location,
                submit=lambda job_id: self._submit(rows, job_id, location, content),
            )
        )

    def _submit(self, rows: pa.RecordBatch, job_id: str, location: str | None, content: str) -> QueryJob:
        from google.cloud.bigquery import QueryJobConfig, ScalarQueryParameter

        parameters = [
            ScalarQueryParameter(f"r{at}c{place}", DIALECT.column_type(field.type), row[field.name])
            for at, row in enumerate(rows.to_pylist())
            for place, field in enumerate(rows.schema)
        ]
        labels = {**self.connection.labels(), **content_label(content)}
        return self.connection.client.query(
            records_merge(self.name, rows.schema.names, rows.num_rows),
            job_id=job_id,
            location=location,
            job_config=QueryJobConfig(labels=labels, query_parameters=parameters),
            retry=self.connection.patience.retry(),
            job_retry=None,  # a job that fails is followed by one with the next number
        )
