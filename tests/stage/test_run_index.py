"""The index of runs: what its names tell, without a read of any record."""

from datetime import timedelta

from airflow_batch_llm.core.journal import Doer
from airflow_batch_llm.stage.records.run_index import RunIndex, RunState, index_name
from airflow_batch_llm.stage.run import Pause
from tests.stage.world import Bench

LONG = "ein_Dag_mit_Umlaut_ä" + "x" * 200


def test_names_alone_tell_the_dag_the_state_and_the_dollars(openai: Bench) -> None:
    openai.world.make_tickets(5)
    done = openai.complete(
        "long/label/night", parts={"by": Doer(host="worker", dag_id=LONG, task_id="label", run_id="night")}
    )
    index = RunIndex(workspace=openai.world.workspace())
    (day,) = index.days()
    (listed,) = index.runs([day])
    (record,) = index.read([listed]).values()
    for file in (openai.world.folder / "workspace" / ".registers" / "runs").rglob("*.json"):
        file.write_text("no record")

    assert index.runs([day]) == [listed]
    assert (listed.dag, listed.state, listed.rows) == (index_name(LONG), RunState.PASSED, 5)
    assert listed.usd == round(done.report.spent.cost, 6) > 0
    assert (record.dag_id, record.task_id, record.run_id) == (LONG, "label", "night")
    assert record.usd == done.report.spent.cost


def test_a_clear_gives_a_run_more_time_and_no_second_line(openai: Bench) -> None:
    openai.world.make_tickets(5)
    openai.fault(kind="hold")
    assert isinstance(openai.advance(timeout=timedelta(hours=1)), Pause)
    index = RunIndex(workspace=openai.world.workspace())
    (before,) = index.runs(index.days())
    openai.world.sleep(7200)
    assert isinstance(openai.advance(max_tries=1, timeout=timedelta(hours=1)), Pause)
    (after,) = index.runs(index.days())

    now = openai.world.clock()
    assert (before.is_late(now), after.is_late(now)) == (True, False)
    assert (before.started, before.state) == (after.started, RunState.BEGUN)


def test_deployments_are_listed_apart(openai: Bench) -> None:
    openai.world.make_tickets(5)
    openai.complete("deployment=a/dag/task/run", parts={"deployment": "a"})
    index = RunIndex(workspace=openai.world.workspace())
    days = index.days("a")

    assert [run.state for run in index.runs(days, "a")] == [RunState.PASSED]
    assert [run.state for run in index.runs(days)] == [RunState.PASSED]
    assert index.days("") == index.runs(days, "") == []
