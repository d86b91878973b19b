"""The statements of every dialect, as text beside this file, and read by that dialect's own grammar."""

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
import sqlglot

from airflow_batch_llm.core.model import ColumnType
from airflow_batch_llm.core.settings import Source, WriteMode
from airflow_batch_llm.core.value import key_ranges
from airflow_batch_llm.testing.staged_rows import columns, labels, part
from airflow_batch_llm.warehouses import all_dialects, find_dialect
from airflow_batch_llm.warehouses.dialect import Dialect, Upsert
from airflow_batch_llm.warehouses.publication import (
    Copying,
    Staged,
    Table,
    Tables,
    answered,
    donor,
    landings,
    preparation,
    publication,
    staged_columns,
)
from airflow_batch_llm.warehouses.side_tables import review_preparation, review_refresh, reviewed
from airflow_batch_llm.warehouses.statements import Landing, Statements
from tests.golden import check_golden, check_no_other

GOLDEN = Path(__file__).parent / "golden"
TARGET = labels(
    table="support.labels",
    key=pa.schema([("region", pa.string()), ("id", pa.int64())]),
    carried=pa.schema([("day", pa.date32()), ("price", pa.decimal128(9, 2))]),
    answer=columns(label=ColumnType.STRING, why=ColumnType.JSON, vector=ColumnType.VECTOR),
)
NOON = datetime.fromisoformat("2026-03-04T12:00")
RANGES = key_ranges("at", (NOON, NOON + timedelta(hours=2)), 2)
REVIEWED = replace(TARGET, review="support.labels__review")
SPOKEN = [
    dialect.name for dialect in all_dialects() if dialect.name != "bigquery"
]  # BigQuery has its own statements


def written(name: str) -> dict[str, list[str]]:
    """All statements of a stage's life in one dialect, by chapter."""
    dialect = find_dialect(name)
    statements = Statements(dialect)
    missing = Tables(target=None, failures=None)
    there = Tables(
        target=Table(
            columns={f.name: dialect.column_type(f.type) for f in TARGET.answer_columns},
            unique=dialect.upsert in (Upsert.ON_CONFLICT, Upsert.ON_DUPLICATE_KEY),
        ),
        failures=Table(
            columns={f.name: dialect.column_type(f.type) for f in TARGET.failure_columns},
            unique=dialect.upsert in (Upsert.ON_CONFLICT, Upsert.ON_DUPLICATE_KEY),
        ),
    )
    staged = Staged(answers="staged_answers", failures="staged_failures", failures_twice=False)
    appended = labels(table=TARGET.table, write_mode=WriteMode.APPEND)
    known = {TARGET.table: True, TARGET.failures: True}
    asked = Source(sql="SELECT 1;")
    both = landings(TARGET, there, statements)
    copied = copies(dialect, statements, both) if dialect.upsert is not Upsert.DELETE_KEYS_INSERT else {}
    return {
        "prepare": preparation(TARGET, missing, statements),
        "stage": [
            f"CREATE TABLE staged ({', '.join(staged_columns(TARGET.answer_columns, TARGET.key.names, statements))})"
        ],
        "publish": [step.sql for step in publication(TARGET, [part()], staged, both, statements)],
        "append": [step.sql for step in publication(appended, [part()], staged, both, statements)][:2],
        "review": [*review_preparation(REVIEWED, None, statements), *review_refresh(REVIEWED, statements)],
        "reviewed": [reviewed(REVIEWED, statements).sql or ""],
        "known": [statements.known("asked", TARGET, known)],
        "keys": [f"SELECT {dialect.key_parameter(type_)}" for type_ in (pa.int64(), pa.timestamp("us"))],
        "range": [statements.select(Source(table="support.tickets", within=one)) for one in RANGES],
        "read_known": [statements.read_known(statements.select(asked), asked, TARGET, known)],
        **copied,
    }


def copies(dialect: Dialect, statements: Statements, both: tuple[Landing, Landing]) -> dict[str, list[str]]:
    """The statements that copy answers from the target and from another table."""
    target = replace(TARGET, has_route=True, has_reused=True)
    types = {field.name: dialect.column_type(field.type) for field in target.answer_columns}
    others = {name: type_ for name, type_ in types.items() if name not in ("_llm_route", "_llm_reused_run")}
    donors = [donor(target, target.table, types, dialect), donor(target, "other", others, dialect)]
    copying = Copying(target=target, statements=statements, table=dialect.table(target.table))
    columns = tuple(target.answer_columns.names)
    landing = replace(both[0], columns=columns)
    return {
        "answered": [answered(target, donors[0], "5e" * 16, ["0a" * 16, "0b" * 16], dialect).sql or ""],
        "copy": [
            *copying.steps(donors, "staged_answers", (landing, both[1])),
            copying.count("staged_answers"),
        ],
    }


@pytest.mark.parametrize("name", SPOKEN)
def test_the_statements_are_those_of_the_golden_file(name: str) -> None:
    dialect = find_dialect(name)
    text = "".join(
        f"-- {chapter}\n" + "".join(f"{dialect.with_parameters(sql)}\n" for sql in statements)
        for chapter, statements in written(name).items()
    )
    check_golden(GOLDEN / f"{name}.sql", text.encode())


def test_every_golden_file_belongs_to_a_dialect() -> None:
    check_no_other(GOLDEN, SPOKEN)


@pytest.mark.parametrize("name", SPOKEN)
def test_the_dialect_s_grammar_reads_every_statement(name: str) -> None:
    for statements in written(name).values():
        for sql in statements:
            parsed = sqlglot.parse(sql.replace("\0", "NULL").rstrip(";"), dialect=name)
            assert len(parsed) == 1
            assert not isinstance(parsed[0], sqlglot.exp.Command), sql


@pytest.mark.parametrize("name", SPOKEN)
@pytest.mark.parametrize("end", ["", ";", " ;; ", "; -- done;", " /* ; */ ;", "; /* it's */"])
def test_a_query_is_left_without_the_semicolons_that_end_it(name: str, end: str) -> None:
    query = Statements(find_dialect(name)).select(Source(sql=f"SELECT 'a;' AS é{end}"))
    assert query.split("/*")[0].rstrip() == "SELECT 'a;' AS é"


def test_what_cannot_be_split_into_words_is_left_to_the_database() -> None:
    assert Statements(find_dialect("postgres")).select(Source(sql="SELECT 'a; b")) == "SELECT 'a; b\n"
