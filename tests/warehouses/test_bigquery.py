"""BigQuery keeps the contract of a warehouse, through Google's own clients."""

from collections.abc import Iterator

import orjson
import pyarrow as pa
import pytest

from airflow_batch_llm.core.model import ColumnType
from airflow_batch_llm.errors import TargetError
from airflow_batch_llm.testing.staged_rows import BenchDatabase, columns, labels, land, part, rows_of
from airflow_batch_llm.testing.warehouse_writes import ANSWERS
from airflow_batch_llm.testing.warehouses import WarehouseContract
from airflow_batch_llm.warehouses.base import Warehouse
from tests.emulators.servers import Emulators
from tests.warehouses.bigquery_dataset import BigQueryDataset


@pytest.fixture
def database(emulators: Emulators) -> Iterator[BigQueryDataset]:
    dataset = BigQueryDataset(emulators.bigquery, emulators.bigquery_storage)
    yield dataset
    dataset.close()


class TestContract(WarehouseContract):
    """The contract; of names, BigQuery itself takes only some."""

    @pytest.mark.xfail(
        raises=AssertionError, strict=True, reason="BigQuery has no NULL array: it lands empty"
    )
    def test_every_type_of_answer_lands_as_it_was(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        super().test_every_type_of_answer_lands_as_it_was(database, warehouse)

    def test_every_type_but_the_null_vector_lands_as_it_was(
        self, database: BenchDatabase, warehouse: Warehouse
    ) -> None:
        target = labels(answer=columns(**{type_.value: type_ for type_ in ColumnType}))
        warehouse.prepare(target)
        full = {type_.value: values[0] for type_, values in ANSWERS.items()}
        land(warehouse, target, part(), [{"id": 1, **full}, {"id": 2}])
        first, second = rows_of(database, target.table)
        assert {**{name: first[name] for name in full}, "json": orjson.loads(first["json"])} == {
            **full,
            "json": orjson.loads(full["json"]),
        }
        assert {name: second[name] for name in full} == {**dict.fromkeys(full), "vector": []}

    @pytest.mark.parametrize("name", ["select", "we ird", "ünï", "%s"])
    def test_any_name_can_be_a_column(self, database: BenchDatabase, warehouse: Warehouse, name: str) -> None:
        super().test_any_name_can_be_a_column(database, warehouse, name)

    @pytest.mark.parametrize("name", ['quo"te', "x); DROP TABLE labels; --", "{0}", "a.b", "?", "a`b"])
    def test_a_column_name_that_bigquery_does_not_take_is_refused(
        self, database: BenchDatabase, warehouse: Warehouse, name: str
    ) -> None:
        with pytest.raises(TargetError, match="no column named"):
            warehouse.prepare(labels(answer=pa.schema([(name, pa.string())])))
        assert database.tables() == set()

    @pytest.mark.parametrize("name", ["order", "we ird", "ünï"])
    def test_any_name_can_be_a_table(self, database: BenchDatabase, warehouse: Warehouse, name: str) -> None:
        super().test_any_name_can_be_a_table(database, warehouse, name)

    @pytest.mark.parametrize("name", ["x; DROP TABLE labels", "a$b", "`a`b`"])
    def test_a_table_name_that_bigquery_does_not_take_is_refused(
        self, warehouse: Warehouse, name: str
    ) -> None:
        with pytest.raises(TargetError, match=r"no table named|not a table name"):
            warehouse.prepare(labels(table=name))
