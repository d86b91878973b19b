"""DuckDB keeps the contract of a warehouse, and shares its file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from airflow_batch_llm.testing.warehouses import WarehouseContract
from airflow_batch_llm.warehouses.duckdb import DuckDBWarehouse


class DuckDBFile:
    """A database file, looked at with DuckDB's own client."""

    placeholder = "?"
    longest_name = None
    nul = "\0"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe: tuple[str, Mapping[str, Any]] = (f"{__name__}:open_warehouse", {"path": str(path)})
        duckdb.connect(path).close()

    def open(self) -> DuckDBWarehouse:
        return DuckDBWarehouse(self.path, lock_wait_seconds=60)

    def seed(self, table: str, rows: pa.Table) -> None:
        with duckdb.connect(self.path) as connection:
            connection.register("rows_to_seed", rows)
            quoted = ".".join(f'"{name}"' for name in table.split("."))
            connection.execute(f"CREATE TABLE {quoted} AS SELECT * FROM rows_to_seed")

    def tables(self) -> set[str]:
        with duckdb.connect(self.path) as connection:
            return {
                name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()
            }


def open_warehouse(path: str) -> DuckDBWarehouse:
    """The warehouse in another process."""
    return DuckDBWarehouse(path, lock_wait_seconds=60)


@pytest.fixture
def database(tmp_path: Path) -> DuckDBFile:
    return DuckDBFile(tmp_path / "a b'c.duckdb")


class TestContract(WarehouseContract):
    """The contract, on a file whose name needs quoting."""
