"""Table names are read as SQL reads them, in each database's quotes, or refused."""

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud.bigquery import Client

from airflow_batch_llm.core.settings import Source, Stage
from airflow_batch_llm.errors import TargetError
from airflow_batch_llm.warehouses import find_dialect
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
