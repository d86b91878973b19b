"""Rows come out of BigQuery as Arrow, by the Storage Read API or over REST, the same either way."""

import tracemalloc
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from google.api_core.exceptions import PermissionDenied

from airflow_batch_llm.core.model import ColumnType
from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.errors import SourceError, TargetError, WarehouseError
from airflow_batch_llm.warehouses.base import ARROW_TYPES, JoinsKnown
from airflow_batch_llm.warehouses.bigquery.warehouse import BigQuerySettings, BigQueryWarehouse
from tests.emulators.servers import Emulators
from tests.warehouses.bigquery_dataset import BigQueryDataset, client, open_warehouse, read_client

EVERY_TYPE = """
SELECT 7 AS i, 0.5 AS f, TRUE AS b, 'ü' AS s, b'\\x00\\xff' AS y, DATE '2026-03-01' AS d, TIME '10:00:00' AS t,
DATETIME '2026-03-01 10:00:00' AS dt, TIMESTAMP '2026-03-01 10:00:00+00' AS ts, NUMERIC '1.5' AS n,
BIGNUMERIC '2.5' AS bn, JSON '{"a":1}' AS j, [1, 2] AS l, STRUCT(1 AS a, 'x' AS b) AS st,
[STRUCT(1 AS a)] AS ls
"""
ONE_OF_EVERY_TYPE: dict[str, tuple[pa.DataType, Any]] = {
    "i": (pa.int64(), 7),
    "f": (pa.float64(), 0.5),
    "b": (pa.bool_(), True),
    "s": (pa.string(), "ü"),
    "y": (pa.binary(), b"\x00\xff"),
    "d": (pa.date32(), date(2026, 3, 1)),
    "t": (pa.time64("us"), time(10)),
    "dt": (pa.timestamp("us"), datetime(2026, 3, 1, 10)),  # noqa: DTZ001  a wall clock is what DATETIME is
    "ts": (pa.timestamp("us", tz="UTC"), datetime(2026, 3, 1, 10, tzinfo=UTC)),
    "n": (pa.decimal128(38, 9), Decimal("1.5")),
    "bn": (pa.decimal256(76, 38), Decimal("2.5")),
    "j": (ARROW_TYPES[ColumnType.JSON], '{"a":1}'),
    "l": (pa.list_(pa.int64()), [1, 2]),
    "st": (pa.struct([("a", pa.int64()), ("b", pa.string())]), {"a": 1, "b": "x"}),
    "ls": (pa.list_(pa.struct([("a", pa.int64())])), [{"a": 1}]),
}


@pytest.fixture
def database(emulators: Emulators) -> Iterator[BigQueryDataset]:
    dataset = BigQueryDataset(emulators.bigquery, emulators.bigquery_storage)
    yield dataset
    dataset.close()


@pytest.fixture(params=["storage", "rest"])
def warehouse(database: BigQueryDataset, request: pytest.FixtureRequest) -> Iterator[BigQueryWarehouse]:
    address = {**database.address, **({"storage": None} if request.param == "rest" else {})}
    opened = open_warehouse(**address)
    yield opened
    opened.close()


def test_every_type_is_read(warehouse: BigQueryWarehouse) -> None:
    found = warehouse.read(Source(sql=EVERY_TYPE))
    assert found.schema == pa.schema([(name, kind) for name, (kind, _) in ONE_OF_EVERY_TYPE.items()])
    assert found.read_all().to_pylist() == [{name: value for name, (_, value) in ONE_OF_EVERY_TYPE.items()}]


def test_an_empty_result_has_every_type(warehouse: BigQueryWarehouse) -> None:
    found = warehouse.read(Source(sql=f"SELECT * FROM ({EVERY_TYPE}) WHERE i = 8"))
    assert found.schema.types == [kind for kind, _ in ONE_OF_EVERY_TYPE.values()]
    assert found.read_all().num_rows == 0


def test_a_table_and_a_view_are_read_by_name(database: BigQueryDataset, warehouse: BigQueryWarehouse) -> None:
    database.seed("numbers", pa.table({"n": [1, 2]}))
    database.run("CREATE VIEW {d}.doubled AS SELECT n * 2 AS n FROM {d}.numbers")
    for name, wanted in {"numbers": [1, 2], f"{database.name}.doubled": [2, 4]}.items():
        found = warehouse.read(Source(table=name)).read_all()
        assert sorted(found.column("n").to_pylist()) == wanted


def test_reading_a_table_by_name_runs_no_query(
    database: BigQueryDataset, warehouse: BigQueryWarehouse
) -> None:
    database.seed("numbers", pa.table({"n": [1, 2]}))
    before = sum(1 for _ in database.client.list_jobs(all_users=True))
    warehouse.read(Source(table="numbers")).read_all()
    assert sum(1 for _ in database.client.list_jobs(all_users=True)) == before


@pytest.mark.parametrize(
    "value",
    [
        True,
        7,
        0.5,
        "'; --",
        b"\x00",
        Decimal("1.5"),
        date(2026, 3, 1),
        time(10),
        datetime(2026, 3, 1, tzinfo=UTC),
    ],
    ids=lambda value: type(value).__name__,
)
def test_parameters_keep_their_types(warehouse: BigQueryWarehouse, value: Any) -> None:
    for sql, parameters in (("SELECT @v AS v", {"v": value}), ("SELECT ? AS v", [value])):
        assert warehouse.read(Source(sql=sql, parameters=parameters)).read_all().to_pylist() == [{"v": value}]


def test_a_parameter_may_be_a_list(warehouse: BigQueryWarehouse) -> None:
    source = Source(
        sql="SELECT n FROM UNNEST([1, 2, 3]) AS n WHERE n IN UNNEST(@some)", parameters={"some": [1, 3]}
    )
    assert sorted(warehouse.read(source).read_all().column("n").to_pylist()) == [1, 3]


def test_memory_over_rest_does_not_grow_with_the_rows(database: BigQueryDataset) -> None:
    # The emulator's Storage API sends each stream as one message, so there the bound is its own.
    warehouse = open_warehouse(**{**database.address, "storage": None})

    def peak(count: int) -> int:
        sql = f"SELECT n, REPEAT('x', 400) AS body FROM UNNEST(GENERATE_ARRAY(1, {count})) AS n"
        reader = warehouse.read(Source(sql=sql))
        pool = pa.default_memory_pool()
        most = before = pool.bytes_allocated()
        rows = 0
        tracemalloc.start()
        for found in reader:
            rows += found.num_rows
            most = max(most, pool.bytes_allocated())
        python = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert rows == count
        return most - before + python

    peak(100)  # what is allocated once
    assert peak(160_000) < 40 << 20  # the rows themselves are 64 MB
    warehouse.close()


def test_a_storage_interface_that_refuses_is_replaced_by_rest(emulators: Emulators) -> None:
    class Denied:
        """A client whose identity may not create read sessions."""

        def __init__(self) -> None:
            self._client = read_client(emulators.bigquery_storage)
            self.transport = self._client.transport
            self.asked = 0

        def create_read_session(self, *_: Any, **__: Any) -> None:
            self.asked += 1
            raise PermissionDenied("bigquery.readsessions.create")

        def __getattr__(self, name: str) -> Any:
            return getattr(self._client, name)

    denied = Denied()
    settings = BigQuerySettings(client=lambda: client(emulators.bigquery), storage=lambda: denied)  # type: ignore[arg-type]
    warehouse = BigQueryWarehouse(settings)
    assert warehouse.read(Source(sql="SELECT 1 AS n")).read_all().to_pylist() == [{"n": 1}]
    assert denied.asked
    warehouse.close()


def test_a_query_that_is_wrong_says_what_bigquery_says_of_it(warehouse: BigQueryWarehouse) -> None:
    with pytest.raises(WarehouseError, match="nowhere"):
        warehouse.read(Source(sql="SELECT * FROM nowhere.nothing"))


def test_a_value_that_breaks_a_query_is_not_quoted(
    database: BigQueryDataset, warehouse: BigQueryWarehouse
) -> None:
    database.seed("texts", pa.table({"body": ["s3cret"]}))
    with pytest.raises(WarehouseError, match="reading the source") as caught:
        warehouse.read(Source(sql="SELECT CAST(body AS INT64) AS n FROM texts")).read_all()
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_a_table_that_is_not_there_is_named(warehouse: BigQueryWarehouse) -> None:
    with pytest.raises(SourceError, match=r"no table .*nothing"):
        warehouse.read(Source(table="nothing"))
    with pytest.raises(TargetError, match="not a table name"):
        warehouse.read(Source(table="a..b"))


def test_the_warehouse_names_itself_and_joins_sources(warehouse: BigQueryWarehouse) -> None:
    assert warehouse.asset_uri == "bigquery://test-project"
    assert isinstance(warehouse, JoinsKnown)


def test_a_closed_warehouse_opens_again(warehouse: BigQueryWarehouse) -> None:
    for _ in range(2):
        assert warehouse.read(Source(sql="SELECT 1 AS n")).read_all().num_rows == 1
        warehouse.close()
