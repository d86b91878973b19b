"""BigQuery keeps the contract of a warehouse, through Google's own clients."""

from collections.abc import Iterator

import pytest

from airflow_batch_llm.testing.warehouses import WarehouseContract
from tests.emulators.servers import Emulators
from tests.warehouses.bigquery_dataset import BigQueryDataset


@pytest.fixture
def database(emulators: Emulators) -> Iterator[BigQueryDataset]:
    dataset = BigQueryDataset(emulators.bigquery, emulators.bigquery_storage)
    yield dataset
    dataset.close()


class TestBigQuery(WarehouseContract):
    """Every case of the contract."""
