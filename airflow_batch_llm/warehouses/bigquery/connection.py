"""Connect to BigQuery: the settings, the clients that they make on first use, and the names of tables."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.errors import MissingExtra, TargetError
from airflow_batch_llm.warehouses.base import Target
from airflow_batch_llm.warehouses.bigquery.jobs import (
    BigQueryJobs,
    JobPatience,
    as_error,
    job_labels,
    message_of,
    translated,
)
from airflow_batch_llm.warehouses.bigquery.registration import DIALECT
from airflow_batch_llm.warehouses.bigquery.types import conform, parameter, read_schema
from airflow_batch_llm.warehouses.dialect import table_rows

if TYPE_CHECKING:
    from google.cloud.bigquery import Client, QueryJobConfig, Table
    from google.cloud.bigquery.table import RowIterator
    from google.cloud.bigquery_storage_v1 import BigQueryReadClient


@dataclass(frozen=True, slots=True, kw_only=True)
class TableName:
    """The name of a table: project, dataset and table."""

    project: str
    dataset: str
    table: str

    def __str__(self) -> str:
        return f"{self.project}.{self.dataset}.{self.table}"

    @property
    def quoted(self) -> str:
        return f"{quoted(self.project)}.{quoted(self.dataset)}.{quoted(self.table)}"


def table_name(written: str, *, project: str, dataset: str | None) -> TableName:
    """Read `table` (of the default dataset, where there is one), `dataset.table` or `project.dataset.table`."""
    parts = DIALECT.parts(written)
    if len(parts) == 1 and dataset is not None:
        return TableName(project=project, dataset=dataset, table=parts[0])
    if len(parts) not in (2, 3):
        raise TargetError(
            f"{written!r} names no BigQuery table. Write dataset.table or project.dataset.table."
        )
    return TableName(project=parts[0] if len(parts) == 3 else project, dataset=parts[-2], table=parts[-1])


def quoted(name: str) -> str:
    """Return one identifier, quoted."""
    return DIALECT.quote(name)


logger = logging.getLogger(__name__)

#: Streams read side by side, and batches that may wait between them and the reader.
_STREAMS, _QUEUE = 4, 8

#: Rows of one page over REST.
_PAGE_ROWS = 10_000

#: The most rows handed on in one batch.
_BATCH_ROWS = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A statement that reads, with its parameters and labels."""

    sql: str
    doing: str  # for messages: "reading the source"
    parameters: Sequence[Any] = ()  # in the client library's classes
    labels: Mapping[str, str] = field(default_factory=dict)
    location: str | None = None


def query_parameters(values: Mapping[str, Any] | Sequence[Any] | None) -> list[Any]:
    """Values as named or positional query parameters."""
    if isinstance(values, Mapping):
        return [parameter(name, value) for name, value in values.items()]
    return [parameter(None, value) for value in values or ()]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowStreams:
    """Reads through one client."""

    client: Client
    storage: Callable[[], BigQueryReadClient | None]
    patience: JobPatience
    dataset: str | None = None  # `project.dataset` of tables that a statement names without one

    def table(self, table: Any, columns: Sequence[str] = ()) -> pa.RecordBatchReader:
        """Return all rows of a table, without the cost of a query. `columns` are the needed ones, or empty for all."""
        fields = [one for one in table.schema if one.name in columns] or None
        return self._stream(
            lambda: self.client.list_rows(
                table, selected_fields=fields, page_size=_PAGE_ROWS, retry=self.patience.retry()
            ),
            "reading a table",
        )

    def query(self, query: Query) -> pa.RecordBatchReader:
        """Return the rows of a query."""
        from google.api_core.exceptions import GoogleAPICallError

        retry = self.patience.retry()
        with translated(query.doing):
            try:
                job = self.client.query(
                    query.sql, job_config=self._config(query), location=query.location, retry=retry
                )
                job.result(retry=retry)
                failure = None
            except GoogleAPICallError as error:
                failure = error
        if failure is not None:
            raise as_error(query.doing, failure, compiled=self.complaint(query))
        return self._stream(lambda: job.result(page_size=_PAGE_ROWS, retry=retry), query.doing)

    def complaint(self, query: Query) -> str | None:
        """Return BigQuery's message about a statement that has read no row yet, so that it cannot hold a value."""
        from google.api_core.exceptions import BadRequest, Forbidden, NotFound

        try:
            self.client.query(
                query.sql, job_config=self._config(query, dry_run=True), location=query.location
            )
        except (BadRequest, Forbidden, NotFound) as error:
            return message_of(error)
        return None

    def _config(self, query: Query, *, dry_run: bool = False) -> QueryJobConfig:
        from google.cloud.bigquery import QueryJobConfig

        config = QueryJobConfig(query_parameters=list(query.parameters), labels=dict(query.labels))
        if dry_run:
            config.dry_run = True
        if self.dataset is not None:
            config.default_dataset = self.dataset
        return config

    def _stream(self, begin: Callable[[], RowIterator], doing: str) -> pa.RecordBatchReader:
        with translated(doing):
            rows = begin()
        schema = read_schema(rows.schema)
        return pa.RecordBatchReader.from_batches(schema, self._batches(rows, begin, schema, doing))

    def _batches(
        self, rows: RowIterator, begin: Callable[[], RowIterator], schema: pa.Schema, doing: str
    ) -> Iterator[pa.RecordBatch]:
        with translated(doing):
            for batch in self._fastest(rows, begin):
                for start in range(0, batch.num_rows, _BATCH_ROWS):
                    yield conform(batch.slice(start, _BATCH_ROWS), schema)

    def _fastest(self, rows: RowIterator, begin: Callable[[], RowIterator]) -> Iterator[pa.RecordBatch]:
        """Yield the Storage API's batches, or REST's if that API refuses (no right to it, or a table that it does not serve)."""
        from google.api_core.exceptions import ClientError

        storage = self.storage()
        if storage is not None:
            batches = rows.to_arrow_iterable(
                bqstorage_client=storage, max_queue_size=_QUEUE, max_stream_count=_STREAMS
            )
            try:
                first = next(batches, None)
            except ClientError as error:
                logger.info("Reading over REST: the Storage Read API refuses with %s", type(error).__name__)
                rows = begin()
            else:
                if first is not None:
                    yield first
                    yield from batches
                return
        yield from rows.to_arrow_iterable()


@dataclass(frozen=True, slots=True, kw_only=True)
class BigQuerySettings:
    """The settings of a connection to BigQuery."""

    client: Callable[[], Client]
    storage: Callable[[], BigQueryReadClient] | None = None  # None: rows are read over REST
    dataset: str | None = None  # of tables that are named without one
    location: str | None = None  # of queries; None: where the tables are
    labels: Mapping[str, str] = field(default_factory=dict)  # on every job
    patience: JobPatience = field(default_factory=JobPatience)


class Connection:
    """The clients of one adapter. Nothing is imported or opened before it is needed."""

    def __init__(self, settings: BigQuerySettings) -> None:
        self.settings = settings

    @cached_property
    def client(self) -> Client:
        """The client of the REST interface."""
        try:
            import google.cloud.bigquery  # noqa: F401  what is missing is named before a client is made
        except ImportError as error:
            raise MissingExtra("BigQuery", "google", error) from None
        with translated("connecting"):
            return self.settings.client()

    @cached_property
    def storage(self) -> BigQueryReadClient | None:
        """The client of the Storage Read API."""
        return None if self.settings.storage is None else self.settings.storage()

    @property
    def patience(self) -> JobPatience:
        """Return the limits for repeating a call after a passing failure."""
        return self.settings.patience

    @property
    def reads(self) -> RowStreams:
        """Return the reader that streams rows."""
        dataset = self.settings.dataset
        return RowStreams(
            client=self.client,
            storage=lambda: self.storage,
            patience=self.patience,
            dataset=None if dataset is None else f"{self.client.project}.{dataset}",
        )

    @property
    def jobs(self) -> BigQueryJobs:
        """Return the runner of jobs that write."""
        return BigQueryJobs(client=self.client, patience=self.patience)

    def name(self, written: str) -> TableName:
        """Return a table by the name that the user wrote."""
        return table_name(written, project=self.client.project, dataset=self.settings.dataset)

    def labels(self, target: Target | None = None) -> dict[str, str]:
        """Return the labels of the jobs."""
        return job_labels({**self.settings.labels, **(target.labels if target is not None else {})})

    def select(self, source: Source) -> str:
        """Return a source as a SELECT that may be put in parentheses."""
        if source.table is not None:
            needed = ", ".join(map(quoted, source.columns)) or "*"
            return table_rows(DIALECT, self.name(source.table).quoted, source.within, needed)
        return (source.sql or "").rstrip().rstrip(";")

    def table(self, name: TableName) -> Table | None:
        """Return a table as it is now, or None if it does not exist."""
        from google.api_core.exceptions import NotFound

        with translated(f"looking at {name}"):
            try:
                return self.client.get_table(str(name), retry=self.patience.retry())
            except NotFound:
                return None

    def drop(self, name: TableName) -> None:
        """Drop a table. A missing table is not an error."""
        with translated(f"dropping {name}"):
            self.client.delete_table(str(name), not_found_ok=True, retry=self.patience.retry())

    def close(self) -> None:
        """Close both clients; the next use opens them again."""
        if (storage := self.__dict__.pop("storage", None)) is not None:
            storage.transport.close()
        if (client := self.__dict__.pop("client", None)) is not None:
            client.close()
