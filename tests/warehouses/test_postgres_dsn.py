"""A malformed DSN shows no piece of its password."""

import traceback

import pytest

from airflow_batch_llm.errors import InputError
from airflow_batch_llm.warehouses.postgres.reads import refuse_malformed
from airflow_batch_llm.warehouses.postgres.warehouse import PostgresWarehouse


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://etl:canary@tail@127.0.0.1:1/support",
        "postgresql://etl:canary/tail@127.0.0.1:1/support",
        "postgresql://etl:12/tail@127.0.0.1:1/support",
        "postgresql://etl:canary%tail@127.0.0.1:1/support",
        "postgresql://etl:canary tail@127.0.0.1:1/support",
        "host=127.0.0.1 password=canary tail port=1",
        "host=127.0.0.1 password='canary tail port=1",
    ],
)
def test_a_malformed_dsn_is_refused_without_a_word_of_it(dsn: str) -> None:
    with pytest.raises(InputError, match=r"cannot be read\. It is not shown") as refused:
        PostgresWarehouse(dsn).asset_uri  # noqa: B018  the connection is opened
    shown = "".join(traceback.format_exception(refused.value, chain=True)).replace(dsn, "")
    assert "tail" not in shown.split("Error:", 1)[-1]
    assert refused.value.__context__ is None


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://etl:p%40ss@db-1.example.com:5432,db2:5433/support?sslmode=require",
        "postgresql://etl@[::1]:5432/support",
        "postgresql:///postgres?host=%2Ftmp%2Fpg&options=-csearch_path%3Dx",
        "host=/tmp/pg dbname=support password='a b@c'",
    ],
)
def test_a_good_dsn_is_taken(dsn: str) -> None:
    refuse_malformed(dsn)
