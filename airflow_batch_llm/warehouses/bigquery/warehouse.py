"""BigQuery: Arrow out, load jobs and one transaction in.

What writes is a job whose id follows from its work: an attempt that is killed leaves a job that the next attempt
finds, and of several that publish to one target at once each waits for the one before. A table that requires a
partition filter is read and merged only between the lowest and the highest partition of the rows at hand.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pyarrow as pa

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.errors import SourceError
from airflow_batch_llm.warehouses.base import KNOWN_COLUMNS, Part, Target
from airflow_batch_llm.warehouses.bigquery.connection import (
    BigQuerySettings,
    Connection,
    Query,
    TableName,
    query_parameters,
    quoted,
)
from airflow_batch_llm.warehouses.bigquery.jobs import Work, content_label, digest, stem_of
from airflow_batch_llm.warehouses.bigquery.registration import DIALECT
from airflow_batch_llm.warehouses.bigquery.sql import (
    copy_script,
    copying_into,
    everywhere,
    gathered_rows,
    publish_script,
    review_script,
    staged_schema,
)
from airflow_batch_llm.warehouses.bigquery.stages import BigQueryStage, source_schema
from airflow_batch_llm.warehouses.bigquery.staging import (
    KeyLookup,
    StagingTable,
    content_of,
    staged_rows,
    write_file,
)
from airflow_batch_llm.warehouses.bigquery.tables import RecordTable, TargetTables
from airflow_batch_llm.warehouses.dialect import full_name, is_same, table_bounds, tables_read
from airflow_batch_llm.warehouses.publication import answered
from airflow_batch_llm.warehouses.registration import Place
from airflow_batch_llm.warehouses.staging import not_staged

if TYPE_CHECKING:
    from google.cloud.bigquery import QueryJob

__all__ = ["BigQuerySettings", "BigQueryWarehouse"]

#: Tables that one script reads; BigQuery lets a statement name 1,000.
_PARTS_PER_SCRIPT = 500


class BigQueryWarehouse:
    """BigQuery through one client."""

    def __init__(self, settings: BigQuerySettings) -> None:
        self._connection = Connection(settings)

    @property
    def asset_uri(self) -> str:
        """`bigquery://project`."""
        return f"bigquery://{self._connection.client.project}"

    def place(self, table: str) -> Place:
        """Return where a table is: in its own project, which may be another one than the connection's."""
        name = self._connection.name(table)
        return Place(database=f"bigquery://{name.project}", table=f"{name.dataset}.{name.table}")

    def read(self, source: Source) -> pa.RecordBatchReader:
        """Return the rows of a query, or of a table without a query and so without its cost."""
        if source.table is not None:
            name = self._connection.name(source.table)
            table = self._connection.table(name)
            if table is None:
                raise SourceError(f"BigQuery has no table {name}, or this connection may not see it.")
            if table.table_type == "TABLE" and source.within is None:
                return self._connection.reads.table(table, source.columns)
        query = Query(
            sql=self._connection.select(source),
            doing="reading the source",
            parameters=query_parameters(source.parameters),
            labels=self._connection.labels(),
            location=self._connection.settings.location,
        )
        return self._connection.reads.query(query)

    def bounds(self, source: Source, column: str) -> pa.Table:
        """Return the least and the greatest value of a column, by a query."""
        table = self._connection.name(source.table or "").quoted
        return self.read(table_bounds(DIALECT, table, column)).read_all()

    def reads_table(self, source: Source, table: str) -> bool:
        """Return whether the source names this table."""
        wanted = self._connection.name(table)
        home = (self._connection.client.project, self._connection.settings.dataset or "")
        found = tables_read(source, DIALECT, home)
        return any(
            is_same(one, full_name((wanted.project, wanted.dataset, wanted.table), home)) for one in found
        )

    def prepare(self, target: Target) -> None:
        """Create or extend the two tables, and compile the statements of a publish without rows."""
        self._tables(target).prepare()

    def required_columns(self, target: Target) -> frozenset[str]:
        return self._tables(target).required_columns()

    def known(self, target: Target, keys: pa.RecordBatch) -> pa.RecordBatch:
        """Look keys up by one join with a table of them; each call scans the target, so hand in many at once."""
        if not keys.num_rows:
            return pa.RecordBatch.from_pylist([], schema=KNOWN_COLUMNS)
        return self._lookup(target).of_keys(keys)

    def read_known(self, source: Source, target: Target) -> pa.RecordBatchReader:
        """Return the source's rows joined with the target, both in BigQuery."""
        return self._lookup(target).of_source(source)

    def load(
        self, target: Target, part: Part, answers: pa.RecordBatchReader, failures: pa.RecordBatchReader
    ) -> None:
        """Load one part into a staging table of its own."""
        tables = self._tables(target)
        with tempfile.TemporaryDirectory(prefix="bigquery-") as folder:
            path = Path(folder) / "staged.parquet"
            write_file(staged_rows(target, answers, failures), path)
            content = content_of(path)
            table = StagingTable(
                name=tables.staged(part),
                schema=staged_schema(target),
                location=tables.location(),
                labels={**self._connection.labels(target), **content_label(content)},
            )
            self._connection.jobs.perform(
                Work(
                    doing=f"staging a part for {tables.answers}",
                    stem=stem_of("stage", table.name),
                    content=content,
                    location=table.location,
                    submit=lambda job_id: table.load(self._connection.client, path, job_id),
                    standing=lambda job: self._holds(table.name, job.output_rows),
                )
            )

    def publish(self, target: Target, parts: Sequence[Part]) -> None:
        """Merge staged parts, up to 500 of them in one script and one transaction."""
        tables = self._tables(target)
        for start in range(0, len(parts), _PARTS_PER_SCRIPT):
            self._publish(tables, parts[start : start + _PARTS_PER_SCRIPT])

    def answered(
        self, target: Target, table: str, spec_hash: str, among: Sequence[str] | None
    ) -> pa.RecordBatchReader:
        """Return the input hashes that a table has answers to. Each call scans one column of it."""
        one = self._tables(target).donor(table)
        query = Query(
            sql=answered(target, one, spec_hash, among, DIALECT).sql or "",
            doing=f"looking up answers in {table}",
            labels=self._connection.labels(target),
            location=self._connection.settings.location,
        )
        return self._connection.reads.query(query)

    def copy(self, target: Target, part: Part, tables: Sequence[str]) -> int:
        """Copy answers in one script and one transaction, then count the target's rows."""
        written = self._tables(target)
        found, staged = written.look(), written.staged(part)
        donors = [written.donor(table) for table in tables]
        self._change(written, copy_script(found, staged, donors), [self._version(staged, part)])
        rows = gathered_rows(replace(found, target=target.without_answer), [staged])
        query = Query(
            sql=copying_into(found, everywhere(found, "t")).count(f"({rows})"),
            doing=f"counting copies in {written.answers}",
            labels=self._connection.labels(target),
            location=written.location(),
        )
        [row] = self._connection.reads.query(query).read_all().to_pylist()
        return int(row["n"])

    def drop_loaded(self, target: Target, parts: Sequence[Part]) -> None:
        """Drop the staging tables of parts."""
        tables = self._tables(target)
        for part in parts:
            self._connection.drop(tables.staged(part))

    def prepare_reviews(self, target: Target) -> None:
        """Create or extend the review table, and compile the statements of a refresh."""
        self._tables(target).prepare_reviews()

    def refresh_reviews(self, target: Target) -> None:
        """Change the review table in one transaction. Each refresh is a job of its own, one after the other."""
        tables = self._tables(target)
        review = tables.reviews()
        content, location = uuid4().hex, tables.location()
        labels = {**self._connection.labels(target), **content_label(content)}
        self._connection.jobs.perform(
            Work(
                doing=f"refreshing {review}",
                stem=stem_of("review", review),
                content=content,
                location=location,
                submit=lambda job_id: self._submit(
                    review_script(tables.look(), review), job_id, location, labels
                ),
            )
        )

    def read_reviews(self, target: Target) -> pa.RecordBatchReader:
        """Return the rows that have a reviewer."""
        listed = ", ".join(map(quoted, target.review_columns.names))
        review = self._tables(target).reviews().quoted
        return self.read(Source(sql=f"SELECT {listed} FROM {review} WHERE reviewed_by IS NOT NULL"))

    def source_schema(self, source: Source) -> pa.Schema:
        """Return the columns of a source, by a dry run, which is free."""
        return source_schema(self._connection, source)

    def stage_tables(self, target: Target) -> BigQueryStage:
        """Return the tables that a stage has besides its target."""
        return BigQueryStage(connection=self._connection, target_tables=self._tables(target))

    def write_records(self, table: str, rows: pa.RecordBatch) -> None:
        """Merge records by their ids."""
        RecordTable(connection=self._connection, name=self._connection.name(table)).write(rows)

    def close(self) -> None:
        """Close the clients; the next verb opens them again."""
        self._connection.close()

    def _tables(self, target: Target) -> TargetTables:
        answers = self._connection.name(target.table)
        staging = answers
        if target.staging_schema is not None:
            staging = self._connection.name(f"{target.staging_schema}.staged")
        return TargetTables(
            connection=self._connection,
            target=target,
            answers=answers,
            failures=self._connection.name(target.failures),
            staging=staging,
            review=None if target.review is None else self._connection.name(target.review),
        )

    def _lookup(self, target: Target) -> KeyLookup:
        return KeyLookup(connection=self._connection, target_tables=self._tables(target))

    def _publish(self, tables: TargetTables, parts: Sequence[Part]) -> None:
        staged = [tables.staged(part) for part in parts]
        versions = [self._version(name, part) for name, part in zip(staged, parts, strict=True)]
        self._change(tables, publish_script(tables.look(), staged), versions)

    def _change(self, tables: TargetTables, script: str, versions: Sequence[str]) -> None:
        """Run a script that changes the target, unless a script of the same content has. Each waits for the one before."""
        content = digest(script, tables.created(), *versions)
        location = tables.location()
        self._connection.jobs.perform(
            Work(
                doing=f"merging into {tables.answers}",
                stem=stem_of("publish", tables.answers),
                content=content,
                location=location,
                submit=lambda job_id: self._submit(
                    script,
                    job_id,
                    location,
                    {
                        **self._connection.labels(tables.target),
                        **content_label(content),
                    },
                ),
            )
        )

    def _submit(self, script: str, job_id: str, location: str | None, labels: dict[str, str]) -> QueryJob:
        from google.cloud.bigquery import QueryJobConfig

        return self._connection.client.query(
            script,
            job_id=job_id,
            location=location,
            job_config=QueryJobConfig(labels=labels),
            retry=self._connection.patience.retry(),
            job_retry=None,  # a job that fails is followed by one with the next number
        )

    def _version(self, name: TableName, part: Part) -> str:
        """Return a mark that changes whenever a staging table does."""
        table = self._connection.table(name)
        if table is None:
            raise not_staged(part)
        return f"{table.created} {table.modified} {table.etag}"

    def _holds(self, name: TableName, rows: int) -> bool:
        """Return whether a table is unchanged since its load."""
        table = self._connection.table(name)
        return table is not None and table.num_rows == rows
