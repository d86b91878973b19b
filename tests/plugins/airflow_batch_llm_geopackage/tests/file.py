"""A GeoPackage for one test, looked at with Python's own sqlite3. A process that opens it imports no Airflow."""

import sqlite3
import sys
from collections.abc import Mapping
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa

from airflow_batch_llm.testing.staged_rows import definition
from airflow_batch_llm.warehouses import find_dialect
from airflow_batch_llm.warehouses.arrow import plain_batch
from airflow_batch_llm.warehouses.base import Warehouse


class GeoPackageFile:
    """A file, looked at with Python's own sqlite3."""

    placeholder = "?"
    longest_name = None
    nul = "\0"
    key_types: Mapping[str, str] = {"integer": "n + 9007199254740993", "text": "'it''s ' || n"}
    carried_types: Mapping[str, str] = {}
    rules = frozenset({"not null", "generated", "unique", "check"})
    generated = "GENERATED ALWAYS AS ('x')"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe: tuple[str, Mapping[str, Any]] = (f"{__name__}:open_warehouse", {"path": str(path)})

    def open(self) -> Warehouse:
        return open_warehouse(str(self.path))

    def seed(self, table: str, rows: pa.Table) -> None:
        dialect = find_dialect("sqlite")
        declared = ", ".join(f"{dialect.quote(f.name)} {dialect.column_type(f.type)}" for f in rows.schema)
        marks = ", ".join("?" * len(rows.schema))
        self.execute(f"CREATE TABLE {dialect.quote(table)} ({declared})")
        for batch in rows.to_batches():
            columns = plain_batch(batch, frozenset(), dialect).columns
            values = zip(
                *([_bound(value) for value in column.to_pylist()] for column in columns), strict=True
            )
            self.execute(f"INSERT INTO {dialect.quote(table)} VALUES ({marks})", list(values))

    def make(self, table: str, schema: pa.Schema, rules: Mapping[str, str], *constraints: str) -> None:
        self.execute(definition(find_dialect("sqlite"), table, schema, rules, *constraints))

    def tables(self) -> set[str]:
        found = self.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return {name for (name,) in found} - {"gpkg_contents"}

    def execute(self, sql: str, rows: list[Any] | None = None) -> list[Any]:
        connection = sqlite3.connect(self.path)
        with connection:
            ran = connection.execute(sql) if rows is None else connection.executemany(sql, rows)
            found = ran.fetchall()
        connection.close()
        return found


def _bound(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat(" ", "microseconds")
    if isinstance(value, date | time):
        return value.isoformat()
    return str(value) if isinstance(value, Decimal) else value


def open_warehouse(path: str) -> Warehouse:
    """The warehouse in another process, to which only the folder of the plug-in is known."""
    sys.path.append(str(Path(__file__).parents[1]))
    from airflow_batch_llm_geopackage.warehouse import GeoPackage

    opened: Warehouse = GeoPackage(path, description="labels")
    return opened
