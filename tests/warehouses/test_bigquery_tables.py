"""The shape of BigQuery's tables is the user's: partitions, clusters, types and columns of their own."""

from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from google.cloud.bigquery import Table

from airflow_batch_llm.core.model import ColumnType
from airflow_batch_llm.core.settings import SchemaChange, Source, WriteMode
from airflow_batch_llm.errors import TargetError
from airflow_batch_llm.testing.staged_rows import at, batch, columns, labels, land, part, rows_of, stage
from airflow_batch_llm.warehouses.base import Part, Target
from airflow_batch_llm.warehouses.bigquery.tables import _rules
from airflow_batch_llm.warehouses.bigquery.warehouse import BigQueryWarehouse
from tests.emulators.servers import Emulators
from tests.warehouses.bigquery_dataset import BigQueryDataset

DAY = pa.schema([("day", pa.date32())])
MONDAY, TUESDAY, FRIDAY = date(2026, 3, 2), date(2026, 3, 3), date(2026, 3, 6)


@pytest.fixture
def database(emulators: Emulators) -> Iterator[BigQueryDataset]:
    dataset = BigQueryDataset(emulators.bigquery, emulators.bigquery_storage)
    yield dataset
    dataset.close()


@pytest.fixture
def warehouse(database: BigQueryDataset) -> Iterator[BigQueryWarehouse]:
    opened = database.open()
    yield opened
    opened.close()


def by_day(**changes: Any) -> Target:
    """A target that is partitioned by a carried day."""
    return labels(**{"carried": DAY, "partition_by": "day", "cluster_by": ("id",), **changes})


def require_filter(database: BigQueryDataset) -> None:
    """Let the target table be queried only with a filter on its partitions."""
    table = database.client.get_table(database.full("labels"))
    table.require_partition_filter = True
    database.client.update_table(table, ["require_partition_filter"])


def found(database: BigQueryDataset) -> list[tuple[Any, ...]]:
    """Return the rows of the target, by key and day."""
    sql = "SELECT id, day, label FROM {d}.labels WHERE day >= '1900-01-01' OR day IS NULL ORDER BY id, day"
    return [tuple(row.values()) for row in database.run(sql)]


def test_a_target_is_created_with_partitions_and_clusters(
    database: BigQueryDataset, warehouse: BigQueryWarehouse
) -> None:
    warehouse.prepare(by_day())
    table = database.client.get_table(database.full("labels"))
    assert (table.time_partitioning.field, table.clustering_fields) == ("day", ["id"])
    failures = database.client.get_table(database.full("labels__failures"))
    assert failures.time_partitioning is None


@pytest.mark.parametrize("mode", list(WriteMode))
def test_a_table_that_requires_a_partition_filter_is_merged_and_looked_up(
    database: BigQueryDataset, warehouse: BigQueryWarehouse, mode: WriteMode
) -> None:
    target = by_day(write_mode=mode)
    warehouse.prepare(target)
    require_filter(database)
    warehouse.prepare(target)
    for label in ("billing", "sales"):
        land(
            warehouse,
            target,
            part(),
            [{"id": 1, "day": MONDAY, "label": label}, {"id": 2, "day": None, "label": label}],
            [{"id": 3}],
        )
    assert found(database) == [(1, MONDAY, "sales"), (2, None, "sales")]
    keys = batch(pa.schema([*target.key, *DAY]), [{"id": n, "day": MONDAY} for n in (1, 3, 4)])
    known = warehouse.known(target, keys).to_pylist()
    assert [row["_llm_known_input_hash"] for row in known] == ["input", None, None]
    assert [row["_llm_failed_attempts"] for row in known] == [None, 1, None]


def test_the_review_of_a_table_that_requires_a_partition_filter_follows_it(
    database: BigQueryDataset, warehouse: BigQueryWarehouse
) -> None:
    target = by_day(review="labels__review")
    warehouse.prepare(target)
    require_filter(database)
    warehouse.prepare_reviews(target)
    dead = [{"id": n, "day": day, "_llm_dead": True} for n, day in ((1, MONDAY), (2, TUESDAY), (3, None))]
    land(warehouse, target, part(), [], dead)
    warehouse.refresh_reviews(target)

    land(warehouse, target, part(1), [{"id": 1, "day": MONDAY, "label": "billing"}])
    warehouse.refresh_reviews(target)

    assert database.run("SELECT id, day FROM {d}.labels__review ORDER BY id") == [
        {"id": 2, "day": TUESDAY},
        {"id": 3, "day": None},
    ]


@pytest.mark.parametrize(
    ("place", "parameters"),
    [("", None), ("WHERE id < ?", [9]), ("WHERE id < @most", {"most": 9})],
    ids=["none", "positional", "named"],
)
def test_a_source_is_joined_with_a_table_that_requires_a_partition_filter(
    database: BigQueryDataset, warehouse: BigQueryWarehouse, place: str, parameters: Any
) -> None:
    target = by_day()
    warehouse.prepare(target)
    require_filter(database)
    land(warehouse, target, part(), [{"id": 1, "day": MONDAY, "label": "billing"}], [{"id": 2}])
    days = pa.array([MONDAY, TUESDAY, TUESDAY], pa.date32())
    database.seed("tickets", pa.table({"id": pa.array([1, 2, 3], pa.int64()), "day": days}))
    source = Source(sql=f"SELECT id, day FROM tickets {place}", parameters=parameters, key=("id",))
    rows = sorted(warehouse.read_known(source, target).read_all().to_pylist(), key=lambda row: row["id"])
    assert [(row["id"], row["_llm_known_input_hash"], row["_llm_failed_attempts"]) for row in rows] == [
        (1, "input", None),
        (2, None, 1),
        (3, None, None),
    ]


def test_only_the_partitions_of_the_staged_rows_are_looked_at(
    database: BigQueryDataset, warehouse: BigQueryWarehouse
) -> None:
    target = by_day()
    warehouse.prepare(target)
    land(warehouse, target, part(), [{"id": 1, "day": FRIDAY, "label": "outside"}])
    land(
        warehouse,
        target,
        part(1),
        [{"id": 1, "day": MONDAY, "label": "inside"}, {"id": 2, "day": TUESDAY, "label": "inside"}],
    )
    assert found(database) == [(1, MONDAY, "inside"), (1, FRIDAY, "outside"), (2, TUESDAY, "inside")]


def test_a_key_may_be_the_partition(database: BigQueryDataset, warehouse: BigQueryWarehouse) -> None:
    target = labels(key=pa.schema([("id", pa.int64()), *DAY]), partition_by="day")
    warehouse.prepare(target)
    require_filter(database)
    land(
        warehouse, target, part(), [{"id": 1, "day": MONDAY, "label": "billing"}], [{"id": 1, "day": FRIDAY}]
    )
    land(warehouse, target, part(1), [{"id": 1, "day": FRIDAY, "label": "sales"}])
    assert found(database) == [(1, MONDAY, "billing"), (1, FRIDAY, "sales")]
    assert rows_of(database, "labels__failures") == []


def test_partitions_may_be_instants(database: BigQueryDataset, warehouse: BigQueryWarehouse) -> None:
    when = datetime(2026, 3, 2, 12, 0, 0, 7, tzinfo=UTC)
    target = labels(carried=pa.schema([("seen", pa.timestamp("us", tz="UTC"))]), partition_by="seen")
    warehouse.prepare(target)
    for label in ("billing", "sales"):
        land(warehouse, target, part(), [{"id": 1, "seen": when, "label": label}])
    assert [(row["seen"], row["label"]) for row in rows_of(database, "labels")] == [(when, "sales")]


def test_a_filter_that_the_stage_would_not_give_is_refused(
    database: BigQueryDataset, warehouse: BigQueryWarehouse
) -> None:
    warehouse.prepare(by_day())
    require_filter(database)
    with pytest.raises(TargetError, match="set partition_by='day'"):
        warehouse.prepare(labels(carried=DAY))


def test_partitions_by_number_are_left_to_the_user(
    database: BigQueryDataset, warehouse: BigQueryWarehouse
) -> None:
    target = labels(partition_by="id")
    with pytest.raises(TargetError, match="with the ranges that you want"):
        warehouse.prepare(target)
    database.run(
        "CREATE TABLE {d}.labels (id INT64) PARTITION BY RANGE_BUCKET(id, GENERATE_ARRAY(0, 100, 10))"
    )
    warehouse.prepare(target)
    for label in ("billing", "sales"):
        land(warehouse, target, part(), [{"id": n, "label": label} for n in (5, 55)])
    assert [row["label"] for row in rows_of(database, "labels")] == ["sales", "sales"]


@pytest.mark.parametrize("kind", [pa.float64(), pa.json_(pa.string()), pa.list_(pa.float64())], ids=str)
def test_a_key_that_bigquery_cannot_merge_by_is_refused(
    warehouse: BigQueryWarehouse, kind: pa.DataType
) -> None:
    with pytest.raises(TargetError, match="Key column 'id' is of type"):
        warehouse.prepare(labels(key=pa.schema([("id", kind)])))


def test_a_key_without_case_is_told() -> None:
    """The emulator keeps no collation, so only the description of a table is read here."""
    fields = [
        {"name": name, "type": "STRING", "collation": found} for name, found in (("id", "und:ci"), ("a", ""))
    ]
    described = {
        "tableReference": {"projectId": "p", "datasetId": "d", "tableId": "t"},
        "schema": {"fields": fields},
    }
    assert _rules(Table.from_api_repr(described)).folds == (("id", "und:ci"),)


def test_a_view_is_refused(database: BigQueryDataset, warehouse: BigQueryWarehouse) -> None:
    database.run("CREATE VIEW {d}.labels AS SELECT 1 AS id")
    with pytest.raises(TargetError, match="is a VIEW"):
        warehouse.prepare(labels())


@pytest.mark.parametrize("kind", ["STRUCT<a INT64>", "ARRAY<STRING>"])
def test_a_nested_column_is_refused_for_json(
    database: BigQueryDataset, warehouse: BigQueryWarehouse, kind: str
) -> None:
    database.run(f"CREATE TABLE {{d}}.labels (id INT64, data {kind})")
    with pytest.raises(TargetError, match="data is"):
        warehouse.prepare(labels(answer=columns(data=ColumnType.JSON)))


def test_answers_take_the_types_of_the_columns_that_are_there(
    database: BigQueryDataset, warehouse: BigQueryWarehouse
) -> None:
    database.run("CREATE TABLE {d}.labels (id NUMERIC, score NUMERIC, data STRING, seen DATETIME)")
    answer = columns(score=ColumnType.NUMBER, data=ColumnType.JSON, seen=ColumnType.TIMESTAMP)
    target = labels(answer=answer)
    warehouse.prepare(target)
    row = {"id": 1, "score": 0.5, "data": '{"a": 1}', "seen": at(0)}
    for _ in range(2):
        land(warehouse, target, part(), [row])
    [landed] = rows_of(database, "labels")
    assert {name: landed[name] for name in row} == {
        "id": 1,
        "score": Decimal("0.5"),
        "data": '{"a": 1}',
        "seen": at(0).replace(tzinfo=None),
    }


def test_a_number_with_too_many_digits_in_json_does_not_stop_the_rows_beside_it(
    database: BigQueryDataset, warehouse: BigQueryWarehouse
) -> None:
    target = labels(answer=columns(data=ColumnType.JSON))
    warehouse.prepare(target)
    land(
        warehouse,
        target,
        part(),
        [{"id": 1, "data": '{"a":0.12345678901234567890123}'}, {"id": 2, "data": "[]"}],
    )
    assert [row["id"] for row in rows_of(database, "labels")] == [1, 2]


def test_two_that_prepare_at_once_leave_one_shape(database: BigQueryDataset) -> None:
    first, second = database.open(), database.open()
    first.prepare(labels())
    first.prepare(labels(answer=columns(label=ColumnType.STRING, why=ColumnType.STRING)))
    second.prepare(labels(answer=columns(label=ColumnType.STRING, score=ColumnType.NUMBER)))
    names = [field.name for field in database.client.get_table(database.full("labels")).schema]
    assert {"label", "why", "score"} <= set(names)
    assert len(names) == len(set(names))


def test_ignored_columns_are_left_out_of_the_merge(
    database: BigQueryDataset, warehouse: BigQueryWarehouse
) -> None:
    warehouse.prepare(labels())
    target = labels(
        answer=columns(label=ColumnType.STRING, why=ColumnType.STRING),
        on_schema_change=SchemaChange.IGNORE,
    )
    warehouse.prepare(target)
    land(warehouse, target, part(), [{"id": 1, "label": "billing", "why": "x"}])
    [row] = rows_of(database, "labels")
    assert row["label"] == "billing"
    assert "why" not in row


def test_hundreds_of_parts_land_in_a_few_scripts(
    database: BigQueryDataset, warehouse: BigQueryWarehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_batch_llm.warehouses.bigquery.warehouse._PARTS_PER_SCRIPT", 2)
    target = labels()
    warehouse.prepare(target)
    parts: list[Part] = [part(shard) for shard in range(5)]
    for one in parts:
        stage(warehouse, target, one, [{"id": one.shard, "label": "billing"}], [{"id": 100 + one.shard}])
    warehouse.publish(target, parts)
    assert len(rows_of(database, "labels")) == len(rows_of(database, "labels__failures")) == 5
