"""BigQuery's statements as text: what is said, and that no name can say more."""

import re

import pyarrow as pa
import pytest

from airflow_batch_llm.core.model import ColumnType
from airflow_batch_llm.core.settings import WriteMode
from airflow_batch_llm.errors import TargetError
from airflow_batch_llm.testing.staged_rows import columns, labels
from airflow_batch_llm.warehouses.base import Target
from airflow_batch_llm.warehouses.bigquery.connection import TableName, table_name
from airflow_batch_llm.warehouses.bigquery.sql import (
    BigQueryTables,
    Columns,
    known_join,
    publish_script,
    trials,
)

STAGED = [TableName(project="p", dataset="d", table=f"llm_staged_{n}") for n in range(2)]


def tables(target: Target, **types: str) -> BigQueryTables:
    """The two tables as BigQuery would show them; `types` are those of the target table that matter."""
    key = tuple(target.key.names)
    present = {name: types.get(name, "STRING") for name in target.answer_columns.names}
    failing = dict.fromkeys(target.failure_columns.names, "STRING")
    name = TableName(project="p", dataset="d", table="labels")
    return BigQueryTables(
        target=target,
        answers=Columns(name=name, key=key, types=present),
        failures=Columns(name=TableName(project="p", dataset="d", table="f"), key=key, types=failing),
    )


def statements(target: Target) -> list[str]:
    return publish_script(tables(target), STAGED).removesuffix(";").split(";\n")


def changing(target: Target) -> list[str]:
    """The statements inside the transaction, by their first word."""
    script = statements(target)
    inside = script[script.index("BEGIN TRANSACTION") + 1 : script.index("COMMIT TRANSACTION")]
    return [statement.split()[0] for statement in inside]


def test_both_tables_change_in_one_transaction() -> None:
    assert changing(labels()) == ["MERGE", "MERGE", "DELETE"]
    assert changing(labels(write_mode=WriteMode.APPEND)) == ["DELETE", "INSERT", "MERGE", "DELETE"]


def test_a_merge_names_its_partitions_where_it_says_what_matches() -> None:
    target = labels(carried=pa.schema([("day", pa.date32())]), partition_by="day")
    merge = next(
        s for s in publish_script(tables(target, day="DATE"), STAGED).split(";\n") if "`labels` AS T" in s
    )
    on = merge[merge.index("\nON ") : merge.index("\nWHEN MATCHED")]
    assert "T.`day` BETWEEN _llm_lowest AND _llm_highest" in on


def test_every_part_is_gathered_once() -> None:
    script = publish_script(tables(labels()), STAGED)
    assert [script.count(table.quoted) for table in STAGED] == [1, 1]


def test_every_statement_on_a_partitioned_target_names_its_partitions() -> None:
    target = labels(carried=pa.schema([("day", pa.date32())]), partition_by="day")
    for mode in WriteMode:
        changed = tables(Target(**{**_fields(target), "write_mode": mode}), day="DATE")
        script = publish_script(changed, STAGED)
        assert "DECLARE _llm_lowest, _llm_highest DATE" in script
        touching = re.findall(r"`labels` AS T[^;]*?(?:BETWEEN _llm_lowest AND _llm_highest)", script)
        assert len(touching) == script.count("`labels` AS T")


def test_json_is_parsed_and_what_the_table_holds_otherwise_is_cast() -> None:
    target = labels(answer=columns(data=ColumnType.JSON, score=ColumnType.NUMBER))
    script = publish_script(tables(target, data="JSON", score="NUMERIC"), STAGED)
    assert re.search(r"PARSE_JSON\(c\d+, wide_number_mode=>'round'\) AS `data`", script)
    assert re.search(r"CAST\(c\d+ AS NUMERIC\) AS `score`", script)


def test_a_name_cannot_leave_its_quotation() -> None:
    name = "a` ; DROP TABLE labels; --\\"
    for statement in trials(tables(labels(answer=pa.schema([(name, pa.string())])))):
        outside = re.sub(r"`(?:[^`\\]|\\.)*`", "", statement)
        assert "DROP" not in outside


def test_a_target_that_is_missing_is_looked_up_as_empty() -> None:
    target = labels()
    there = tables(target)
    missing = BigQueryTables(
        target=target,
        answers=Columns(name=there.answers.name, key=("id",), types={}),
        failures=Columns(name=there.failures.name, key=("id",), types={}),
    )
    sql = known_join(missing, "SELECT 1 AS id", columns="S.*", within=None)
    assert "`labels`" not in sql
    assert "`f`" not in sql


@pytest.mark.parametrize(
    ("written", "dataset", "found"),
    [
        ("t", "d", "p.d.t"),
        ("e.t", "d", "p.e.t"),
        ("q.e.t", None, "q.e.t"),
        ("my-project.e.t", None, "my-project.e.t"),
        ("`my-project`.e.`t`", None, "my-project.e.t"),
    ],
)
def test_a_table_is_named_in_one_to_three_parts(written: str, dataset: str | None, found: str) -> None:
    assert str(table_name(written, project="p", dataset=dataset)) == found


@pytest.mark.parametrize("written", ["t", "", "a.b.c.d", "a..b"])
def test_other_names_are_refused(written: str) -> None:
    with pytest.raises(TargetError):
        table_name(written, project="p", dataset=None)


def _fields(target: Target) -> dict[str, object]:
    return {name: getattr(target, name) for name in Target.__slots__}
