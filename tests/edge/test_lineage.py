"""The events that OpenLineage gets."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from airflow.sdk import DAG
from jsonschema import validate

from airflow_batch_llm.operators import reporting as lineage
from airflow_batch_llm.operators.llm_batch import CollectLLMBatchOperator, SubmitLLMBatchOperator
from airflow_batch_llm.operators.reporting import Lineage, to_openlineage
from airflow_batch_llm.warehouses import table_uri, tables_of
from tests.edge.conftest import TICKETS, World
from tests.edge.dag_runs import states, xcom
from tests.edge.tasks import arguments, transform
from tests.monitoring import ROOT

Run = Callable[..., Any]

#: The schema of our facet, as it ships.
FACET = ROOT / "docs" / "assets" / "openlineage" / "BatchLLMUsageRunFacet-1-0-0.json"


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[Lineage]:
    """Return the notes of the tasks that are given `noting(…)`, as if Airflow's provider were here to ask."""
    monkeypatch.setattr(lineage, "find_spec", lambda name: object())
    return []


def noting(noted: list[Lineage]) -> dict[str, Any]:
    return {"post_execute": lambda context, result: noted.extend(context["task"]._lineages)}


@pytest.mark.parametrize(
    ("sql", "tables"),
    [
        ("SELECT * FROM support.tickets WHERE day > 1", ["support.tickets"]),
        ("WITH new AS (SELECT * FROM a) SELECT * FROM new JOIN b.c USING (id)", ["a", "b.c"]),
        ("not a SELECT (", []),
    ],
)
def test_the_tables_of_a_select_are_its_inputs(sql: str, tables: list[str]) -> None:
    assert list(tables_of(sql)) == tables


def test_a_select_is_read_in_the_dialect_of_its_database() -> None:
    assert list(tables_of("SELECT * FROM `shop.support.tickets`", "bigquery://shop")) == [
        "shop.support.tickets"
    ]
    assert list(tables_of("SELECT * FROM tickets", "unheard://of")) == ["tickets"]


@pytest.mark.parametrize(
    ("database", "table", "uri"),
    [
        ("bigquery://shop", "support.tickets", "bigquery://shop/support/tickets"),
        ("bigquery://shop", "other.support.tickets", "bigquery://other/support/tickets"),
        ("snowflake://acme/shop", "other.support.tickets", "snowflake://acme/other/support/tickets"),
        ("postgres://db:5432/shop", "shop.support.tickets", "postgres://db:5432/shop/support/tickets"),
        ("file:///data/w.duckdb", "main.tickets", "file:///data/w.duckdb/main/tickets"),
    ],
)
def test_a_table_is_below_its_database_also_where_its_name_begins_with_one(
    database: str, table: str, uri: str
) -> None:
    assert table_uri(database, table) == uri


def test_a_run_notes_its_tables_and_columns_where_openlineage_is_installed(
    world: World, run: Run, noted: list[Lineage]
) -> None:
    with DAG("lineage", schedule=None) as dag:
        transform(**noting(noted))

    done = run(dag)

    assert states(done) == {"label": "success"}
    assert noted == [_of_all(world, xcom(done, "label"))]


def test_a_plan_that_is_only_looked_at_has_written_nothing(
    world: World, run: Run, noted: list[Lineage]
) -> None:
    with DAG("lineage_of_plan", schedule=None) as dag:
        transform(plan_only=True, **noting(noted))

    assert states(run(dag)) == {"label": "success"}
    assert noted == []


def test_who_collects_a_handle_notes_what_the_submitter_has_read(
    world: World, run: Run, noted: list[Lineage]
) -> None:
    with DAG("lineage_of_three", schedule=None) as dag:
        sent = SubmitLLMBatchOperator(**arguments(task_id="submit", **noting(noted)))
        CollectLLMBatchOperator(task_id="collect", handle=sent.output, **noting(noted))

    done = run(dag)

    assert states(done) == {"submit": "success", "collect": "success"}
    assert noted == [_of_all(world, xcom(done, "collect"))]


@pytest.mark.parametrize("by", ["run_folder", "pending_for"])
def test_who_collects_without_a_handle_notes_no_source(
    world: World, run: Run, noted: list[Lineage], by: str
) -> None:
    with DAG(f"lineage_sent_{by}", schedule=None) as dag:
        SubmitLLMBatchOperator(**arguments(task_id="submit"))
    folder = xcom(run(dag), "submit")["run"]
    with DAG(f"lineage_by_{by}", schedule=None) as dag:
        CollectLLMBatchOperator(
            task_id="collect", **{by: folder if by == "run_folder" else "labels"}, **noting(noted)
        )

    assert states(run(dag)) == {"collect": "success"}
    (found,) = noted
    assert (found.inputs, found.output) == ((), f"file://{world.duckdb_path}/labels")


def test_a_run_has_landed_also_where_its_tables_cannot_be_told(
    world: World, run: Run, noted: list[Lineage], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(sql: str, database_uri: str) -> tuple[str, ...]:
        raise RecursionError

    monkeypatch.setattr("airflow_batch_llm.operators.llm_transform.tables_of", broken)
    with DAG("lineage_broken", schedule=None) as dag:
        transform(source_table=None, source_sql="SELECT * FROM tickets", **noting(noted))

    assert states(run(dag)) == {"label": "success"}
    assert world.query("SELECT count(*) FROM labels") == [(len(TICKETS),)]
    assert noted == []


def _of_all(world: World, report: dict[str, Any]) -> Lineage:
    file = f"file://{world.duckdb_path}"
    assert report["cost"]["usd"] > 0
    return Lineage(
        inputs=(f"{file}/tickets",),
        output=f"{file}/labels",
        columns_used=("body", "subject"),
        columns_made=("topic", "urgent"),
        written=len(TICKETS),
        usage={
            "run": report["run_id"],
            "provider": "anthropic",
            "model": "claude-haiku-4-5",
            "rows": len(TICKETS),
            "succeeded": len(TICKETS),
            "requests": len(TICKETS),
            "costUsd": report["cost"]["usd"],
            "savedUsd": report["cost"]["saved_usd"],
        },
    )


def _told(*inputs: str, columns_used: tuple[str, ...] = ("body",)) -> Any:
    pytest.importorskip("airflow.providers.openlineage")
    return to_openlineage(
        Lineage(
            inputs=inputs,
            output="file:///data/w.duckdb/labels",
            columns_used=columns_used,
            columns_made=("topic",),
            written=7,
            usage={"run": "d/t/r/g1", "costUsd": 0.25},
        )
        for _ in range(2)
    )


def test_tables_are_named_as_openlineage_names_them_and_once() -> None:
    told = _told("postgres://db:5432/shop/support/tickets", "bigquery://project/support/tickets")

    assert [(one.namespace, one.name) for one in told.inputs] == [
        ("postgres://db:5432", "shop.support.tickets"),
        ("bigquery", "project.support.tickets"),
    ]
    (output,) = told.outputs
    assert (output.namespace, output.name) == ("file", "/data/w.duckdb/labels")
    assert output.outputFacets["outputStatistics"].rowCount == 7 + 7
    assert told.run_facets["batchLLM_usage"].runs == [{"run": "d/t/r/g1", "costUsd": 0.25}] * 2


def test_columns_are_followed_where_it_is_known_which_table_has_them() -> None:
    (of_one,) = _told("postgres://db:5432/shop/tickets").outputs
    (of_two,) = _told("postgres://db:5432/shop/tickets", "postgres://db:5432/shop/clients").outputs
    (of_a_function,) = _told("postgres://db:5432/shop/tickets", columns_used=()).outputs

    (field,) = of_one.facets["columnLineage"].fields["topic"].inputFields
    assert (field.namespace, field.name, field.field) == ("postgres://db:5432", "shop.tickets", "body")
    assert of_two.facets == of_a_function.facets == {}


def test_no_event_of_a_real_openlineage_client_holds_a_key_a_row_or_an_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("airflow.providers.openlineage")
    key, header, row, words = (f"canary-{uuid4().hex}" for _ in range(4))
    for vendor, url in (("openai", world.simulator.openai_url), ("anthropic", world.simulator.url)):
        extra = {f"{vendor}_client_kwargs": {"default_headers": {"x-gateway-key": header}}}
        fields = {"conn_type": vendor, "host": url, "password": key, "extra": extra}
        monkeypatch.setenv(f"AIRFLOW_CONN_{vendor.upper()}_DEFAULT", json.dumps(fields))
    world.execute(f"UPDATE tickets SET body = body || ' {row}'")
    world.simulator.fault(
        provider="anthropic",
        kind="status",
        endpoint="create",
        status=400,
        message=f"{words} {key} {row}",
        times=None,
    )

    events = _emitted(world)

    told = json.dumps(events)
    assert {
        event["job"]["name"]: event["eventType"] for event in events if event["eventType"] != "START"
    } == {
        "in_steps": "COMPLETE",
        "in_steps.pending": "COMPLETE",
        "in_steps.send": "COMPLETE",
        "in_steps.wait": "COMPLETE",
        "in_steps.collect": "COMPLETE",
        "refused": "FAIL",
        "refused.label": "FAIL",
        "prompt_that_fails": "FAIL",
        "prompt_that_fails.label": "FAIL",
        "whole": "COMPLETE",
        "whole.label": "COMPLETE",
    }
    assert "None of 12 rows succeeded" in told, "an event holds the text of a task's error"
    ended = {event["job"]["name"]: event for event in events if event["eventType"] != "START"}
    assert _written(ended["whole.label"]) == _written(ended["in_steps.collect"]) == [len(TICKETS)]
    assert _written(ended["refused.label"]) == [0]
    schema = json.loads(FACET.read_text())
    facets = [ended[name]["run"]["facets"]["batchLLM_usage"] for name in ("whole.label", "in_steps.collect")]
    for facet in facets:
        validate(facet, schema)
        assert facet["_schemaURL"] == schema["$id"]
    billed = world.query("SELECT sum(_llm_cost_usd) FROM (FROM labels UNION ALL FROM whole)")[0][0]
    assert sum(run["costUsd"] for facet in facets for run in facet["runs"]) == pytest.approx(billed, abs=2e-6)
    assert billed > 0
    answers = [text for (text,) in world.query("SELECT answer FROM labels UNION SELECT answer FROM whole")]
    assert answers
    assert [text for text in (key, header, row, words, *answers) if text in told] == []


def _written(event: dict[str, Any]) -> list[int]:
    """The rows that each output has got."""
    return [one["outputFacets"]["outputStatistics"]["rowCount"] for one in event["outputs"]]


def _emitted(world: World) -> list[dict[str, Any]]:
    """Run the Dags in a process with an OpenLineage client, and return the events that it has written."""
    path = world.folder / "events.jsonl"
    transport = {"type": "file", "log_file_path": str(path), "append": True}
    environment = {
        **os.environ,
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(transport),
        "AIRFLOW__OPENLINEAGE__DISABLED": "False",
        "AIRFLOW__OPENLINEAGE__NAMESPACE": "tests",
    }
    command = [sys.executable, "-W", "ignore", "-m", "tests.edge.lineage_program"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in path.read_text().splitlines()]
