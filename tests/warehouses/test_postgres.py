"""PostgreSQL keeps the contract of a warehouse."""

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import psycopg
import pyarrow as pa
import pytest
from psycopg import sql

from airflow_batch_llm.testing.warehouses import WarehouseContract
from airflow_batch_llm.warehouses.dialect import DIALECTS
from airflow_batch_llm.warehouses.postgres import PostgresWarehouse


class PostgresDatabase:
    """A schema of a running server, looked at with psycopg."""

    placeholder = "%s"
    longest_name = 63
    nul = "\ufffd"

    def __init__(self, server: str) -> None:
        name = f"t{uuid4().hex}"
        with psycopg.connect(server) as connection:
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
        self.uri = f"{server}&options=-csearch_path%3D{name}"
        self.recipe: tuple[str, Mapping[str, Any]] = (f"{__name__}:open_warehouse", {"uri": self.uri})

    def open(self) -> PostgresWarehouse:
        return PostgresWarehouse(self.uri)

    def seed(self, table: str, rows: pa.Table) -> None:
        types = [sql.SQL(DIALECTS["postgres"].column_type(field.type)) for field in rows.schema]
        names = [sql.Identifier(name) for name in rows.schema.names]
        declared = [sql.SQL("{} {}").format(*pair) for pair in zip(names, types, strict=True)]
        name = sql.Identifier(table)
        with psycopg.connect(self.uri) as connection, connection.cursor() as cursor:
            cursor.execute(sql.SQL("CREATE TABLE {} ({})").format(name, sql.SQL(", ").join(declared)))
            with cursor.copy(sql.SQL("COPY {} FROM STDIN").format(name)) as copy:
                for row in rows.to_pylist():
                    copy.write_row(list(row.values()))

    def tables(self) -> set[str]:
        with psycopg.connect(self.uri) as connection:
            found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")
            return {name for (name,) in found.fetchall()}


def open_warehouse(uri: str) -> PostgresWarehouse:
    """The warehouse in another process."""
    return PostgresWarehouse(uri)


@pytest.fixture
def database(postgres_uri: str) -> PostgresDatabase:
    return PostgresDatabase(postgres_uri)


class TestContract(WarehouseContract):
    """The contract, in a schema of its own for each case."""
