"""The CREATE TABLE of each dialect for partition_by and cluster_by, or the refusal."""

import pyarrow as pa
import pytest
import sqlglot

from airflow_batch_llm.errors import TargetError
from airflow_batch_llm.testing.staged_rows import labels
from airflow_batch_llm.warehouses import all_dialects, find_dialect
from airflow_batch_llm.warehouses.statements import Statements

CARRIED = pa.schema([("day", pa.date32()), ("Re gion", pa.string())])


def created(dialect: str, **changes: object) -> str:
    """Return the CREATE TABLE of a target with these settings."""
    target = labels(carried=CARRIED, **changes)
    return Statements(find_dialect(dialect)).create(target, target.table, target.answer_columns, unique=False)


@pytest.mark.parametrize(
    ("dialect", "partition_by", "cluster_by", "clause"),
    [
        ("snowflake", "day", (), 'CLUSTER BY ("DAY")'),
        ("snowflake", "day", ("Re gion", "id"), 'CLUSTER BY ("DAY", "Re gion", "ID")'),
        ("snowflake", "day", ("day", "id"), 'CLUSTER BY ("DAY", "ID")'),
        ("databricks", "day", (), "PARTITIONED BY (`day`)"),
        ("databricks", None, ("Re gion", "id"), "CLUSTER BY (`Re gion`, `id`)"),
        ("redshift", "day", ("id",), 'COMPOUND SORTKEY ("day", "id")'),
        ("redshift", None, ("label",), 'COMPOUND SORTKEY ("label")'),
    ],
)
def test_the_clause_follows_the_columns_and_is_of_the_dialect(
    dialect: str, partition_by: str | None, cluster_by: tuple[str, ...], clause: str
) -> None:
    sql = created(dialect, partition_by=partition_by, cluster_by=cluster_by)
    assert sql.endswith(f") {clause}")
    assert isinstance(sqlglot.parse_one(sql, dialect=dialect), sqlglot.exp.Create)


@pytest.mark.parametrize("dialect", [dialect.name for dialect in all_dialects()])
def test_nothing_is_said_where_nothing_is_asked_for(dialect: str) -> None:
    assert created(dialect).endswith(")")


@pytest.mark.parametrize("dialect", ["duckdb", "mysql", "postgres", "sqlite", "tsql"])
@pytest.mark.parametrize("asked", [{"partition_by": "day"}, {"cluster_by": ("id",)}])
def test_where_there_is_no_such_layout_it_is_refused(dialect: str, asked: dict[str, object]) -> None:
    with pytest.raises(
        TargetError, match=rf"{next(iter(asked))} cannot be had.*{find_dialect(dialect).title}"
    ):
        created(dialect, **asked)


def test_databricks_partitions_or_clusters() -> None:
    with pytest.raises(TargetError, match=r"not both.*begin with 'day'"):
        created("databricks", partition_by="day", cluster_by=("id",))


def test_a_column_that_the_target_does_not_get_is_named() -> None:
    with pytest.raises(TargetError, match="name month, which the target does not get"):
        created("snowflake", partition_by="month")


def test_the_failures_table_has_no_layout() -> None:
    target = labels(carried=CARRIED, partition_by="day")
    sql = Statements(find_dialect("snowflake")).create(
        target, target.failures, target.failure_columns, unique=False
    )
    assert "CLUSTER" not in sql
