"""The driver's errors that are worth another try. A connection that breaks off is shown with MariaDB's driver."""

import socket

import duckdb
import psycopg2
import pytest

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.errors import SourceError, WarehouseBusy
from airflow_batch_llm.testing.staged_rows import labels
from airflow_batch_llm.warehouses.base import may_pass
from airflow_batch_llm.warehouses.sql.warehouse import SqlWarehouse


def test_a_server_that_cannot_be_reached_is_tried_again_later() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        dsn = f"host=127.0.0.1 port={taken.getsockname()[1]} user=me password=secret"
        warehouse = SqlWarehouse(lambda: psycopg2.connect(dsn), "redshift")
        with pytest.raises(WarehouseBusy, match="could not be reached") as refused:
            warehouse.prepare(labels())
    assert "secret" not in str(refused.value)


def test_a_statement_that_is_wrong_is_not_tried_again() -> None:
    warehouse = SqlWarehouse(duckdb.connect, "redshift")
    with pytest.raises(SourceError, match=r"refused a statement .* reading the source") as refused:
        warehouse.read(Source(sql="SELECT no_such_column")).read_all()
    assert not refused.value.retryable


@pytest.mark.parametrize(
    ("code", "passes"), [(2013, True), (1213, True), (1054, False), (None, True), ("08006", True)]
)
def test_codes_tell_what_mysql_calls_operational_and_is_the_statements_fault(
    code: object, passes: bool
) -> None:
    assert may_pass(psycopg2.OperationalError(), code) is passes
    assert not may_pass(psycopg2.ProgrammingError(), code)
