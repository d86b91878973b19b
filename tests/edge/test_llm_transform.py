"""The operator in a real Airflow, against the simulator and a DuckDB file."""

import os
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from socket import gethostname
from typing import Any

import pytest
from airflow.sdk import DAG, Asset, AssetAlias, task

from airflow_batch_llm.core.settings import Escalation, Guards, Pace, Route, Shape
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.operators.reporting import add_to_assets
from airflow_batch_llm.stage.audit import audit
from airflow_batch_llm.stage.records.folder import run_folders
from airflow_batch_llm.store import Workspace
from tests.edge.conftest import TICKETS, World
from tests.edge.dag_runs import asset_extras, failures, states, xcom
from tests.edge.logs import root_messages, told
from tests.edge.tasks import transform

Run = Callable[..., Any]


@pytest.mark.parametrize("deferrable", [True, False])
def test_a_table_becomes_a_labelled_table(world: World, run: Run, deferrable: bool) -> None:
    with DAG(f"labels_{deferrable}".lower(), schedule=None) as dag:
        transform(deferrable=deferrable)

    done = run(dag)

    assert states(done) == {"label": "success"}
    rows = world.query("SELECT ticket_id, topic, urgent FROM labels ORDER BY ticket_id")
    assert [row[0] for row in rows] == [ticket[0] for ticket in TICKETS]
    assert {row[1] for row in rows} <= {"bug", "billing"}
    assert world.rows_charged() == len(TICKETS)
    report = xcom(done, "label")
    assert report["outcomes"] == {"succeeded": len(TICKETS)}
    assert report["llm_conn_id"] is None


def test_the_run_folder_records_which_task_on_which_host_by_which_connection_sent_the_batch(
    world: World, run: Run
) -> None:
    with DAG("audited", schedule=None) as dag:
        transform(deferrable=True, owner="support", usage_table="{{ dag.dag_id }}_usage")

    done = run(dag)

    workspace = Workspace.open(str(world.folder / "workspace"))
    (folder,) = run_folders(workspace)
    (batch,) = audit(folder).batches
    sender = {"dag_id": "audited", "task_id": "label", "run_id": done.run_id, "host": gethostname()}
    assert batch.sent_by.items() >= {**sender, "conn_id": "anthropic_default"}.items()
    assert batch.sent_by["try_number"] >= 1
    (ledger,) = world.query("SELECT dag_id, task_id, dag_run_id, team, requests, usd > 0 FROM audited_usage")
    assert ledger == ("audited", "label", done.run_id, "support", len(TICKETS), True)


def test_the_log_tells_of_rows_dollars_and_times_and_of_no_http_requests(world: World, run: Run) -> None:
    with DAG("tells_in_words", schedule=None) as dag:
        transform()

    with told() as log, root_messages() as messages:
        run(dag)

    assert log.tells(f"{len(TICKETS)} rows: {len(TICKETS)} new.")
    assert not log.warns("new.")
    assert log.tells("1 of 1 batch is running; $0.0000 of about $0.")
    assert log.tells("The run's time ends at")
    assert log.tells("looked at again in")
    assert not any(world.simulator.url in message for message in messages)


def test_a_second_run_pays_for_the_changed_row_only(world: World, run: Run) -> None:
    with DAG("again", schedule=None) as dag:
        transform(deferrable=True)
    run(dag)
    world.execute("UPDATE tickets SET body = 'The app is slow' WHERE ticket_id = 7")

    done = run(dag)

    assert xcom(done, "label")["why"] == {"answered": len(TICKETS) - 1, "changed": 1}
    assert world.rows_charged() == len(TICKETS) + 1


def test_the_same_rows_by_another_connection_are_not_paid_again(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", os.environ["AIRFLOW_CONN_ANTHROPIC_DEFAULT"])
    monkeypatch.setenv("AIRFLOW__BATCH_LLM__USAGE_TABLE", "usage")
    monkeypatch.setenv("AIRFLOW__BATCH_LLM__USAGE_CONN_ID", "nowhere")
    with DAG("usual", schedule=None) as usual:
        transform()
    with DAG("other", schedule=None) as other:
        transform(llm_conn_id="other")
    with told() as log:
        run(usual)
    assert log.warns("could not be written to usage; the next run with this ledger writes it.")
    assert log.warns("nowhere")

    done = run(other)

    assert xcom(done, "label")["why"] == {"answered": len(TICKETS)}
    assert world.rows_charged() == len(TICKETS)


def test_the_ceiling_of_the_configuration_stops_a_run_with_any_budget(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__BATCH_LLM__BUDGETS", '{"support": {"usd": 500, "per": "month"}}')
    monkeypatch.setenv("AIRFLOW__BATCH_LLM__BUDGET_CEILING", '{"usd": 0.000001, "per": "day"}')
    with DAG("stopped", schedule=None) as dag:
        transform(budget="{{ 'support' }}", max_cost_usd=float("inf"))

    with failures() as failed:
        run(dag)

    assert "above the budget ceiling ($0.00 a day), of which $0.0000 are left." in str(failed[0])
    assert world.rows_charged() == 0


def test_openai_is_reached_by_its_official_connection_type(world: World, run: Run) -> None:
    with DAG("openai", schedule=None) as dag:
        transform(model_id="openai:gpt-5-mini", deferrable=True)

    assert states(run(dag)) == {"label": "success"}
    assert world.rows_charged("openai") == len(TICKETS)


@pytest.mark.parametrize("deferrable", [True, False])
def test_rows_take_routes_to_another_vendor_and_go_on_to_a_third(
    world: World, run: Run, deferrable: bool
) -> None:
    """Templates in a route are rendered, and the trigger waits for the batches of both connections."""
    with DAG(f"routes_{deferrable}".lower(), schedule=None, params={"model": "gpt-5-mini"}) as dag:
        transform(
            deferrable=deferrable,
            source_table=None,
            source_sql="SELECT *, CASE WHEN ticket_id = 7 THEN 'other' END AS how FROM tickets",
            routes={
                "other": Route(model_id="openai:{{ params.model }}", llm_conn_id="openai_default"),
                "now": {"way": "now"},
            },
            route_column="how",
            escalate=[Escalation(to="now", on={"refused"})],
        )
    world.simulator.fault(provider="anthropic", kind="refused", rows=[0])

    done = run(dag)

    assert states(done) == {"label": "success"}
    routes = dict(world.query("SELECT _llm_route, count(*) FROM labels GROUP BY 1"))
    assert routes == {"default": len(TICKETS) - 2, "other": 1, "now": 1}
    assert world.rows_charged("openai") == 1
    assert {name: part["succeeded"] for name, part in xcom(done, "label")["routes"].items()} == routes


def test_a_limit_of_spending_fails_the_task_and_the_next_try_buys_only_what_is_missing(
    world: World, run: Run
) -> None:
    cap = {"status": 429, "code": "insufficient_quota", "nth": 4, "times": None}
    world.simulator.fault(provider="openai", kind="status", endpoint="chat", **cap)
    with DAG("capped", schedule=None) as dag:
        transform(
            model_id="openai:gpt-5-mini",
            source_table=None,
            source_sql="SELECT *, CASE WHEN ticket_id <= 6 THEN 'urgent' END AS how FROM tickets",
            routes={"urgent": {"way": "now"}},
            route_column="how",
            retries=2,
            deferrable=True,
            pace=Pace(poll_interval=0.1, max_concurrency=1),
        )
    again = dict.fromkeys(["logical_date", "run_after"], datetime(2026, 11, 20, tzinfo=UTC))

    with failures() as errors:
        done = run(dag, **again)

    assert states(done) == {"label": "failed"}
    assert [ti.try_number for ti in done.get_task_instances()] == [1]  # another try would meet it, too
    assert "The account's limit of spending is reached, or it has no credit." in str(errors[-1])
    assert "clear the task" in str(errors[-1])
    assert "cancel" not in world.simulator.ledger()["openai"]["calls"]

    world.simulator.clear_faults()
    assert states(run(dag, **again)) == {"label": "success"}
    assert world.query("SELECT _llm_route, count(*) FROM labels GROUP BY 1 ORDER BY 1") == [
        ("default", 6),
        ("urgent", 6),
    ]
    assert world.rows_charged("openai") == len(TICKETS)


def test_files_are_a_source_and_say_where_a_row_came_from(world: World, run: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"ticket_id": "{name}", "subject": "x", "body": "y"}}\n')
    with DAG("files", schedule=None) as dag:
        transform(
            source_table=None,
            source_conn_id=None,
            source_uri=f"file://{tmp_path}/*.jsonl",
            target_conn_id="warehouse",
            shape=Shape(carry=["_llm_source_uri"]),
        )

    assert states(run(dag)) == {"label": "success"}
    rows = world.query("SELECT ticket_id, _llm_source_uri FROM labels ORDER BY ticket_id")
    assert rows == [(name, f"file://{tmp_path}/{name}.jsonl") for name in ("a", "b")]


def test_a_prompt_may_stand_in_a_file_beside_the_dag(world: World, run: Run) -> None:
    with DAG("prompt_file", schedule=None) as dag:
        transform(prompt=None, prompt_file="prompts/ticket.txt")
        dag.fileloc = __file__

    assert states(run(dag)) == {"label": "success"}


def test_a_planned_run_goes_on_without_its_prompt_file(world: World, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "ticket.txt"
    file.write_text("{{ subject }}")
    with DAG("prompt_file_gone", schedule=None) as dag:
        transform(
            prompt=None,
            prompt_file=file.name,
            deferrable=True,
            warn_after=0,
            on_warning=lambda context: file.unlink(),  # as a deploy in the night would
        )
        dag.fileloc = str(tmp_path / "dag.py")

    with told() as log:
        done = run(dag)

    assert states(done) == {"label": "success"}
    assert log.warns(f"prompt_file {file} cannot be read (No such file or directory)")
    assert world.query("SELECT count(*) FROM labels") == [(len(TICKETS),)]


def test_each_item_of_a_mapped_task_is_a_run_of_its_own(world: World, run: Run) -> None:
    with DAG("mapped", schedule=None) as dag:
        transform(partial=True, target=..., max_rows=..., output_type=...).expand_kwargs(
            [
                {"target": "labels_a", "max_rows": 2, "output_type": ["billing", "bug"]},
                {"target": "labels_b", "max_rows": 3, "output_type": ["billing", "bug"]},
                {"target": "labels_b", "max_rows": 3, "output_type": ["urgent", "other"]},
            ]
        )

    done = run(dag)

    assert set(states(done).values()) == {"success"}
    assert world.query("SELECT count(*) FROM labels_a") == [(2,)]
    assert world.query("SELECT count(*) FROM labels_b") == [(6,)], (
        "two items, which differ in the output type"
    )
    assert world.rows_charged() == 8


def test_the_event_of_an_outlet_bears_rows_dollars_and_the_report(world: World, run: Run) -> None:
    labels = Asset(f"file://{world.duckdb_path}")
    with DAG("asset", schedule=None) as dag:
        transform(outlets=[labels])

    done = run(dag)

    (extra,) = asset_extras(done)
    assert extra["rows"] == len(TICKETS)
    assert extra["cost_usd"] > 0
    assert extra["report"]["output_table"] == "labels"


def test_an_alias_gets_no_event_where_its_uri_would_be_none_that_airflow_takes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    events: dict[Any, Any] = {}  # nothing may be asked of it
    context: Any = {"outlet_events": events}

    add_to_assets(context, [AssetAlias("labels")], "postgres://db:5432/shop/labels", {})

    assert "Give the target with its schema." in caplog.text


def test_limits_and_prompt_params_may_be_templates(world: World, run: Run) -> None:
    with DAG("templates", schedule=None, params={"rows": 4}) as dag:
        transform(
            max_rows="{{ params.rows }}",
            prompt="On {{ params.day }}: {{ subject }}",
            prompt_params={"day": "{{ ds_nodash or 'x' }}"},
            source_sql="SELECT * FROM {{ params.table | default('tickets') }}",
            source_table=None,
        )

    assert states(run(dag)) == {"label": "success"}
    assert world.rows_charged() == 4


@pytest.mark.parametrize("limit", ["max_rows", "max_cost_usd"])
def test_a_limit_that_renders_to_no_number_is_named(world: World, run: Run, limit: str) -> None:
    with DAG(f"no_{limit}", schedule=None) as dag:
        operator = transform(**{limit: "many"})
    with pytest.raises(
        InputError, match=f"{limit} must be .*, got 'many'. Check what its template renders to"
    ):
        operator.stage({"run_id": "run"})
    assert states(run(dag)) == {"label": "failed"}


def test_a_plan_is_looked_at_without_sending_anything(world: World, run: Run) -> None:
    with DAG("plan_only", schedule=None) as dag:
        transform(plan_only=True)

    done = run(dag)

    assert xcom(done, "label")["verdict"].startswith("Planned only: 12 requests for 12 rows")
    assert world.rows_charged() == 0


def test_a_budget_that_is_too_small_fails_the_task_without_a_retry(world: World, run: Run) -> None:
    with DAG("budget", schedule=None) as dag:
        transform(max_cost_usd=0.000001, retries=2)

    done = run(dag)

    assert states(done) == {"label": "failed"}
    assert [ti.try_number for ti in done.get_task_instances()] == [1]
    assert world.rows_charged() == 0


def test_a_run_below_its_quality_gate_fails_and_leaves_its_report(world: World, run: Run) -> None:
    world.simulator.fault(kind="refused", every=1)
    with DAG("gate", schedule=None) as dag:
        transform(deferrable=True)

    done = run(dag)

    assert states(done) == {"label": "failed"}
    assert xcom(done, "label", "report")["outcomes"] == {"refused": len(TICKETS)}


def test_somebody_is_told_once_when_the_waiting_is_long(world: World, run: Run) -> None:
    told: list[str] = []
    world.simulator.fault(provider="anthropic", kind="hold", times=None)

    def tell(context: Any) -> None:
        told.append(context["run_id"])
        for batch_id in world.simulator.ledger()["anthropic"]["running"]:
            world.simulator.batch(batch_id, "end")

    with DAG("warning", schedule=None) as dag:
        transform(deferrable=True, warn_after=0.5, on_warning=tell)

    done = run(dag)

    assert states(done) == {"label": "success"}
    assert told == [done.run_id]


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"source_sql": "SELECT 1"}, "Exactly one of source_sql, source_table, source_uri"),
        ({"source_table": None}, "there is none"),
        ({"prompt_file": "x"}, "Exactly one of prompt, prompt_file"),
        ({"model_id": "claude"}, "'<provider>:<model>'"),
        ({"only": "some"}, "only must be one of 'changed', 'outdated', 'new', 'all', got 'some'"),
        ({"write_mode": "append"}, "write_mode is a field of shape: write shape=Shape(write_mode=…)"),
        (
            {"shape": {"write_mode": "overwrite"}},
            "write_mode must be one of 'merge' or 'append', got 'overwrite'",
        ),
        ({"pace": Shape()}, "pace must be a Pace, got a Shape"),
        ({"source_conn_id": None}, "source_conn_id is missing"),
        ({"key": []}, "key names no column"),
        ({"guards": {"max_attempt": 3}}, "Guards: max_attempt is unknown; is it max_attempts?"),
        ({"guards": {"colour": 3}}, "Guards: colour is unknown; there are retry_dead, "),
        ({"llm_hook_params": {"account": "x"}}, "llm_hook_params has 'account'. It may have base_url, "),
        ({"llm_hook_params": {"api_key": "x"}}, "llm_hook_params has 'api_key'"),
        ({"target_hook_params": {"password": "x"}}, "Put it into the connection."),
        (
            {"llm_hook_params": {"default_headers": {"Authorization": "x"}}},
            "llm_hook_params has 'default_headers'",
        ),
        ({"source_hook_params": {"api-key": "x"}}, "source_hook_params has 'api-key'"),
        ({"source_hook_params": {"passwd": "x", "dsn": "x"}}, "source_hook_params has 'dsn', 'passwd'"),
        (
            {"llm_hook_params": {"base_url": "https://me:x@gateway"}},
            "llm_hook_params['base_url'] is a URL with a user",
        ),
        (
            {"target_hook_params": {"labels": {"of": ["a", "postgres://me:x@host/db"]}}},
            "target_hook_params['labels'] is a URL with a user",
        ),
    ],
)
def test_what_cannot_run_is_refused_while_the_dag_is_read(changes: dict[str, Any], advice: str) -> None:
    with pytest.raises(InputError) as refused:
        transform(**changes)

    assert advice in str(refused.value)


def test_the_templates_in_a_group_are_rendered(world: World, run: Run) -> None:
    with DAG("groups", schedule=None, params={"bad": "rejected", "most": 7}) as dag:
        transform(
            shape=Shape(failures_target="labels_{{ params.bad }}"),
            request={"extra_body": {"metadata": {"user_id": "{{ dag.dag_id }}"}}},
            max_rows="{{ params.most }}",
        )

    assert states(run(dag)) == {"label": "success"}
    assert world.rows_charged() == 7
    assert world.query("SELECT count(*) FROM labels_rejected") == [(0,)]
    (requests,) = (world.folder / "workspace").rglob("*.requests.jsonl")
    assert requests.read_text().count('"user_id":"groups"') == 7


def test_a_group_may_be_mapped_over_and_come_from_default_args(world: World, run: Run) -> None:
    shared = {"default_args": {"shape": Shape(carry=["subject"])}}
    with DAG("mapped_groups", schedule=None, **shared) as dag:  # type: ignore[arg-type]
        transform(partial=True, target=...).expand_kwargs(
            [{"target": "ours", "guards": Guards(max_attempts=1)}, {"target": "others", "guards": Guards()}]
        )

    assert set(states(run(dag)).values()) == {"success"}
    for table in ("ours", "others"):
        assert world.query(f"SELECT count(subject) FROM {table}") == [(12,)]


def test_arguments_may_come_from_the_dags_default_args() -> None:
    with DAG("defaults", schedule=None, default_args={"source_conn_id": "elsewhere", "deferrable": True}):
        operator = transform(source_conn_id=...)

    assert (operator.source_conn_id, operator.deferrable) == ("elsewhere", True)


def test_a_dag_may_start_on_what_a_task_found(world: World, run: Run) -> None:
    with DAG("upstream", schedule=None) as dag:

        @task
        def find() -> str:
            return "SELECT * FROM tickets WHERE ticket_id <= 2"

        transform(source_table=None, source_sql=find())

    assert states(run(dag)) == {"find": "success", "label": "success"}
    assert world.rows_charged() == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source_table": "ticket"}, "ticket"),
        (
            {"source_table": ..., "source_sql": "SELECT * FROM tickets WHERE '{{ dss }}' > ''"},
            "'dss' is undefined",
        ),
        ({"source_table": ..., "source_sql": "tickets_of_today.sql"}, "no file tickets_of_today.sql"),
        ({"max_cost_usd": 1e-9}, "Raise max_cost_usd"),
    ],
)
def test_a_users_mistake_is_one_message_with_hardly_a_stack(
    world: World, run: Run, changes: dict[str, Any], message: str
) -> None:
    with DAG("mistaken", schedule=None) as dag:
        transform(retries=2, **changes)

    with told() as log, failures() as failed:
        done = run(dag)

    (error,) = failed
    assert states(done) == {"label": "failed"}
    assert message in str(error)
    assert (error.__cause__, error.__context__) == (None, None)
    ours = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "/airflow_batch_llm/" in frame.filename
    ]
    assert len(ours) <= 4
    assert not log.tells(str(error))


def test_a_mistyped_name_in_a_template_is_answered_with_the_right_one(world: World, run: Run) -> None:
    with DAG("mistyped", schedule=None) as dag:
        transform(source_table="{{ logical_dat }}")

    with failures() as failed:
        run(dag, logical_date=datetime(2026, 1, 1, tzinfo=UTC))

    assert "source_table cannot be rendered: 'logical_dat' is undefined. Is it 'logical_date'?" in str(
        failed[0]
    )
