"""Submit, wait and collect, in one Dag and over two."""

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from airflow.providers.common.compat.sdk import TaskDeferred
from airflow.sdk import DAG, Asset

from airflow_batch_llm.core.settings import Escalation, Pace, Route
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.hooks.handle import RunHandle
from airflow_batch_llm.operators.llm_batch import CollectLLMBatchOperator, SubmitLLMBatchOperator
from airflow_batch_llm.providers.anthropic.provider import AnthropicProvider
from airflow_batch_llm.sensors.llm_batch import LLMBatchSensor
from tests.edge.conftest import TICKETS, World
from tests.edge.dag_runs import asset_extras, states, xcom
from tests.edge.logs import told
from tests.edge.tasks import arguments

Run = Callable[..., Any]


def submit(**changes: Any) -> SubmitLLMBatchOperator:
    return SubmitLLMBatchOperator(**arguments(task_id="submit", **changes))


@pytest.mark.parametrize("deferrable", [True, False])
def test_a_handle_joins_the_three_tasks(world: World, run: Run, deferrable: bool) -> None:
    with DAG(f"three_{deferrable}".lower(), schedule=None) as dag:
        sent = submit(pace=Pace(rows_per_batch=5, poll_interval=0.1))
        wait = LLMBatchSensor(
            task_id="wait", handle=sent.output, deferrable=deferrable, poke_interval=0.1, timeout=60
        )
        collect = CollectLLMBatchOperator(task_id="collect", handle=sent.output, deferrable=deferrable)
        sent >> wait >> collect

    done = run(dag)

    assert states(done) == {"submit": "success", "wait": "success", "collect": "success"}
    assert world.query("SELECT count(*) FROM labels") == [(len(TICKETS),)]
    assert len(xcom(done, "submit")["batch_ids"]) == 3
    assert xcom(done, "collect")["outcomes"] == {"succeeded": len(TICKETS)}
    assert world.rows_charged() == len(TICKETS)


def test_sending_and_waiting_tasks_link_to_the_batch_and_to_the_run(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AnthropicProvider, "host", None)  # as if it were the vendor's: others have no console
    links: list[list[str]] = []

    def note_links(context: Any, result: Any) -> None:
        task = context["task"]
        links.append([link.get_link(task, ti_key=None) for link in task.operator_extra_links])

    note = {"post_execute": note_links}
    with DAG("linked", schedule=None) as dag:
        sent = submit(**note)
        LLMBatchSensor(task_id="wait", handle=sent.output, poke_interval=0.1, **note)

    (batch_id,) = xcom(run(dag), "submit")["batch_ids"]

    (sent_batch, sent_run), (awaited_batch, awaited_run) = links
    assert sent_batch == awaited_batch
    assert sent_batch.endswith(f"/{batch_id}")
    assert sent_run == awaited_run
    assert sent_run.startswith("/llm-batches/dags/linked/run?path=linked%2Fsubmit%2F")


def test_a_clear_of_the_collector_gives_the_run_a_new_deadline_and_a_retry_does_not(
    world: World, run: Run, tmp_path: Path
) -> None:
    with DAG("late", schedule=None) as dag:
        submit()
    handle = RunHandle.from_json(xcom(run(dag), "submit"))
    collect = CollectLLMBatchOperator(task_id="collect", handle=handle.to_json(), retries=2)

    def deadlines(max_tries: int) -> int:
        names = {"dag_id": "late", "task_id": "collect", "run_id": "run", "map_index": -1, "try_number": 1}
        context: Any = {"ti": SimpleNamespace(max_tries=max_tries, **names), "task": collect}
        generation = collect.open_run(context, handle, tmp_path).generation()
        generation.deadline()
        return len(list(generation.folder.deadlines()))

    assert [deadlines(2), deadlines(2)] == [1, 1]
    assert [deadlines(5), deadlines(5)] == [2, 2]


def test_the_handle_is_small_and_holds_no_secret(world: World, run: Run) -> None:
    with DAG("small", schedule=None) as dag:
        submit()

    handle = orjson.dumps(xcom(run(dag), "submit"))

    assert len(handle) < 1000
    assert b"any" not in handle


def test_another_dag_collects_what_a_target_waits_for_oldest_first(world: World, run: Run) -> None:
    for number, rows in enumerate(("ticket_id <= 4", "ticket_id > 4")):
        with DAG(f"sender_{number}", schedule=None) as dag:
            submit(source_table=None, source_sql=f"SELECT * FROM tickets WHERE {rows}")
        run(dag)
    with DAG("collector", schedule=None) as dag:
        CollectLLMBatchOperator(task_id="collect", pending_for="labels", deferrable=True)

    done = run(dag)

    assert states(done) == {"collect": "success"}
    reports = xcom(done, "collect")
    assert [report["request_count"] for report in reports] == [4, 8]
    assert world.query("SELECT count(*) FROM labels") == [(len(TICKETS),)]
    assert world.rows_charged() == len(TICKETS)


def test_a_run_is_collected_by_its_folder(world: World, run: Run) -> None:
    with DAG("by_folder", schedule=None) as dag:
        submit()
    handle = xcom(run(dag), "submit")
    with DAG("collects_folder", schedule=None) as dag:
        CollectLLMBatchOperator(task_id="collect", run_folder=handle["run"])

    assert states(run(dag)) == {"collect": "success"}
    assert world.query("SELECT count(*) FROM labels") == [(len(TICKETS),)]


def test_a_folder_without_a_run_is_refused_with_its_name(world: World, run: Run) -> None:
    with DAG("no_folder", schedule=None) as dag:
        CollectLLMBatchOperator(task_id="collect", run_folder="nothing/here")

    assert states(run(dag)) == {"collect": "failed"}


def test_each_item_of_a_mapped_collector_finds_its_own_runs(world: World, run: Run) -> None:
    for target in ("labels_a", "labels_b"):
        with DAG(f"sends_{target}", schedule=None) as dag:
            submit(target=target)
        run(dag)
    with DAG("collects_mapped", schedule=None) as dag:
        CollectLLMBatchOperator.partial(task_id="collect").expand(pending_for=["labels_a", "labels_b"])

    done = run(dag)

    assert [len(xcom(done, "collect", map_index=index)) for index in range(2)] == [1, 1]
    assert world.query("SELECT count(*) FROM labels_a UNION ALL SELECT count(*) FROM labels_b") == [
        (len(TICKETS),),
        (len(TICKETS),),
    ]


def sent_by(run: Run, name: str, rows: str, **changes: Any) -> Path:
    """The folder of a run over some of the tickets, which is not collected."""
    with DAG(name, schedule=None) as dag:
        submit(source_table=None, source_sql=f"SELECT * FROM tickets WHERE {rows}", **changes)
    return Path(xcom(run(dag), "submit")["run"])


def test_a_collector_of_several_runs_looks_when_the_first_of_them_needs_it(world: World, run: Run) -> None:
    world.simulator.fault(provider="anthropic", kind="hold", times=None)
    sent_by(run, "calm", "ticket_id <= 4")
    left = timedelta(hours=1)
    given = {
        "routes": {"urgent": Route(way="now")},
        "escalate": [Escalation(to="urgent", left=left)],
        "pace": Pace(timeout=2 * left),
    }
    sent_by(run, "hasty", "ticket_id > 4", **given)
    names = {"dag_id": "waits", "task_id": "collect", "run_id": "run", "map_index": -1, "try_number": 1}
    collect = CollectLLMBatchOperator(task_id="collect", pending_for="labels", deferrable=True)
    context: Any = {"ti": SimpleNamespace(max_tries=0, **names), "task": collect}

    with pytest.raises(TaskDeferred) as deferred:
        collect.execute(context)

    wake_at = deferred.value.trigger.serialize()[1]["watch"]["wake_at"]
    assert 0 < time.time() + left.total_seconds() - wake_at < 600


def test_a_run_that_cannot_go_on_holds_up_no_other(world: World, run: Run) -> None:
    folder = world.folder / "workspace" / sent_by(run, "stuck", "ticket_id <= 4")
    sent_by(run, "sound", "ticket_id > 4")
    (stored,) = folder.glob("handles/*.json")
    stored.write_bytes(stored.read_bytes().replace(b"anthropic:claude-haiku-4-5", b"openai:gpt-5-mini"))
    with DAG("collects_past", schedule=None) as dag:
        CollectLLMBatchOperator(task_id="collect", pending_for="labels")

    with told() as log:
        done = run(dag)

    assert states(done) == {"collect": "failed"}
    assert world.query("SELECT count(*) FROM labels WHERE ticket_id > 4") == [(8,)]
    assert log.tells("cannot go on: ")


def test_a_run_that_no_operator_has_planned_is_left_alone(world: World, run: Run) -> None:
    folder = sent_by(run, "by_the_command", "ticket_id <= 4")
    for stored in (world.folder / "workspace" / folder).glob("handles/*.json"):
        stored.unlink()  # as the command line leaves it
    sent_by(run, "by_an_operator", "ticket_id > 4")
    with DAG("collects_ours", schedule=None) as dag:
        CollectLLMBatchOperator(task_id="collect", pending_for="labels")
    with DAG("collects_theirs", schedule=None) as theirs:
        CollectLLMBatchOperator(task_id="collect", run_folder=str(folder))

    with told() as log:
        assert states(run(dag)) == {"collect": "success"}

    assert world.query("SELECT count(*) FROM labels WHERE ticket_id > 4") == [(8,)]
    assert log.tells("was not planned by an operator")
    assert states(run(theirs)) == {"collect": "failed"}


def test_nothing_pending_is_a_success(world: World, run: Run) -> None:
    with DAG("none_pending", schedule=None) as dag:
        CollectLLMBatchOperator(task_id="collect", pending_for="labels")

    done = run(dag)

    assert states(done) == {"collect": "success"}
    assert xcom(done, "collect") == []


def test_submitting_tells_an_asset_the_handle(world: World, run: Run) -> None:
    with DAG("tells", schedule=None) as dag:
        submit(outlets=[Asset("x-batch://labels")])

    done = run(dag)

    (extra,) = asset_extras(done)
    assert extra["handle"] == xcom(done, "submit")


def test_a_sensor_waits_for_a_batch_that_somebody_else_submitted(world: World, run: Run) -> None:
    with DAG("somebody", schedule=None) as dag:
        submit()
    (batch_id,) = xcom(run(dag), "submit")["batch_ids"]
    with DAG("waits", schedule=None) as dag:
        LLMBatchSensor(
            task_id="wait", batch_ids=batch_id, model_id="anthropic:any", deferrable=True, poke_interval=0.1
        )

    assert states(run(dag)) == {"wait": "success"}


def test_a_sensor_wants_to_know_the_provider_of_batch_ids() -> None:
    with pytest.raises(InputError, match="model_id is missing"):
        LLMBatchSensor(task_id="wait", batch_ids=["a"])


@pytest.mark.parametrize("handle", [None, "a folder", {"run": "half of it"}])
def test_what_is_no_handle_is_refused_with_advice(handle: Any) -> None:
    with pytest.raises(InputError, match=r"Give what SubmitLLMBatchOperator returned"):
        RunHandle.from_json(handle)


def test_of_a_mere_plan_there_is_nothing_to_collect() -> None:
    with pytest.raises(InputError, match="plan_only is for LLMTransformOperator"):
        submit(plan_only=True)


def test_a_collector_wants_exactly_one_way_to_find_runs() -> None:
    with pytest.raises(InputError, match="Exactly one of handle, run_folder, pending_for"):
        CollectLLMBatchOperator(task_id="collect")
