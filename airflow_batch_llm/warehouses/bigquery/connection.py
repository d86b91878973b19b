"""How BigQuery is reached: settings, the clients made of them on first use, and names read by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.errors import MissingExtra
from airflow_batch_llm.warehouses.base import Target
from airflow_batch_llm.warehouses.bigquery.jobs import Jobs, Patience, job_labels, translated
from airflow_batch_llm.warehouses.bigquery.names import TableName, table_name
from airflow_batch_llm.warehouses.bigquery.reads import Reads

if TYPE_CHECKING:
    from google.cloud.bigquery import Client, Table
    from google.cloud.bigquery_storage_v1 import BigQueryReadClient


@dataclass(frozen=True, slots=True, kw_only=True)
class BigQuerySettings:
    """How BigQuery is reached."""

    client: Callable[[], Client]
    storage: Callable[[], BigQueryReadClient] | None = None  # None: rows are read over REST
    dataset: str | None = None  # of tables that are named without one
    location: str | None = None  # of queries; None: where the tables are
    labels: Mapping[str, str] = field(default_factory=dict)  # on every job
    patience: Patience = field(default_factory=Patience)


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
    def patience(self) -> Patience:
        """How often what fails in passing is tried again."""
        return self.settings.patience

    @property
    def reads(self) -> Reads:
        """What streams rows out."""
        dataset = self.settings.dataset
        return Reads(
            client=self.client,
            storage=lambda: self.storage,
            patience=self.patience,
            dataset=None if dataset is None else f"{self.client.project}.{dataset}",
        )

    @property
    def jobs(self) -> Jobs:
        """What runs jobs that write."""
        return Jobs(client=self.client, patience=self.patience)

    def name(self, written: str) -> TableName:
        """A table by the name that the user wrote."""
        return table_name(written, project=self.client.project, dataset=self.settings.dataset)

    def labels(self, target: Target | None = None) -> dict[str, str]:
        """What the jobs are labelled with."""
        return job_labels({**self.settings.labels, **(target.labels if target is not None else {})})

    def select(self, source: Source) -> str:
        """A source as a SELECT that may stand in parentheses."""
        if source.table is not None:
            return f"SELECT * FROM {self.name(source.table).quoted}"
        return (source.sql or "").rstrip().rstrip(";")

    def table(self, name: TableName) -> Table | None:
        """A table as it is now; None where there is none."""
        from google.api_core.exceptions import NotFound

        with translated(f"looking at {name}"):
            try:
                return self.client.get_table(str(name), retry=self.patience.retry())
            except NotFound:
                return None

    def drop(self, name: TableName) -> None:
        """Drop a table. What is gone already is no error."""
        with translated(f"dropping {name}"):
            self.client.delete_table(str(name), not_found_ok=True, retry=self.patience.retry())

    def close(self) -> None:
        """Close both clients; the next use opens them again."""
        if (storage := self.__dict__.pop("storage", None)) is not None:
            storage.transport.close()
        if (client := self.__dict__.pop("client", None)) is not None:
            client.close()
