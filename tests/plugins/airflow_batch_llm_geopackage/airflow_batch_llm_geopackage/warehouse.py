"""A GeoPackage: the tables of a stage are listed in `gpkg_contents` when they are prepared."""

import sqlite3
from pathlib import Path

from airflow_batch_llm.warehouses.base import Target
from airflow_batch_llm.warehouses.sql.sqlite import SQLiteWarehouse

_APPLICATION_ID = 0x47504B47  # "GPKG"
_CONTENTS = """
CREATE TABLE IF NOT EXISTS gpkg_contents (
    table_name TEXT NOT NULL PRIMARY KEY, data_type TEXT NOT NULL, identifier TEXT UNIQUE, description TEXT DEFAULT ''
)"""
_LIST = "INSERT OR IGNORE INTO gpkg_contents VALUES (?, 'attributes', ?, ?)"


class GeoPackage(SQLiteWarehouse):
    """A GeoPackage file, written as SQLite."""

    def __init__(self, path: str | Path, *, description: str = "") -> None:
        """`description` is the text about a stage's tables in the list of tables."""
        super().__init__(path, lock_wait_seconds=60)
        self._file_path = Path(path)
        self._description = description

    @property
    def asset_uri(self) -> str:
        return f"geopackage://{self._file_path.absolute()}"

    def prepare(self, target: Target) -> None:
        super().prepare(target)
        connection = sqlite3.connect(self._file_path, timeout=60)
        with connection:
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(_CONTENTS)
            for name in (target.table, target.failures):
                connection.execute(_LIST, (name, name, self._description))
        connection.close()
