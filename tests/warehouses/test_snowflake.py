"""Decisions of the Snowflake adapter without a connection; `make databases` runs it against an emulator."""

from datetime import UTC, datetime, time
from decimal import Decimal

import pyarrow as pa
import pytest

from airflow_batch_llm.core.model import ColumnType
from airflow_batch_llm.errors import SourceError
from airflow_batch_llm.testing.staged_rows import columns, labels
from airflow_batch_llm.warehouses.sql.snowflake import SnowflakeWarehouse, _as_described

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("array", "type_", "values"),
    [
        (pa.array([1, None], pa.int8()), pa.int64(), [1, None]),
        (pa.array([Decimal(7)], pa.decimal128(38, 0)), pa.int64(), [7]),
        (pa.array([Decimal("1.50")], pa.decimal128(38, 2)), pa.decimal128(12, 2), [Decimal("1.50")]),
        (pa.array([NOON], pa.timestamp("ns", "Etc/UTC")), pa.timestamp("us", "UTC"), [NOON]),
        (pa.array([1], pa.time64("ns")), pa.time64("us"), [time(0)]),
        (pa.array(['{"a":1}', None]), pa.json_(pa.string()), ['{"a":1}', None]),
    ],
)
def test_what_the_connector_chose_for_a_batch_becomes_the_type_of_the_column(
    array: pa.Array, type_: pa.DataType, values: list[object]
) -> None:
    found = _as_described(array, pa.field("x", type_))
    assert (found.type, found.to_pylist()) == (type_, values)


@pytest.mark.parametrize(
    ("array", "type_"),
    [
        (pa.array([Decimal(10**30)], pa.decimal128(38, 0)), pa.int64()),
        (pa.array([[1.0]], pa.list_(pa.float32(), 1)), pa.string()),
    ],
)
def test_what_does_not_fit_is_refused_with_the_column_and_advice(array: pa.Array, type_: pa.DataType) -> None:
    with pytest.raises(SourceError, match=r"column big .* CAST it to VARCHAR"):
        _as_described(array, pa.field("big", type_))


def test_a_staged_file_is_copied_by_the_numbers_of_its_columns() -> None:
    target = labels(answer=columns(**{"we ird": ColumnType.JSON, "at": ColumnType.TIMESTAMP}))
    schema = pa.schema([*target.key, *target.answer])
    assert SnowflakeWarehouse(lambda: None)._copy("T", "S", target, schema) == (
        "COPY INTO T FROM (SELECT $1:c0::BIGINT, $1:c1::VARCHAR, $1:c2::TIMESTAMP_TZ FROM @S) "
        "FILE_FORMAT = (TYPE = PARQUET USE_LOGICAL_TYPE = TRUE BINARY_AS_TEXT = FALSE) PURGE = TRUE"
    )
