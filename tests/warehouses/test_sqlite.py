"""SQLite keeps the contract of a warehouse, both by its own adapter and by the one for any DB-API driver."""

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from airflow_batch_llm.core.model import ColumnType
from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.errors import SourceError, TargetError, WarehouseBusy
from airflow_batch_llm.testing.staged_rows import columns, definition, labels, land, part, stage
from airflow_batch_llm.testing.warehouses import WarehouseContract
from airflow_batch_llm.warehouses import find_dialect
from airflow_batch_llm.warehouses.arrow import plain_batch, quotable
from airflow_batch_llm.warehouses.base import JoinsKnown
from airflow_batch_llm.warehouses.sql.sqlite import SQLiteWarehouse, _to_sqlite
from airflow_batch_llm.warehouses.sql.warehouse import JoiningSqlWarehouse, SqlWarehouse, sql_warehouse

#: Expressions of the integer n, by the type that they have.
KEY_TYPES = {
    "integer": "n + 9007199254740993",
    "real": "n / 2.0",
    "text": "'it''s ' || n || char(8232)",
    "blob": "CAST('bytes ' || n AS BLOB)",
    "date": "date('1969-12-30', n || ' days')",
}
CARRIED_TYPES: Mapping[str, str] = {}


class SQLiteFile:
    """A database file, looked at with Python's own sqlite3."""

    placeholder = "?"
    longest_name = None
    nul = "\0"
    key_types = KEY_TYPES
    carried_types = CARRIED_TYPES
    rules = frozenset({"not null", "generated", "unique", "check", "collate nocase"})
    generated = "GENERATED ALWAYS AS ('x')"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe: tuple[str, Mapping[str, Any]] = (f"{__name__}:open_warehouse", {"path": str(path)})

    def open(self) -> SQLiteWarehouse:
        return open_warehouse(str(self.path))

    def seed(self, table: str, rows: pa.Table) -> None:
        dialect = find_dialect("sqlite")
        declared = ", ".join(f"{dialect.quote(f.name)} {dialect.column_type(f.type)}" for f in rows.schema)
        connection = sqlite3.connect(self.path)
        connection.execute(f"CREATE TABLE {dialect.quote(table)} ({declared})")
        for batch in rows.to_batches():
            plain = plain_batch(batch, frozenset(), dialect)
            values = zip(*(_to_sqlite(column) for column in plain.columns), strict=True)
            marks = ", ".join("?" * len(rows.schema))
            connection.executemany(f"INSERT INTO {dialect.quote(table)} VALUES ({marks})", values)
        connection.commit()
        connection.close()

    def make(self, table: str, schema: pa.Schema, rules: Mapping[str, str], *constraints: str) -> None:
        connection = sqlite3.connect(self.path)
        connection.execute(definition(find_dialect("sqlite"), table, schema, rules, *constraints))
        connection.close()

    def tables(self) -> set[str]:
        connection = sqlite3.connect(self.path)
        found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        connection.close()
        return {name for (name,) in found}


def open_warehouse(path: str) -> SQLiteWarehouse:
    """The warehouse in another process."""
    return SQLiteWarehouse(path, lock_wait_seconds=60)


@pytest.fixture
def database(tmp_path: Path) -> SQLiteFile:
    return SQLiteFile(tmp_path / "rows.sqlite")


class TestContract(WarehouseContract):
    """The contract, on a file."""


class StagedInTables(SQLiteWarehouse):
    """SQLite's values, with the way in which any other DB-API database is written."""

    load = SqlWarehouse.load
    drop_loaded = SqlWarehouse.drop_loaded
    sweep = SqlWarehouse.sweep
    _published_from = SqlWarehouse._published_from
    _probe_staging = SqlWarehouse._probe_staging


def open_staged_in_tables(path: str) -> StagedInTables:
    """The warehouse in another process."""
    return StagedInTables(path, lock_wait_seconds=60)


class SQLiteWithStagingTables(SQLiteFile):
    """A database file that is written as a server would be."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.recipe = (f"{__name__}:open_staged_in_tables", {"path": str(path)})

    def open(self) -> StagedInTables:
        return open_staged_in_tables(str(self.path))


class TestContractWithStagingTables(WarehouseContract):
    """The contract, by staging tables and DB-API parameters."""

    @pytest.fixture
    def database(self, tmp_path: Path) -> SQLiteWithStagingTables:
        return SQLiteWithStagingTables(tmp_path / "rows.sqlite")


def test_a_source_with_parameters_is_joined_to_a_target_whose_names_hold_marks(tmp_path: Path) -> None:
    database = SQLiteFile(tmp_path / "rows.sqlite")
    database.seed("tickets", pa.table({"%s?": pa.array([1, 2], pa.int64())}))
    target = labels(key=pa.schema([("%s?", pa.int64())]))
    warehouse = database.open()
    warehouse.prepare(target)
    land(warehouse, target, part(), [{"%s?": 2, "_llm_input_hash": "i2"}])
    source = Source(sql='SELECT * FROM tickets WHERE "%s?" > ?', parameters=[1], key=("%s?",))
    (found,) = warehouse.read_known(source, target).read_all().to_pylist()
    warehouse.close()
    assert (found["%s?"], found["_llm_known_input_hash"]) == (2, "i2")


def test_sql_server_looks_keys_up_since_its_subqueries_take_no_order() -> None:
    assert isinstance(sql_warehouse(sqlite3.connect, "mysql"), JoinsKnown)
    assert not isinstance(sql_warehouse(sqlite3.connect, "mssql"), JoinsKnown)


def test_times_and_bytes_are_parameters_that_a_driver_cannot_misquote(tmp_path: Path) -> None:
    """SQL Server in German reads 2026-03-04 10:00:00 as 3 April. SQLite keeps the text as it was given."""
    path = tmp_path / "rows.sqlite"
    dialect = replace(find_dialect("sqlite"), quoted_by_driver=True)
    target = labels(key=pa.schema([("id", pa.timestamp("us"))]), carried=pa.schema([("day", pa.date32())]))
    warehouse = JoiningSqlWarehouse(lambda: sqlite3.connect(path), dialect)
    warehouse.prepare(target)
    at = datetime.fromisoformat("2026-03-04T10:00:00.123456")
    land(warehouse, target, part(), [{"id": at, "day": at.date()}])
    known = warehouse.known(target, pa.record_batch([pa.array([at])], names=["id"]))
    warehouse.close()
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT id, day, _llm_planned_at FROM labels").fetchall()
    assert found == [("2026-03-04T10:00:00.123456", "2026-03-04", "2026-11-21T02:00:00+00:00")]
    assert known.column(0).to_pylist() == ["input"]
    assert quotable(pa.array([b"ab", None], pa.large_binary())) == [bytearray(b"ab"), None]


def test_a_file_that_another_writes_to_is_busy_and_what_is_staged_lands_later(tmp_path: Path) -> None:
    target, path = labels(), tmp_path / "warehouse.sqlite"
    warehouse = SQLiteWarehouse(path, lock_wait_seconds=0)
    warehouse.prepare(target)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    stage(warehouse, target, part(), [{"id": 1, "label": "billing"}])
    with pytest.raises(WarehouseBusy, match="one process write at a time"):
        warehouse.publish(target, [part()])
    with pytest.raises(WarehouseBusy):
        warehouse.prepare(target)
    other.close()
    warehouse.publish(target, [part()])
    warehouse.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT label FROM labels").fetchall() == [("billing",)]


def test_a_key_with_more_digits_than_sqlite_keeps_is_refused(tmp_path: Path) -> None:
    warehouse = SQLiteFile(tmp_path / "rows.sqlite").open()
    warehouse.prepare(labels(key=pa.schema([("id", pa.decimal128(15, 2))])))
    for type_ in (pa.decimal128(16, 2), pa.uint64()):
        with pytest.raises(TargetError, match="keeps 15 digits"):
            warehouse.prepare(labels(key=pa.schema([("id", type_)])))
    warehouse.close()


def test_bytes_that_are_no_text_are_no_text_of_python_s(tmp_path: Path) -> None:
    warehouse = SQLiteFile(tmp_path / "rows.sqlite").open()
    with closing(sqlite3.connect(tmp_path / "rows.sqlite")) as connection, connection:
        connection.execute("CREATE TABLE tickets (id TEXT)")
        connection.execute("INSERT INTO tickets VALUES ('a'), (x'ff')")
    with pytest.raises(SourceError, match="column id was read as string"):
        warehouse.read(Source(table="tickets")).read_all()
    warehouse.close()


def test_whatever_people_write_into_a_review_is_read(tmp_path: Path) -> None:
    database = SQLiteFile(tmp_path / "rows.sqlite")
    target = labels(review="labels__review", answer=columns(day=ColumnType.DATE, count=ColumnType.INTEGER))
    warehouse = database.open()
    warehouse.prepare(target)
    warehouse.prepare_reviews(target)
    with closing(sqlite3.connect(database.path)) as connection, connection:
        connection.execute(
            "INSERT INTO labels__review (id, day, count, reviewed_by, reviewed_at) VALUES (1, 'soon', 'many', 'ada', 'now')"
        )

    (row,) = warehouse.read_reviews(target).read_all().to_pylist()

    warehouse.close()
    assert (row["id"], row["day"], row["count"], row["reviewed_at"]) == (1, "soon", "many", "now")
