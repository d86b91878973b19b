"""DuckDB keeps the contract of a warehouse, and shares its file."""

import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.core.value import KeyRange
from airflow_batch_llm.errors import InputError, SourceError, TargetError, WarehouseBusy, WarehouseError
from airflow_batch_llm.stage.plan.partitions import table_ranges
from airflow_batch_llm.testing.staged_rows import definition, labels, land, part
from airflow_batch_llm.testing.warehouses import WarehouseContract
from airflow_batch_llm.warehouses import find_dialect
from airflow_batch_llm.warehouses.base import SharesFile
from airflow_batch_llm.warehouses.duckdb.file import DuckDBFile as OpenedFile
from airflow_batch_llm.warehouses.duckdb.warehouse import DuckDBWarehouse

#: Expressions of the integer n, by the type that they have.
KEY_TYPES = {
    "boolean": "n % 2 = 0",
    "smallint": "n::SMALLINT",
    "integer": "n::INTEGER",
    "bigint": "n + 9007199254740993",
    "ubigint": "(n + 18446744073709551600)::UBIGINT",
    "hugeint": "(n + 10000000000000000000000000000000000000)::HUGEINT",
    "real": "(n / 2)::FLOAT",
    "double": "n / 2",
    "decimal": "(n + 0.01)::DECIMAL(12, 2)",
    "varchar": "'it''s ' || n || chr(8232)",
    "enum": "('size ' || n % 2)::ENUM ('size 0', 'size 1')",
    "blob": "encode('bytes ' || n)",
    "uuid": "('00000000-0000-4000-8000-00000000000' || n)::UUID",
    "date": "DATE '1969-12-30' + n::INTEGER",
    "time": "TIME '12:34:56.789' + to_seconds(n)",
    "timestamp": "TIMESTAMP '1969-12-31 23:59:59.123456' + to_days(n::INTEGER)",
    "timestamp_s": "(TIMESTAMP '2026-02-28' + to_seconds(n))::TIMESTAMP_S",
    "timestamp_ms": "(TIMESTAMP '2026-02-28' + to_milliseconds(n))::TIMESTAMP_MS",
    "timestamp_ns": "(TIMESTAMP '2026-02-28' + to_microseconds(n))::TIMESTAMP_NS",
    "timestamptz": "TIMESTAMPTZ '2026-02-28 23:59:59.5+05:30' + to_seconds(n)",
}
CARRIED_TYPES = {
    "interval": "to_months(n::INTEGER) + to_seconds(n)",
    "json": """('{"b": [' || n || ', null], "a": 1.50}')::JSON""",
    "doubles": "[n / 2, NULL]",
    "floats": "[n / 2, 1]::FLOAT[2]",
    "list": "[n, n + 1]",
    "struct": "{'a': n, 'at': DATE '2026-02-28'}",
    "map": "MAP {'a': n}",
}


class DuckDBFile:
    """A database file, looked at with DuckDB's own client."""

    placeholder = "?"
    longest_name = None
    nul = "\0"
    key_types = KEY_TYPES
    carried_types = CARRIED_TYPES
    rules = frozenset({"not null", "generated", "unique", "check", "foreign key", "collate nocase"})
    generated = "GENERATED ALWAYS AS ('x')"

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

    def make(self, table: str, schema: pa.Schema, rules: Mapping[str, str], *constraints: str) -> None:
        with duckdb.connect(self.path) as connection:
            connection.execute(definition(find_dialect("duckdb"), table, schema, rules, *constraints))

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


def test_a_busy_file_is_said_at_once_with_who_holds_it(
    database: DuckDBFile, caplog: pytest.LogCaptureFixture
) -> None:
    code = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print(flush=True); input()"
    command = [sys.executable, "-c", code, str(database.path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        warehouse = DuckDBWarehouse(database.path, lock_wait_seconds=0)
        with pytest.raises(WarehouseBusy, match=f"process {holder.pid} "):
            warehouse.prepare(labels())
        with pytest.raises(WarehouseBusy, match=f"process {holder.pid} "):
            warehouse.read(Source(sql="SELECT 1"))
        waiting = DuckDBWarehouse(database.path, lock_wait_seconds=2.5)
        used = time.process_time()
        with pytest.raises(WarehouseBusy), caplog.at_level("WARNING"):
            waiting.prepare(labels())
        assert time.process_time() - used < 1
        assert [f"process {holder.pid} " in message for message in caplog.messages] == [True]
        holder.kill()


def test_a_source_table_is_never_a_file_and_no_query_reads_a_variable(
    database: DuckDBFile, tmp_path: Path
) -> None:
    file = tmp_path / "people.csv"
    file.write_text("id,body\n1,secret\n")
    secrets = pa.table({"id": [1]})
    with closing(database.open()) as warehouse:
        for name in (f"'{file}'", f'"{file}"', f"read_csv('{file}')", str(file), "secrets", "sniff_csv"):
            with pytest.raises((SourceError, TargetError), match=r"no table or view|is not a table name"):
                warehouse.read(Source(table=name))
        with pytest.raises(SourceError, match="secrets does not exist"):
            warehouse.read(Source(sql="SELECT * FROM secrets"))
    assert secrets.num_rows == 1


def test_a_source_in_the_target_s_file_is_read_and_let_go_before_the_writing(database: DuckDBFile) -> None:
    database.seed("tickets", pa.table({"id": pa.array([1, 2], pa.int64())}))
    source, target = database.open(), database.open()
    assert isinstance(source, SharesFile)
    assert source.read(Source(table="tickets")).read_all().num_rows == 2
    source.release()
    target.prepare(labels())
    land(target, labels(), part(), [{"id": 1, "label": "billing"}])
    assert source.read(Source(table="labels")).read_all().num_rows == 1
    source.close()


def test_a_writer_is_told_when_its_own_process_still_reads(database: DuckDBFile) -> None:
    warehouse = DuckDBWarehouse(database.path, lock_wait_seconds=0)
    warehouse.read(Source(sql="SELECT * FROM range(1000000)"))
    with pytest.raises(WarehouseBusy, match="release"):
        warehouse.prepare(labels())
    warehouse.close()


def test_two_streams_of_one_warehouse_do_not_stand_in_each_other_s_way(database: DuckDBFile) -> None:
    warehouse = database.open()
    one, other = (warehouse.read(Source(sql="SELECT * FROM range(20000)")) for _ in range(2))
    assert (one.read_next_batch().num_rows, other.read_all().num_rows) == (8192, 20_000)
    warehouse.close()


def test_rows_too_long_for_the_memory_limit_are_an_error_that_names_it(database: DuckDBFile) -> None:
    database.seed("tickets", pa.table({"id": pa.array(range(2_000), pa.int64())}))
    warehouse = DuckDBWarehouse(database.path, memory_limit="32MB")
    with pytest.raises(WarehouseError, match="memory_limit of 32MB"):
        warehouse.read(Source(sql="SELECT id, repeat('long ', 20000) || id AS body FROM tickets")).read_all()
    warehouse.close()


LONG = "CASE WHEN n % 7 <> 3 THEN repeat(n || ' ', 150_000) END"


@pytest.mark.parametrize(
    ("columns", "values", "rows"),
    [
        ("body VARCHAR USING COMPRESSION uncompressed, bytes BLOB", f"{LONG}, encode('bytes ' || n)", 130),
        (
            *(", ".join(text.format(c) for c in range(80)) for text in ("c{} VARCHAR", "n || ' of {}'")),
            9_000,
        ),
    ],
    ids=["long", "wide"],
)
def test_a_table_of_long_or_wide_rows_is_read_in_slices(
    database: DuckDBFile, columns: str, values: str, rows: int
) -> None:
    with duckdb.connect(database.path) as writer:
        writer.execute(f"CREATE SCHEMA ops; CREATE TABLE ops.tickets (id BIGINT, {columns})")
        made = f"SELECT n AS id, {values} FROM range({rows}) AS r (n)"
        writer.execute(f"INSERT INTO ops.tickets {made}; CHECKPOINT")
        writer.execute("DELETE FROM ops.tickets WHERE id % 5 = 0 OR id BETWEEN 20 AND 60")
        expected = writer.sql(f"SELECT * FROM ({made}) AS t WHERE id % 5 > 0 AND id NOT BETWEEN 20 AND 60")
        expected_rows = expected.fetchall()
    warehouse = database.open()
    found = list(warehouse.read(Source(table="ops.tickets")))
    some = warehouse.read(Source(table="ops.tickets", within=KeyRange(column="id", low=70, high=80)))
    assert some.read_all().column("id").to_pylist() == [71, 72, 73, 74, 76, 77, 78, 79]
    warehouse.close()
    assert max(batch.nbytes for batch in found) < 17 << 20
    assert [tuple(row.values()) for batch in found for row in batch.to_pylist()] == expected_rows


def test_a_table_whose_long_texts_are_decoded_together_is_warned_of(
    database: DuckDBFile, caplog: pytest.LogCaptureFixture
) -> None:
    with duckdb.connect(database.path, config={"storage_compatibility_version": "latest"}) as writer:
        writer.execute(f"CREATE TABLE compressed AS SELECT n AS id, {LONG} AS body FROM range(130) AS r (n)")
        writer.execute("CREATE TABLE short AS SELECT n AS id, 'short' AS rowid FROM range(5_000) AS r (n)")
        writer.execute("CREATE VIEW joined AS SELECT id, body FROM compressed JOIN short USING (id)")
    warehouse = database.open()
    counts = {
        table: sum(batch.num_rows for batch in warehouse.read(Source(table=table)))
        for table in ("compressed", "short", "joined")
    }
    warehouse.close()
    assert counts == {"compressed": 130, "short": 5_000, "joined": 130}
    (message,) = caplog.messages
    assert message.startswith("compressed keeps")
    assert "uncompressed" in message


@pytest.mark.parametrize("shape", ["reviewer VARCHAR", "UNIQUE (id)", "CHECK (id > 0)"])
def test_what_else_the_user_put_into_the_target_stays(database: DuckDBFile, shape: str) -> None:
    warehouse, target = database.open(), labels()
    with duckdb.connect(database.path) as theirs:
        theirs.execute(f"CREATE TABLE labels (id BIGINT, label VARCHAR, {shape})")
    warehouse.prepare(target)
    land(warehouse, target, part(), [{"id": 1, "label": "billing"}, {"id": 2, "label": "bug"}])
    with duckdb.connect(database.path) as theirs:
        if "reviewer" in shape:
            theirs.execute("UPDATE labels SET reviewer = 'Ada' WHERE id = 1")
        before = theirs.sql("SELECT * EXCLUDE (label) FROM labels ORDER BY id").fetchall()
    land(warehouse, target, part(shard=2), [{"id": 1, "label": "other"}, {"id": 2, "label": "other"}])
    with duckdb.connect(database.path) as theirs:
        after = theirs.sql("SELECT * EXCLUDE (label) FROM labels ORDER BY id").fetchall()
        assert theirs.sql("SELECT DISTINCT label FROM labels").fetchall() == [("other",)]
    assert [row[:2] for row in after] == [row[:2] for row in before]
    if "reviewer" in shape:
        assert [row[1] for row in after] == ["Ada", None]


def test_what_was_read_of_the_file_can_be_forgotten(database: DuckDBFile) -> None:
    with duckdb.connect(database.path) as writer:
        writer.execute("CREATE TABLE tickets AS SELECT concat(uuid(), uuid()) AS body FROM range(1_000_000)")
    file = OpenedFile(database.path, lock_wait_seconds=1, options={"memory_limit": "512MB"})
    connection = file.open(read_only=True)
    file.work_alone(connection)
    connection.execute("SELECT max(body) FROM tickets").fetchall()
    facts = "SELECT sum(memory_usage_bytes) >> 20, current_setting('memory_limit') FROM duckdb_memory()"
    ((held, limit),) = connection.execute(facts).fetchall()
    file.forget(connection)
    ((left, limit_afterwards),) = connection.execute(facts).fetchall()
    connection.close()
    assert held > 20
    assert left <= 16
    assert limit_afterwards == limit


def test_a_look_up_of_keys_that_lie_anywhere_keeps_little_of_a_large_target(database: DuckDBFile) -> None:
    warehouse, target = database.open(), labels()
    warehouse.prepare(target)
    with duckdb.connect(database.path) as writer:
        writer.execute(
            "INSERT INTO labels BY NAME SELECT range AS id, concat(uuid(), uuid(), uuid()) AS _llm_input_hash,"
            " 'spec' AS _llm_spec_hash, now() AS _llm_planned_at FROM range(600_000)"
        )
    memory = Source(
        sql="SELECT (sum(memory_usage_bytes) >> 20)::INT AS held, current_setting('memory_limit') AS most"
        " FROM duckdb_memory()"
    )
    before = warehouse.read(memory).read_all().to_pylist()[0]
    known = warehouse.known(target, pa.record_batch({"id": range(0, 600_000, 1000)}))
    after = warehouse.read(memory).read_all().to_pylist()[0]
    warehouse.close()
    assert known.column(0).null_count == 0
    assert after["held"] <= 32
    assert after["most"] == before["most"]


def test_answers_land_in_a_target_of_two_million_rows(database: DuckDBFile) -> None:
    """A merge into it holds more memory than is kept between two merges, which DuckDB then refuses to give back."""
    warehouse, target = database.open(), labels()
    warehouse.prepare(target)
    with duckdb.connect(database.path) as writer:
        writer.execute(
            "INSERT INTO labels BY NAME SELECT range AS id, '' AS _llm_input_hash, '' AS _llm_spec_hash,"
            " TIMESTAMPTZ '2026-01-01' AS _llm_planned_at FROM range(2_000_000)"
        )
    land(warehouse, target, part(), [{"id": number, "label": "bug"} for number in range(0, 2_000_000, 2000)])
    with duckdb.connect(database.path) as reader:
        assert reader.sql("SELECT count(*) FROM labels WHERE label = 'bug'").fetchall() == [(1000,)]


def test_uuids_and_json_keep_their_types(database: DuckDBFile) -> None:
    warehouse = database.open()
    found = warehouse.read(
        Source(sql="SELECT uuid() AS u, '{\"a\":1}'::JSON AS j, 1::HUGEINT AS h")
    ).read_all()
    assert [str(type_) for type_ in found.schema.types] == [
        "extension<arrow.uuid>",
        "extension<arrow.json>",
        "decimal128(38, 0)",
    ]
    target = labels(key=pa.schema([("u", pa.uuid())]))
    warehouse.release()
    warehouse.prepare(target)
    land(warehouse, target, part(), [{"u": found["u"][0].as_py().bytes, "label": "x"}])
    keys = pa.RecordBatch.from_arrays([found["u"].combine_chunks()], names=["u"])
    assert warehouse.known(target, keys).column(0).to_pylist() == ["input"]
    warehouse.close()


@pytest.mark.parametrize("type_", ["DECIMAL(38, 10)", "HUGEINT"])
def test_ranges_of_the_widest_numbers_hold_each_row_once(database: DuckDBFile, type_: str) -> None:
    with duckdb.connect(database.path) as connection:
        connection.execute(
            f"CREATE TABLE wide AS SELECT (n * 1234567890123456789012345678::HUGEINT)::{type_} AS id"
            " FROM range(-8, 9) AS r (n)"
        )
    warehouse, whole = database.open(), Source(table="wide")
    rows = warehouse.read(whole).read_all()

    ranges = table_ranges(warehouse, whole, rows.schema, 3)

    found = [warehouse.read(replace(whole, within=one)).read_all() for one in ranges]
    warehouse.close()
    assert [part.num_rows for part in found] == [6, 5, 6]
    assert pa.concat_tables(found).sort_by("id").equals(rows.sort_by("id").combine_chunks())


def test_a_database_in_memory_is_refused() -> None:
    with pytest.raises(TargetError, match="memory"):
        DuckDBWarehouse(":memory:")


def test_a_missing_file_is_no_empty_source(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no DuckDB file"):
        DuckDBWarehouse(tmp_path / "none.duckdb").read(Source(sql="SELECT 1"))
    assert list(tmp_path.iterdir()) == []


def test_the_asset_is_the_file(tmp_path: Path) -> None:
    assert DuckDBWarehouse(tmp_path / "a.duckdb").asset_uri == f"file://{tmp_path}/a.duckdb"


def test_an_option_that_duckdb_does_not_have_is_named(tmp_path: Path) -> None:
    duckdb.connect(str(tmp_path / "w.duckdb")).close()
    warehouse = DuckDBWarehouse(tmp_path / "w.duckdb", options={"location": "EU"})

    with pytest.raises(InputError, match=r"not take the options .*location.* source_hook_params"):
        warehouse.read(Source(sql="SELECT 1 AS n"))
