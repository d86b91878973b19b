"""The stage as a group of tasks: mapped ones share the work, and the last one says how it went."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from airflow.sdk import DAG, Asset

from airflow_batch_llm.core.settings import Pace
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.operators.llm_transform_group import llm_transform_group
from tests.edge.conftest import TICKETS, World
from tests.edge.dag_runs import asset_extras, failures, states, xcom
from tests.edge.tasks import arguments

Run = Callable[..., Any]


def group(**changes: Any) -> Any:
    return llm_transform_group(
        "labels",
        **arguments(**{"task_id": ..., "pace": Pace(rows_per_batch=2, poll_interval=0.1), **changes}),
    )


@pytest.mark.parametrize("deferrable", [True, False])
def test_a_table_is_labelled_by_several_tasks(world: World, run: Run, deferrable: bool) -> None:
    with DAG(f"spread_{deferrable}".lower(), schedule=None) as dag:
        group(
            max_workers=3,
            pace=Pace(rows_per_batch=2, max_active_batches=4, poll_interval=0.1),
            deferrable=deferrable,
            outlets=[Asset("x-table://labels")],
        )

    done = run(dag)

    mapped = [f"labels.{name}[{index}]" for name in ("submit", "collect") for index in range(3)]
    single = ["labels.plan", "labels.drive", "labels.finish"]
    assert states(done) == dict.fromkeys([*mapped, *single], "success")
    assert world.query("SELECT count(*) FROM labels") == [(len(TICKETS),)]
    assert world.rows_charged() == len(TICKETS)
    report = xcom(done, "labels.finish")
    assert len(report["batches"]) == 6
    assert [extra["report"] for extra in asset_extras(done)] == [report]


def test_a_row_that_failed_is_asked_again_by_the_finish(world: World, run: Run) -> None:
    world.simulator.fault(provider="anthropic", kind="errored", rows=[0])
    with DAG("spread_rounds", schedule=None) as dag:
        group(max_workers=2)

    done = run(dag)

    assert xcom(done, "labels.finish")["outcomes"] == {"succeeded": len(TICKETS)}
    assert world.query("SELECT count(*) FROM labels") == [(len(TICKETS),)]


def test_where_nothing_is_to_be_sent_every_task_ends_well(world: World, run: Run) -> None:
    with DAG("spread_twice", schedule=None) as dag:
        group()
    run(dag)

    done = run(dag)

    assert set(states(done).values()) == {"success"}
    assert xcom(done, "labels.finish")["outcomes"] == {}
    assert world.rows_charged() == len(TICKETS)


@pytest.mark.parametrize("member", ["submit", "drive", "collect"])
def test_what_a_failed_task_left_undone_is_done_and_the_group_fails_all_the_same(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch, member: str
) -> None:
    with DAG(f"spread_failing_{member}", schedule=None) as dag:
        made = group(max_workers=2, deferrable=True)
    task = made.children[f"labels.{member}"]
    if member == "drive":
        task.handle = {"run": "no handle"}
    else:
        task.partial_kwargs["handle"] = {"run": "no handle"}

    done = run(dag)

    assert states(done)["labels.finish"] == "failed"
    assert world.query("SELECT count(*) FROM labels") == [(len(TICKETS),)]
    assert world.rows_charged() == len(TICKETS)
    assert xcom(done, "labels.finish", "report")["outcomes"] == {"succeeded": len(TICKETS)}


def test_without_a_plan_nothing_runs(world: World, run: Run) -> None:
    with DAG("spread_unplanned", schedule=None) as dag:
        group(source_table="no_such_table")

    done = run(dag)

    assert states(done)["labels.plan"] == "failed"
    assert {state for name, state in states(done).items() if name != "labels.plan"} == {"upstream_failed"}


def test_arguments_of_every_operator_go_to_all_tasks_and_assets_to_the_last() -> None:
    with DAG("spread_arguments", schedule=None) as dag:
        group(retries=7, pool="llm", outlets=[Asset("x-table://labels")])

    assert {task.retries for task in dag.tasks} == {7}
    assert {task.pool for task in dag.tasks} == {"llm"}
    assert [task.task_id for task in dag.tasks if task.outlets] == ["labels.finish"]


def test_the_group_begins_as_it_is_told_and_only_its_end_tells_of_it() -> None:
    with DAG("spread_ends", schedule=None) as dag:
        group(trigger_rule="none_failed", do_xcom_push=False)

    assert {task.task_id for task in dag.tasks if task.trigger_rule == "none_failed"} == {"labels.plan"}
    assert not dag.get_task("labels.finish").do_xcom_push
    assert dag.get_task("labels.plan").do_xcom_push


def test_each_task_leaves_its_batches_to_those_after_it() -> None:
    with DAG("spread_heirs", schedule=None) as dag:
        group()

    drive, finish = "labels.drive", "labels.finish"
    assert dag.get_task("labels.plan").successors == [drive, finish]
    assert dag.get_task("labels.submit").partial_kwargs["successors"] == [drive, finish]
    assert dag.get_task("labels.collect").partial_kwargs["successors"] == [finish]
    assert dag.get_task(drive).successors == [finish]
    assert dag.get_task(finish).successors == ()


def test_mapped_tasks_are_named_after_their_shards(world: World, run: Run) -> None:
    with DAG("spread_names", schedule=None) as dag:
        group(max_workers=2)

    done = run(dag)

    names = {index: done.get_task_instance("labels.submit", map_index=index) for index in range(2)}
    assert {index: ti.rendered_map_index for index, ti in names.items()} == {
        0: "shards 1 to 3",
        1: "shards 4 to 6",
    }


def test_the_same_run_again_spends_nothing_and_a_cleared_one_asks_about_what_has_changed(
    world: World, run: Run
) -> None:
    with DAG("spread_cleared", schedule=None) as dag:
        group(max_workers=2, deferrable=True)
    again = dict.fromkeys(["logical_date", "run_after"], datetime(2026, 11, 20, tzinfo=UTC))
    first = xcom(run(dag, **again), "labels.finish")
    world.execute("UPDATE tickets SET body = 'The app is slow' WHERE ticket_id = 7")

    assert xcom(run(dag, **again), "labels.finish") == first
    for task in dag.tasks:
        task.retries += 1  # Airflow raises `max_tries` of what is cleared
    cleared = xcom(run(dag, **again), "labels.finish")

    assert cleared["why"] == {"answered": len(TICKETS) - 1, "changed": 1}
    assert world.rows_charged() == len(TICKETS) + 1


@pytest.mark.parametrize(("with_plan", "changed_rows"), [(True, 1), (False, 0)])
def test_a_cleared_group_finishes_its_run_and_reads_the_source_again_if_its_plan_was_cleared(
    world: World, run: Run, with_plan: bool, changed_rows: int
) -> None:
    with DAG(f"spread_unfinished_{with_plan}".lower(), schedule=None) as dag:
        made = group(max_workers=2, deferrable=True)
    again = dict.fromkeys(["logical_date", "run_after"], datetime(2026, 11, 20, tzinfo=UTC))
    finish = made.children["labels.finish"]
    handle, finish.handle = finish.handle, {"run": "no handle"}
    assert states(run(dag, **again))["labels.finish"] == "failed"
    assert world.query("SELECT count(*) FROM labels") == [(0,)]
    world.execute("UPDATE tickets SET body = 'The app is slow' WHERE ticket_id = 7")

    finish.handle = handle
    for task in dag.tasks:
        if with_plan or task.task_id != "labels.plan":
            task.retries += 1  # Airflow raises `max_tries` of what is cleared
    done = run(dag, **again)

    assert set(states(done).values()) == {"success"}
    assert world.query("SELECT count(*) FROM labels") == [(len(TICKETS),)]
    assert world.rows_charged() == len(TICKETS) + changed_rows


def test_a_mere_plan_is_for_the_operator() -> None:
    with DAG("spread_plan_only", schedule=None), pytest.raises(InputError, match="LLMTransformOperator"):
        group(plan_only=True)


def test_somebody_has_to_send() -> None:
    with DAG("spread_by_none", schedule=None), pytest.raises(InputError, match="max_workers is 0"):
        group(max_workers=0)


def test_a_table_that_several_tasks_read_is_planned_as_by_one(world: World, run: Run) -> None:
    with DAG("spread_ranges", schedule=None) as dag:
        group(prompt="{{ body }}", plan_partitions=3, deferrable=True)

    done = run(dag)

    assert [states(done)[f"labels.read[{index}]"] for index in range(3)] == ["success"] * 3
    assert set(states(done).values()) == {"success"}
    assert xcom(done, "labels.open") == [{"number": number} for number in range(3)]
    assert xcom(done, "labels.finish")["why"] == {"new": len(TICKETS)}
    assert world.query("SELECT count(*) FROM labels") == [(len(TICKETS),)]
    assert world.rows_charged() == 2  # equal texts are asked once, also across partitions
    assert list((world.folder / "workspace").rglob("opening.json")) == []  # gone once it is planned


def test_files_are_shared_out_among_the_tasks_that_read(world: World, run: Run) -> None:
    """A column that not all files have is one of all partitions."""
    for number, columns in enumerate(["*, 'ann' AS author", "*", "*", "*"]):
        world.execute(
            f"COPY (SELECT {columns} FROM tickets WHERE ticket_id % 4 = {number})"
            f" TO '{world.folder}/{number}.parquet' (FORMAT parquet)"
        )
    with DAG("spread_files", schedule=None) as dag:
        group(
            source_table=...,
            source_conn_id=...,
            source_uri=f"{world.folder}/*.parquet",
            target_conn_id="warehouse",
            prompt="{{ body }} {{ author }}",
            plan_partitions=3,
        )

    done = run(dag)

    assert set(states(done).values()) == {"success"}
    assert len(xcom(done, "labels.open")) == 3
    assert xcom(done, "labels.finish")["outcomes"] == {"succeeded": len(TICKETS)}
    assert world.rows_charged() == 3  # one of the two texts has an author, too


def test_a_reading_that_fails_leaves_the_run_unplanned(world: World, run: Run) -> None:
    world.execute("UPDATE tickets SET ticket_id = NULL WHERE ticket_id = 5")
    with DAG("spread_unread", schedule=None) as dag:
        group(plan_partitions=2)

    with failures() as failed:
        done = run(dag)

    assert "is NULL in some rows of the source." in str(failed[0])
    assert str(failed[0]).endswith("Then clear the group from open, which reads it again.")
    assert [states(done)[f"labels.read[{index}]"] for index in range(2)] == ["failed", "success"]
    assert states(done)["labels.plan"] == states(done)["labels.finish"] == "upstream_failed"
    assert world.rows_charged() == 0


def test_only_what_can_be_divided_is_and_the_first_task_takes_the_trigger_rule() -> None:
    with DAG("spread_undivided", schedule=None):
        for changes, told in (
            ({"source_table": ..., "source_sql": "SELECT 1"}, "plan_partitions=2 divides a source_table"),
            ({"plan_partitions": 0}, "plan_partitions is 0, and must be a number of tasks"),
            ({"plan_partitions": 1025}, "plan_partitions is 1025, and Airflow makes 1024 mapped tasks"),
            ({"max_workers": 1025}, "max_workers is 1025, and Airflow makes 1024 mapped tasks"),
        ):
            with pytest.raises(InputError, match=told):
                group(**{"plan_partitions": 2, **changes})
    with DAG("spread_divided", schedule=None) as dag:
        group(plan_partitions=2, trigger_rule="none_failed", retries=7, cancel_on_kill=False, pool="llm")

    assert {task.task_id for task in dag.tasks if task.trigger_rule == "none_failed"} == {"labels.open"}
    assert {(task.retries, task.pool) for task in dag.tasks} == {(7, "llm")}
