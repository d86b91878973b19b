"""The contract of a warehouse, by Snowflake's own connector against an emulator (fakesnow) on loopback."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import fakesnow
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import snowflake.connector

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.errors import SourceError
from airflow_batch_llm.testing.staged_rows import definition, labels, part, stage
from airflow_batch_llm.testing.warehouses import WarehouseContract
from airflow_batch_llm.warehouses import find_dialect
from airflow_batch_llm.warehouses.arrow import plain_batch
from airflow_batch_llm.warehouses.sql.snowflake import SnowflakeWarehouse

DIALECT = find_dialect("snowflake")

#: The emulator runs in this process, and DuckDB warns of how it asks for its rows.
pytestmark = pytest.mark.filterwarnings("ignore:Arrow output on a DB-API result:UserWarning")

#: Expressions of the integer n, by the type that they have.
KEY_TYPES = {
    "integer": "n + 9007199254740993",
    "decimal": "CAST(n + 0.01 AS DECIMAL(12, 2))",
    "varchar": "'it''s ' || n",
    "date": "DATEADD(day, n, DATE '1969-12-30')",
}


class SnowflakeDatabase:
    """A database of the emulator, looked at with Snowflake's connector."""

    placeholder = "%s"
    longest_name = 255
    nul = "\0"
    key_types = KEY_TYPES
    carried_types: Mapping[str, str] = MappingProxyType({})
    rules = frozenset({"not null"})
    generated = "AS ('x')"

    def __init__(self, server: Mapping[str, Any]) -> None:
        name = f"T{uuid4().hex.upper()}"
        self.where = {**server, "database": name, "schema": "PUBLIC"}
        with snowflake.connector.connect(**server) as connection:
            connection.cursor().execute(f"CREATE DATABASE {name}")
        self.recipe: tuple[str, Mapping[str, Any]] = (f"{__name__}:open_warehouse", {"where": self.where})

    def open(self) -> SnowflakeWarehouse:
        return open_warehouse(self.where)

    def seed(self, table: str, rows: pa.Table) -> None:
        name, types = DIALECT.quote(table), [DIALECT.column_type(field.type) for field in rows.schema]
        declared = ", ".join(map(" ".join, zip(map(DIALECT.quote, rows.schema.names), types, strict=True)))
        chosen = ", ".join(f"$1:c{place}::{type_}" for place, type_ in enumerate(types))
        plain = [plain_batch(batch, frozenset(), DIALECT) for batch in rows.to_batches()]
        with (
            snowflake.connector.connect(**self.where) as connection,
            connection.cursor() as cursor,
            tempfile.TemporaryDirectory() as folder,
        ):
            cursor.execute(f"CREATE TABLE {name} ({declared})")
            if not plain:
                return
            file = Path(folder) / f"{uuid4().hex}.parquet"
            pq.write_table(
                pa.Table.from_batches(plain).rename_columns([f"c{n}" for n in range(len(types))]), file
            )
            cursor.execute("CREATE OR REPLACE TEMPORARY STAGE seeded")
            cursor.execute(f"PUT 'file://{file}' @seeded AUTO_COMPRESS = FALSE")
            cursor.execute(
                f"COPY INTO {name} FROM (SELECT {chosen} FROM @seeded) FILE_FORMAT = (TYPE = PARQUET)"
            )

    def make(self, table: str, schema: pa.Schema, rules: Mapping[str, str], *constraints: str) -> None:
        with snowflake.connector.connect(**self.where) as connection, connection.cursor() as cursor:
            cursor.execute(definition(DIALECT, table, schema, rules, *constraints))

    def tables(self) -> set[str]:
        with snowflake.connector.connect(**self.where) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = 'PUBLIC'")
            return {DIALECT.unfolded(name) for (name,) in cursor.fetchall()}


def open_warehouse(where: Mapping[str, Any]) -> SnowflakeWarehouse:
    """The warehouse in another process."""
    return SnowflakeWarehouse(lambda: snowflake.connector.connect(**where))


@pytest.fixture(scope="module")
def server() -> Iterator[Mapping[str, Any]]:
    # The emulator cannot run a MERGE in a transaction, and its sessions have no settings: those of ours are taken for nothing.
    ignored = ["^BEGIN$", "^COMMIT$", "^ALTER SESSION SET TIMEZONE"]
    with fakesnow.server(session_parameters={"nop_regexes": ignored}) as where:
        yield where


@pytest.fixture
def database(server: Mapping[str, Any]) -> SnowflakeDatabase:
    return SnowflakeDatabase(server)


class TestContract(WarehouseContract):
    """The contract, in a database of its own for each case."""

    @pytest.mark.xfail(reason="the emulator runs no transactions", strict=False)
    def test_publishes_of_several_processes_leave_each_key_once(self, database: SnowflakeDatabase) -> None:
        super().test_publishes_of_several_processes_leave_each_key_once(database)

    @pytest.mark.xfail(reason="the emulator gives 1970 for a NULL TIMESTAMP_TZ", raises=AssertionError)
    def test_every_type_is_read_as_it_is_stored(
        self, database: SnowflakeDatabase, warehouse: SnowflakeWarehouse
    ) -> None:
        super().test_every_type_is_read_as_it_is_stored(database, warehouse)

    @pytest.mark.xfail(reason="the emulator gives 1970 for a NULL TIMESTAMP_TZ", raises=AssertionError)
    def test_every_type_of_answer_lands_as_it_was(
        self, database: SnowflakeDatabase, warehouse: SnowflakeWarehouse
    ) -> None:
        super().test_every_type_of_answer_lands_as_it_was(database, warehouse)

    @pytest.mark.xfail(reason="the emulator gives 1970 for a NULL TIMESTAMP_TZ", raises=AssertionError)
    def test_dead_rows_come_in_once_and_the_others_do_not(
        self, database: SnowflakeDatabase, reviewing: SnowflakeWarehouse
    ) -> None:
        super().test_dead_rows_come_in_once_and_the_others_do_not(database, reviewing)


def test_rows_come_one_by_one_where_arrow_is_switched_off(database: SnowflakeDatabase) -> None:
    class WithoutArrow(snowflake.connector.cursor.SnowflakeCursor):
        def fetch_arrow_batches(self, *_: Any, **__: Any) -> Any:
            raise snowflake.connector.errors.NotSupportedError

    def connect() -> Any:
        connection = snowflake.connector.connect(**database.where)
        connection.cursor = lambda: WithoutArrow(connection)
        return connection

    database.seed("tickets", pa.table({"id": pa.array([1, 2], pa.int64()), "body": ["a", None]}))
    warehouse = SnowflakeWarehouse(connect)
    found = warehouse.read(Source(sql="SELECT * FROM tickets ORDER BY id")).read_all()
    warehouse.close()
    assert found.to_pylist() == [{"id": 1, "body": "a"}, {"id": 2, "body": None}]


def test_a_part_is_staged_from_the_statement_that_makes_its_table(database: SnowflakeDatabase) -> None:
    warehouse = database.open()
    warehouse.prepare(labels())
    stage(warehouse, labels(), part(), [{"id": 1}])
    assert len(database.tables() - {"labels", "labels__failures"}) == 2
    warehouse.close()


def test_what_is_not_there_is_named(database: SnowflakeDatabase) -> None:
    warehouse = database.open()
    with pytest.raises(SourceError, match="NO_SUCH_TABLE"):
        warehouse.read(Source(table="no_such_table"))
    warehouse.close()
