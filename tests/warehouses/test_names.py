"""Table names are read as SQL reads them, in each database's quotes, or refused."""

import subprocess
import sys
from dataclasses import replace

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud.bigquery import Client
from sqlglot import exp

from airflow_batch_llm.core.settings import Source, Stage
from airflow_batch_llm.errors import TargetError
from airflow_batch_llm.warehouses import all_types, find_dialect
from airflow_batch_llm.warehouses.bigquery.connection import BigQuerySettings, table_name
from airflow_batch_llm.warehouses.bigquery.warehouse import BigQueryWarehouse
from airflow_batch_llm.warehouses.registration import Place


@pytest.mark.parametrize(
    ("dialect", "written", "parts"),
    [
        ("postgres", '"We ird"."t"', ("We ird", "t")),
        ("postgres", '"a.b"."say ""hi"""', ("a.b", 'say "hi"')),
        ("postgres", "'); DROP TABLE x; --", None),
        ("duckdb", "'/path/x.csv'", None),
        ("duckdb", "read_csv('/path/x.csv')", None),
        ("duckdb", "range(3)", None),
        ("duckdb", '"a""b', None),
        ("mysql", "`a b`.`t`", ("a b", "t")),
        ("bigquery", "`my-project.d.t`", ("my-project", "d", "t")),
        ("bigquery", "my-project.d.t", ("my-project", "d", "t")),
        ("tsql", "[a b].[t.u]", ("a b", "t.u")),
        ("snowflake", '"Mixed"."t"', None),
        ("snowflake", '"Mixed".labels', ("Mixed", "labels")),
    ],
)
def test_quoted_names_are_read_as_sql_reads_them_or_refused(
    dialect: str, written: str, parts: tuple[str, ...] | None
) -> None:
    if parts is None:
        with pytest.raises(TargetError, match=r"is not a table name|cannot be used here"):
            find_dialect(dialect).parts(written)
    else:
        assert find_dialect(dialect).parts(written) == parts
        # The failures table stands beside it, in the same quotes.
        failures = find_dialect(dialect).parts(_stage(written).failures_table)
        assert failures == (*parts[:-1], f"{parts[-1]}__failures")


def test_a_staging_schema_in_quotes_is_read_like_a_table() -> None:
    named = table_name("`my-project.staging`.staged", project="other", dataset=None)
    assert (named.project, named.dataset, named.table) == ("my-project", "staging", "staged")


def _stage(target: str) -> Stage:
    return Stage(
        source=Source(table="t"), key=("id",), model_id="openai:x", target=target, prompt="{{ body }}"
    )


def test_a_bigquery_table_is_in_its_own_project_whichever_project_pays_for_jobs() -> None:
    client = Client(project="payer", credentials=AnonymousCredentials())
    warehouse = BigQueryWarehouse(BigQuerySettings(client=lambda: client, storage=None, dataset="support"))

    own = Place(database="bigquery://payer", table="support.labels")
    assert warehouse.place("labels") == warehouse.place("payer.support.labels") == own
    assert warehouse.place("data.support.labels") == Place(database="bigquery://data", table="support.labels")


@pytest.mark.parametrize("dialect", sorted(one.dialect.name for one in all_types() if one.dialect))
def test_a_name_is_quoted_and_a_plain_one_read_as_the_parser_does(dialect: str) -> None:
    ours = find_dialect(dialect)
    for name in ("a", "A b", 'a"b', "a`b", "a]b", "[x]", 'ä"', "select", "a\\b", "a'b", '[[]]"" ``'):
        theirs = exp.to_identifier(ours.folded(name), quoted=True).sql(dialect=dialect)
        assert ours.backslashes or ours.quote(name) == theirs
    for name in ("a", "A.b", "_x.y1.z", "select", "s.values", "lateral.t"):
        assert ours.parts(name) == tuple(part.name for part in exp.to_table(name, dialect=dialect).parts)


@pytest.mark.parametrize("dialect", ["duckdb", "postgres"])
def test_usual_types_are_read_as_the_parser_reads_them(dialect: str) -> None:
    ours = find_dialect(dialect)
    parsed = {name: replace(ours, own_types={}).kind_of(name) for name in ours.own_types}
    assert {name: kind for name, kind in parsed.items() if kind is not ours.own_types[name]} == (
        {"citext": None, '"char"': None} if dialect == "postgres" else {}
    )


def test_plain_names_and_usual_types_need_no_parser() -> None:
    program = """
import sys
from airflow_batch_llm.warehouses import find_dialect
dialect = find_dialect("duckdb")
print(dialect.table("main.labels"), dialect.kind_of("VARCHAR"), dialect.kind_of("TIMESTAMP WITH TIME ZONE"))
print("sqlglot" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ['"main"."labels" string timestamptz', "False"]
