"""Rows out of BigQuery as Arrow, streamed: by the Storage Read API where it can be used, else page by page over REST.

Of the rows only a few batches are held at a time, and the schema is known before the first of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from airflow_batch_llm.warehouses.bigquery.jobs import Patience, as_error, message_of, translated
from airflow_batch_llm.warehouses.bigquery.types import conform, parameter, read_schema

if TYPE_CHECKING:
    from google.cloud.bigquery import Client, QueryJobConfig
    from google.cloud.bigquery.table import RowIterator
    from google.cloud.bigquery_storage_v1 import BigQueryReadClient

logger = logging.getLogger(__name__)

#: Streams read side by side, and batches that may wait between them and the reader.
_STREAMS, _QUEUE = 4, 8

#: Rows of one page over REST.
_PAGE_ROWS = 10_000

#: The most rows handed on in one batch.
_BATCH_ROWS = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A statement that reads, and all that goes with it."""

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
class Reads:
    """Reads through one client."""

    client: Client
    storage: Callable[[], BigQueryReadClient | None]
    patience: Patience
    dataset: str | None = None  # `project.dataset` of tables that a statement names without one

    def table(self, table: Any) -> pa.RecordBatchReader:
        """All rows of a table, without a query: reading is free of query costs."""
        return self._stream(
            lambda: self.client.list_rows(table, page_size=_PAGE_ROWS, retry=self.patience.retry()),
            "reading a table",
        )

    def query(self, query: Query) -> pa.RecordBatchReader:
        """The rows of a query."""
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
        """What BigQuery says against a statement before it has read a row, so that no value can be in it."""
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
        """The Storage API's batches; REST's where it refuses to begin (no right to it, a table it does not serve)."""
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
