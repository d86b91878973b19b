"""The database's words about a row that it refuses stay out of our errors, and out of their chains."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import duckdb
import psycopg
import psycopg2
import pyarrow as pa
import pytest

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.errors import BatchLLMError, InputError, SourceError, WarehouseError
from airflow_batch_llm.testing.leaks import text_of
from airflow_batch_llm.testing.staged_rows import labels, part, stage
from airflow_batch_llm.warehouses.bigquery.jobs import translated as translated_bigquery
from airflow_batch_llm.warehouses.files.source import FileSource, read_files
from airflow_batch_llm.warehouses.postgres.warehouse import PostgresWarehouse
from airflow_batch_llm.warehouses.sql.warehouse import SqlWarehouse


@pytest.fixture
def canary() -> str:
    """A value that no source file holds, since a traceback quotes those."""
    return f"canary-{uuid4().hex}"


def test_the_search_finds_what_a_formatter_might_print(canary: str) -> None:
    """Each place is found: text, notes, a hidden context, and an attribute of an attribute."""

    def raised(make: Callable[[], None]) -> BaseException:
        with pytest.raises(ValueError, match="plain") as caught:
            make()
        return caught.value

    def noted() -> None:
        error = ValueError("plain")
        error.add_note(canary)
        raise error

    def hidden() -> None:
        try:
            raise KeyError(canary)
        except KeyError:
            raise ValueError("plain") from None

    def attached() -> None:
        error = ValueError("plain")
        error.response = type("Response", (), {"headers": {"x-api-key": canary}})()  # type: ignore[attr-defined]
        raise error

    assert all(canary in text_of(raised(make)) for make in (noted, hidden, attached))


def test_a_row_that_a_constraint_refuses_is_not_quoted(postgres_uri: str, canary: str) -> None:
    schema = f"t{uuid4().hex}"
    uri = f"{postgres_uri}&options=-csearch_path%3D{schema}"
    with psycopg.connect(postgres_uri) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
    warehouse = PostgresWarehouse(uri)
    target = labels()
    try:
        warehouse.prepare(target)
        with psycopg.connect(uri) as connection:
            connection.execute(f"ALTER TABLE {target.table} ADD CHECK (label NOT LIKE 'canary%')")
        stage(warehouse, target, part(1), [{"id": 1, "label": canary}])
        with pytest.raises(WarehouseError, match="CheckViolation") as refused:
            warehouse.publish(target, [part(1)])
    finally:
        warehouse.close()
    assert canary not in text_of(refused.value)


def test_drivers_of_any_database_do_not_get_a_row_into_our_errors(postgres_uri: str, canary: str) -> None:
    sources = {
        "redshift": (lambda: psycopg2.connect(postgres_uri), f"SELECT CAST('{canary}' AS INTEGER)"),
        "mysql": (duckdb.connect, f"SELECT CAST('{canary}' AS INTEGER)"),
        "sqlite": (lambda: sqlite3.connect(":memory:"), f'SELECT nothing."{canary}"'),
    }
    for dialect, (connect, query) in sources.items():
        warehouse = SqlWarehouse(connect, dialect)
        with pytest.raises((SourceError, WarehouseError)) as refused:
            warehouse.read(Source(sql=query)).read_all()
        assert canary not in text_of(refused.value), dialect


def test_sqlalchemys_errors_which_hold_the_parameters_are_left_behind(canary: str) -> None:
    sqlalchemy = pytest.importorskip("sqlalchemy")

    def connect() -> Any:
        engine = sqlalchemy.create_engine("sqlite://")
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text("SELECT * FROM nowhere WHERE body = :body"), {"body": canary})

    with pytest.raises((SourceError, WarehouseError)) as refused:
        SqlWarehouse(connect, "sqlite").prepare(labels())
    assert canary not in text_of(refused.value)


def test_bigquerys_errors_which_hold_the_answer_are_left_behind(canary: str) -> None:
    exceptions = pytest.importorskip("google.api_core.exceptions")
    said = {"reason": "invalidQuery", "message": f"Bad int64 value: {canary}"}

    for error in (
        exceptions.BadRequest(f"POST https://host/queries: Bad int64 value: {canary}", errors=[said]),
        exceptions.RetryError("patience ran out", cause=exceptions.InternalServerError(canary)),
        pa.ArrowInvalid(canary),
    ):
        with pytest.raises(BatchLLMError) as refused, translated_bigquery("reading the source"):
            raise error
        assert canary not in text_of(refused.value)


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_a_file_that_cannot_be_read_is_not_quoted(tmp_path: Path, canary: str, name: str) -> None:
    file = tmp_path / name
    lines = {
        "rows.csv": ["n", canary],
        "rows.jsonl": ['{"n": 1}', f'{{"n": {canary}'],
    }
    file.write_text("\n".join(lines[name]) + "\n")
    with pytest.raises(BatchLLMError) as refused:
        read_files(FileSource(uris=(str(file),), column_types={"n": pa.int64()})).read_all()
    assert canary not in text_of(refused.value)


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://me:pa@{}@127.0.0.1:1/db",
        "postgresql://me:pa/{}@127.0.0.1:1/db",
        "host=127.0.0.1 port={}",
        "host=127.0.0.1 port=1 password=pa {}",
    ],
)
def test_a_malformed_dsn_does_not_print_its_passwords_tail(dsn: str, canary: str) -> None:
    with pytest.raises(InputError) as refused:
        PostgresWarehouse(dsn.format(canary)).prepare(labels())
    assert canary not in text_of(refused.value)
