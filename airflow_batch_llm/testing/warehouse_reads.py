"""The contract's cases about reading."""

from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pytest

from airflow_batch_llm.core.settings import Source
from airflow_batch_llm.errors import BatchLLMError
from airflow_batch_llm.testing.database import Database
from airflow_batch_llm.testing.leaks import text_of
from airflow_batch_llm.testing.staged_rows import batch
from airflow_batch_llm.warehouses.base import NamesTables, Warehouse
from airflow_batch_llm.warehouses.kind import of_arrow

#: One column of each type that a source may have, and a value of it.
TYPED: dict[str, tuple[pa.DataType, Any]] = {
    "a_string": (pa.string(), "plain"),
    "an_int": (pa.int64(), -(2**53) - 1),
    "a_double": (pa.float64(), 0.1),
    "a_decimal": (pa.decimal128(12, 2), Decimal("1234567890.12")),
    "a_bool": (pa.bool_(), True),
    "a_date": (pa.date32(), date(2026, 2, 28)),
    "an_instant": (pa.timestamp("us", tz="UTC"), datetime(2026, 2, 28, 23, 59, 59, 123456, tzinfo=UTC)),
    "a_blob": (pa.binary(), b"\x00\xff"),
}


class ReadsRows:
    """How rows come out."""

    @pytest.fixture
    def warehouse(self, database: Database) -> Iterator[Warehouse]:
        opened = database.open()
        yield opened
        opened.close()

    def test_every_type_is_read_as_it_is_stored(self, database: Database, warehouse: Warehouse) -> None:
        schema = pa.schema([("id", pa.int64()), *((name, type_) for name, (type_, _) in TYPED.items())])
        values = {name: value for name, (_, value) in TYPED.items()}
        database.seed("typed", pa.Table.from_batches([batch(schema, [{"id": 1, **values}, {"id": 2}])]))
        found = warehouse.read(Source(sql="SELECT * FROM typed ORDER BY id")).read_all()
        assert found.to_pylist() == [{"id": 1, **values}, {"id": 2, **dict.fromkeys(values)}]
        assert {name: of_arrow(found.schema.field(name).type) for name in TYPED} == {
            name: of_arrow(type_) for name, (type_, _) in TYPED.items()
        }

    def test_a_source_table_that_is_missing_is_the_source_s_error(self, warehouse: Warehouse) -> None:
        with pytest.raises(BatchLLMError, match=r"(?i)source|no table") as refused:
            warehouse.read(Source(table="nowhere")).read_all()
        assert not refused.value.retryable
        assert "Target" not in type(refused.value).__name__

    @pytest.mark.parametrize(
        ("sql", "is_read"),
        [
            ("SELECT * FROM labels", True),
            ("WITH recent AS (SELECT * FROM labels) SELECT id FROM recent", True),
            ("WITH labels AS (SELECT * FROM tickets) SELECT * FROM labels", False),
            ("SELECT * FROM tickets WHERE id NOT IN (SELECT id FROM labels AS l)", True),
            ("SELECT labels.id FROM tickets AS labels -- FROM labels", False),
            ("SELECT * FROM other_schema.labels", False),
            ("SELECT FROM WHERE", False),
        ],
    )
    def test_the_tables_that_a_source_reads_are_known(
        self, warehouse: Warehouse, sql: str, is_read: bool
    ) -> None:
        assert isinstance(warehouse, NamesTables)
        assert warehouse.reads_table(Source(sql=sql), "labels") is is_read

    def test_a_source_table_is_known_by_every_name(self, warehouse: Warehouse) -> None:
        assert isinstance(warehouse, NamesTables)
        assert warehouse.reads_table(Source(table="labels"), "labels")
        assert not warehouse.reads_table(Source(table="tickets"), "labels")

    def test_an_empty_result_has_the_schema_of_a_full_one(
        self, database: Database, warehouse: Warehouse
    ) -> None:
        database.seed("whole", pa.table({"id": pa.array([1], pa.int64()), "body": ["x"], "score": [0.5]}))
        full = warehouse.read(Source(sql="SELECT id, body, score FROM whole"))
        full.read_all()
        empty = warehouse.read(Source(sql="SELECT id, body, score FROM whole WHERE id = 2"))
        assert empty.schema == full.schema
        assert empty.read_all().num_rows == 0

    def test_no_error_nor_its_chain_holds_a_rows_value(
        self, database: Database, warehouse: Warehouse
    ) -> None:
        canary = f"canary-{uuid4().hex}"  # not in this file's text, which a traceback quotes
        database.seed("bodies", pa.table({"id": pa.array([1, 2], pa.int64()), "body": ["3", canary]}))
        found = ""
        try:  # some databases make 0 of any text
            warehouse.read(Source(sql="SELECT CAST(body AS INTEGER) AS n FROM bodies")).read_all()
        except BatchLLMError as error:
            found = text_of(error)
        assert canary not in found

    def test_a_table_is_read_by_its_name(self, database: Database, warehouse: Warehouse) -> None:
        database.seed("order", pa.table({"select": pa.array([1], pa.int64())}))
        assert warehouse.read(Source(table="order")).read_all().to_pylist() == [{"select": 1}]

    def test_many_rows_come_in_several_batches(self, database: Database, warehouse: Warehouse) -> None:
        count = 100_000
        database.seed(
            "many", pa.table({"id": pa.array(range(count), pa.int64()), "body": ["x" * 40] * count})
        )
        sizes = [found.num_rows for found in warehouse.read(Source(table="many"))]
        assert sum(sizes) == count
        assert len(sizes) > 1

    def test_a_parameter_is_a_value_and_never_sql(self, database: Database, warehouse: Warehouse) -> None:
        hostile = "' OR '1'='1"
        database.seed("people", pa.table({"id": pa.array([1, 2], pa.int64()), "name": ["Ann", hostile]}))
        query = f"SELECT id FROM people WHERE name = {database.placeholder}"
        found = warehouse.read(Source(sql=query, parameters=[hostile])).read_all()
        assert found.to_pylist() == [{"id": 2}]

    def test_a_query_may_end_in_a_semicolon_or_a_comment(
        self, database: Database, warehouse: Warehouse
    ) -> None:
        database.seed("one", pa.table({"id": pa.array([1], pa.int64())}))
        assert warehouse.read(Source(sql="SELECT id FROM one;\n")).read_all().num_rows == 1
        assert warehouse.read(Source(sql="SELECT id FROM one -- all of them")).read_all().num_rows == 1

    @pytest.mark.parametrize(
        "text",
        ["", "👩‍👩‍👧 ü\u2028\u2029", "'; DROP TABLE texts; --", 'a\r\n\t"b",\\N\\.', "x" * 5_000_000],
        ids=["empty", "unicode", "hostile", "delimiters", "5 MB"],
    )
    def test_a_text_is_read_unchanged(self, database: Database, warehouse: Warehouse, text: str) -> None:
        database.seed("texts", pa.table({"id": pa.array([1, 2], pa.int64()), "body": [text, None]}))
        found = warehouse.read(Source(sql="SELECT body FROM texts ORDER BY id")).read_all()
        assert found.column("body").to_pylist() == [text, None]

    def test_a_query_that_fails_is_an_error_without_row_values(
        self, database: Database, warehouse: Warehouse
    ) -> None:
        database.seed("secrets", pa.table({"id": pa.array([1], pa.int64()), "body": ["s3cret"]}))
        with pytest.raises(BatchLLMError) as caught:
            warehouse.read(Source(sql="SELECT CAST(body AS INTEGER) / nothing FROM secrets")).read_all()
        assert "s3cret" not in str(caught.value)
        assert caught.value.__cause__ is None
