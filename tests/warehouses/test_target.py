"""A table that is there is compared with what a stage writes, in every dialect's own types."""

import pyarrow as pa
import pytest

from airflow_batch_llm.core.settings import SchemaChange
from airflow_batch_llm.errors import TargetError
from airflow_batch_llm.testing.staged_rows import columns, labels
from airflow_batch_llm.warehouses import all_dialects, find_dialect
from airflow_batch_llm.warehouses.base import ARROW_TYPES
from airflow_batch_llm.warehouses.target import shape_failures, shape_target

EVERY = labels(
    key=pa.schema([("id", pa.int64()), ("u", pa.uuid()), ("d", pa.decimal128(9, 2)), ("b", pa.binary())]),
    carried=pa.schema([("n", pa.int32()), ("at", pa.timestamp("us")), ("time", pa.time64("us"))]),
    answer=columns(**{type_.value: type_ for type_ in ARROW_TYPES}),
)


@pytest.mark.parametrize("name", [dialect.name for dialect in all_dialects()])
def test_what_we_would_create_fits(name: str) -> None:
    dialect = find_dialect(name)
    existing = {
        field.name.upper(): dialect.column_type(field.type, key=True) for field in EVERY.answer_columns
    }
    shape = shape_target(EVERY, existing, dialect)
    assert (shape.create, shape.add.names, shape.leave_out) == (False, [], frozenset())


@pytest.mark.parametrize(
    ("dialect", "type_", "fits"),
    [
        ("postgres", "character varying(20)", True),
        ("postgres", "citext", True),
        ("postgres", "text[]", False),
        ("postgres", "mood", False),
        ("postgres", "jsonb", False),
        ("duckdb", "VARCHAR", True),
        ("duckdb", "ENUM('a', 'b')", False),
        ("sqlite", "", True),
        ("sqlite", "INTEGER", False),
        ("mysql", "longtext", True),
        ("mysql", "tinyint(1)", False),
        ("snowflake", "TEXT", True),
        ("snowflake", "NUMBER(38,0)", False),
        ("tsql", "nvarchar(max)", True),
        ("bigquery", "STRING", True),
    ],
)
def test_a_text_is_written_only_to_a_column_that_holds_text(dialect: str, type_: str, fits: bool) -> None:
    _assert_fits("label", pa.string(), type_, dialect, fits=fits)


@pytest.mark.parametrize(
    ("value", "type_", "fits"),
    [
        (pa.int64(), "integer", True),
        (pa.int64(), "numeric(20,4)", True),
        (pa.int64(), "boolean", False),
        (pa.float64(), "double precision", True),
        (pa.float64(), "bigint", False),
        (pa.float64(), "numeric(10,0)", False),
        (pa.bool_(), "boolean", True),
        (pa.bool_(), "integer", False),
        (pa.date32(), "date", True),
        (pa.date32(), "timestamp", False),
        (pa.timestamp("us", tz="UTC"), "timestamp without time zone", True),
        (pa.timestamp("us"), "timestamp with time zone", False),
        (pa.json_(pa.string()), "json", True),
        (pa.json_(pa.string()), "text", True),
        (pa.json_(pa.string()), "text[]", False),
        (pa.list_(pa.float64()), "double precision[]", True),
        (pa.list_(pa.float64()), "vector", True),
        (pa.list_(pa.float64()), "text[]", False),
    ],
)
def test_a_value_is_written_only_where_it_keeps_what_it_says(
    value: pa.DataType, type_: str, fits: bool
) -> None:
    _assert_fits("value", value, type_, "postgres", fits=fits)


def test_every_column_that_does_not_fit_is_named() -> None:
    target = labels(answer=pa.schema([("a", pa.string()), ("b", pa.bool_())]))
    existing = {**_existing(target, "duckdb"), "a": "BIGINT", "b": "DATE"}
    with pytest.raises(
        TargetError, match=r"a is BIGINT .*string \(VARCHAR\); b is DATE .*boolean \(BOOLEAN\)"
    ):
        shape_target(target, existing, find_dialect("duckdb"))


def test_two_columns_with_one_name_are_refused() -> None:
    with pytest.raises(TargetError, match="ID"):
        shape_target(labels(answer=pa.schema([("ID", pa.string())])), None, find_dialect("duckdb"))


def test_the_policy_for_schema_changes_is_not_for_the_stage_s_own_columns() -> None:
    target = labels(on_schema_change=SchemaChange.FAIL)
    dialect = find_dialect("duckdb")
    assert (
        shape_target(target, {"id": "BIGINT", "label": "VARCHAR"}, dialect).add.names[0] == "_llm_input_hash"
    )
    assert shape_failures(target, {"id": "BIGINT"}, dialect).add.names[0] == "_llm_outcome"


def test_the_partition_column_is_never_left_out() -> None:
    target = labels(
        carried=pa.schema([("day", pa.date32())]), partition_by="day", on_schema_change=SchemaChange.IGNORE
    )
    existing = _existing(target, "postgres")
    del existing["day"]
    with pytest.raises(TargetError, match="no column day"):
        shape_target(target, existing, find_dialect("postgres"))


def _existing(target: object, dialect: str) -> dict[str, str]:
    return {field.name: find_dialect(dialect).column_type(field.type) for field in target.answer_columns}  # type: ignore[attr-defined]


def _assert_fits(name: str, value: pa.DataType, type_: str, dialect: str, *, fits: bool) -> None:
    target = labels(answer=pa.schema([(name, value)]))
    existing = {**_existing(target, dialect), name: type_}
    if fits:
        assert shape_target(target, existing, find_dialect(dialect)).add.names == []
    else:
        with pytest.raises(TargetError, match=f"{name} is "):
            shape_target(target, existing, find_dialect(dialect))
