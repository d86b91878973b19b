"""Key and carried columns come out of a run's files as they went in."""

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.errors import SourceError
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.stage.plan.carried import (
    carried,
    carried_schema,
    comparable,
    key_schema,
    restored,
    stored,
    stored_rows,
    stored_schema,
)
from airflow_batch_llm.testing.staged_rows import TARGET, WholeStage
from airflow_batch_llm.testing.warehouse_reads import PROMPT, answer, things, walk_every_way
from airflow_batch_llm.warehouses.duckdb.warehouse import DuckDBWarehouse
from airflow_batch_llm.warehouses.files.source import FileSource, read_files
from tests.stage.world import Bench

MOMENT = datetime(1969, 12, 31, 23, 59, 59, 123456)  # noqa: DTZ001 - the clock of a wall
DAY = MOMENT.replace(hour=0, minute=0, second=0, microsecond=0)
#: Two values of each type, and the carried form of the first.
COLUMNS: list[tuple[pa.Array, object]] = [
    (pa.array([True, False]), True),
    (pa.array([-(2**63), 1], pa.int64()), -(2**63)),
    (pa.array([2**64 - 1, 1], pa.uint64()), 2**64 - 1),
    (pa.array([0.5, 1], pa.float32()).cast(pa.float16()), 0.5),
    (pa.array([-0.1, 1]), -0.1),
    (pa.array([Decimal("-1.50"), Decimal(2)], pa.decimal128(12, 2)), Decimal("-1.50")),
    (pa.array([Decimal("9" * 22), Decimal(2)], pa.decimal256(76, 16)), Decimal("9" * 22)),
    (pa.array([Decimal("1.50"), Decimal(2)], pa.decimal64(12, 2)), Decimal("1.50")),
    (pa.array(["ü\0\u2028", "b"]), "ü\0\u2028"),
    (pa.array(["ü", "b"], pa.large_string()), "ü"),
    (pa.array(["ü", "b"], pa.string_view()), "ü"),
    (pa.array(["ü", "b"]).dictionary_encode(), "ü"),
    (pa.array([b"\0\xff", b"b"]), b"\0\xff"),
    (pa.array([b"\0\xff", b"bb"], pa.binary(2)), b"\0\xff"),
    (pa.array([b"\1" * 16, b"\2" * 16], pa.uuid()), UUID(bytes=b"\1" * 16)),
    (pa.array([date(1, 1, 1), date(9999, 12, 31)]), date(1, 1, 1)),
    (pa.array([date(1969, 1, 1), date(1970, 1, 1)], pa.date64()), date(1969, 1, 1)),
    (pa.array([time(23, 59, 59), time(0)], pa.time32("s")), time(23, 59, 59)),
    (pa.array([time(23, 59, 59, 999999), time(0)], pa.time64("ns")), time(23, 59, 59, 999999)),
    (pa.array([DAY, DAY], pa.timestamp("s")), DAY),
    (pa.array([MOMENT, MOMENT], pa.timestamp("ns")), MOMENT),
    (pa.array([MOMENT, MOMENT], pa.timestamp("us", tz="Asia/Kolkata")), MOMENT.replace(tzinfo=UTC)),
    (pa.array([timedelta(days=1, seconds=2), timedelta(0)]), "PT86402S"),
    (pa.array([pa.MonthDayNano([1, -2, 3_500_000_000])] * 2), "P1M-2DT3.5S"),
    (pa.array([[0.5, None], []]), [0.5, None]),
    (pa.array([[1, 2], None]), "[1,2]"),
    (pa.array([{"a": 1}, None]), '{"a":1}'),
    (pa.array(['{"a": 1}', None], pa.json_(pa.string())), '{"a": 1}'),
    (pa.nulls(2), None),
]


@pytest.mark.parametrize(("column", "said"), COLUMNS, ids=[str(column.type) for column, _ in COLUMNS])
def test_a_column_comes_out_of_files_and_the_embedded_database_as_it_went_in(
    tmp_path: Path, column: pa.Array, said: object
) -> None:
    schema = carried_schema(pa.schema([("c", column.type)]), ["c"])
    nulls = pa.nulls(1, column.type)
    values = carried(pa.concat_arrays([column, nulls]).slice(0, 3), schema.field("c").type)
    first = pa.RecordBatch.from_arrays([stored(values)], schema=stored_schema(schema))
    pq.write_table(pa.Table.from_batches([first]), tmp_path / "a.parquet")

    out = duckdb.sql(f"SELECT c FROM read_parquet('{tmp_path}/a.parquet')").to_arrow_reader(10)
    (second,) = out
    (again,) = pq.ParquetFile(tmp_path / "a.parquet").iter_batches()

    for batch in (second, again, first.slice(1)):
        whole = restored(batch, schema)
        assert whole.schema == schema
        assert whole.column(0).equals(values.slice(3 - whole.num_rows))
    assert values[0].as_py() == said


def test_a_row_that_is_kept_holds_no_column_that_is_not() -> None:
    schema = pa.schema([("id", pa.int64()), ("code", pa.string())])
    (batch,) = duckdb.sql("SELECT 1 AS id, 'a' AS code, 'long' AS body").to_arrow_reader(10)
    kept = stored_rows(batch, schema, schema)
    for name in schema.names:
        shared = [{part.address for part in rows.column(name).buffers() if part} for rows in (batch, kept)]
        assert not shared[0] & shared[1]


def test_a_number_is_the_same_key_in_every_type_that_holds_it() -> None:
    numbers = pa.array([Decimal("1.00"), Decimal("1.50"), None], pa.decimal128(12, 2))
    assert comparable(numbers, pa.int32()).to_pylist() == [1, None, None]
    assert comparable(pa.array([1, 2**40]), pa.decimal128(5, 2)).to_pylist() == [Decimal(1), None]
    assert comparable(pa.array([1.5, 1e300]), pa.int64()).to_pylist() == [None, None]
    assert comparable(pa.array(["1"]), pa.int64()).to_pylist() == [None]


@pytest.mark.parametrize("kind", [pa.json_(pa.string()), pa.list_(pa.int64()), pa.month_day_nano_interval()])
def test_what_is_no_key_is_refused_with_its_type_and_a_way_out(kind: pa.DataType) -> None:
    with pytest.raises(SourceError, match=r"'k' cannot be a key: it is .*CAST\(k AS VARCHAR\) AS k"):
        key_schema(pa.schema([("k", kind)]), ["k"])


def test_rows_in_flight_are_found_by_a_key_of_another_type(openai: Bench) -> None:
    openai.world.make_tickets(6)
    openai.world.simulator.turn(batch_seconds=3600)
    openai.advance("monday", source=Source(sql="SELECT id::DECIMAL(12, 2) AS id, subject, body FROM tickets"))

    keys = ("id::BIGINT", "id::SMALLINT", "id::DOUBLE")
    found = [
        openai.complete(key, source=Source(sql=f"SELECT {key} AS id, subject, body FROM tickets")).report.why
        for key in keys
    ]

    assert found == [{"in_flight": 6}] * 3


def test_a_file_s_columns_of_every_type_arrive_on_every_way(tmp_path: Path) -> None:
    keys = [column for column, _ in COLUMNS if not pa.types.is_null(column.type)]
    table = things()
    for place, column in enumerate(keys):
        rows = pa.concat_arrays([column, pa.nulls(1, column.type), column, column])
        table = table.append_column(f"c{place}", rows)
    key = pa.array([bytes([place]) * 16 for place in range(7)], pa.uuid())
    table = table.append_column("key", key)
    pq.write_table(_writable(table), tmp_path / "things.parquet")
    pq.write_table(_writable(table.slice(6)), tmp_path / "elsewhere.parquet")
    duckdb.connect(str(tmp_path / "w.duckdb")).close()
    with Simulator(batch_seconds=0, responder=f"{answer.__module__}:answer") as simulator:
        stage = WholeStage(
            simulator=simulator,
            folder=tmp_path / "stage",
            open=lambda: DuckDBWarehouse(tmp_path / "w.duckdb"),
            files=_Files(tmp_path),
            source=Source(table="things"),
            key=("key",),
            carry=tuple(name for name in _writable(table).column_names if name.startswith("c")),
            prompt=PROMPT,
        )
        walk_every_way(stage, Source(table="elsewhere"))
    with duckdb.connect(str(tmp_path / "w.duckdb")) as connection:
        found = connection.sql(f"SELECT key::VARCHAR FROM {TARGET} ORDER BY key").fetchall()
    assert found == [(str(key[place].as_py()),) for place in (0, 1, 4, 5, 6)]


def _writable(table: pa.Table) -> pa.Table:
    """The columns that a Parquet file can have."""
    unwritable = [
        field.name
        for field in table.schema
        if pa.types.is_interval(field.type) or pa.types.is_float16(field.type)
    ]
    return table.drop_columns(unwritable)


class _Files:
    """Parquet files by the names of tables."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, source: Source) -> pa.RecordBatchReader:
        return read_files(FileSource(uris=(str(self._folder / f"{source.table}.parquet"),)))
