"""What of a driver's errors is worth another try, told by a driver that only Airflow's hooks know here."""

import socket

import psycopg2
import pytest

from airflow_batch_llm.errors import WarehouseBusy, WarehouseError
from airflow_batch_llm.testing.staged_rows import labels
from airflow_batch_llm.warehouses.base import Source
from airflow_batch_llm.warehouses.sql import SqlWarehouse


def test_a_server_that_cannot_be_reached_is_tried_again_later() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        dsn = f"host=127.0.0.1 port={taken.getsockname()[1]} user=me password=secret"
        warehouse = SqlWarehouse(lambda: psycopg2.connect(dsn), "redshift")
        with pytest.raises(WarehouseBusy, match="could not be reached") as refused:
            warehouse.prepare(labels())
    assert "secret" not in str(refused.value)


def test_a_connection_that_breaks_off_is_tried_again_later(postgres_uri: str) -> None:
    warehouse = SqlWarehouse(lambda: psycopg2.connect(postgres_uri), "redshift")
    with pytest.raises(WarehouseBusy, match="broke off"):
        warehouse.read(Source(sql="SELECT pg_terminate_backend(pg_backend_pid())")).read_all()


def test_a_statement_that_is_wrong_is_not_tried_again(postgres_uri: str) -> None:
    warehouse = SqlWarehouse(lambda: psycopg2.connect(postgres_uri), "redshift")
    with pytest.raises(WarehouseError, match="refused a statement") as refused:
        warehouse.read(Source(sql="SELECT no_such_column")).read_all()
    assert not refused.value.retryable
