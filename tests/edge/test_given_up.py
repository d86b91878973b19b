"""A task that a user marks between its trigger's event and its worker's start, when it has no process."""

from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import TaskStatesResult

from tests.edge.conftest import World
from tests.edge.logs import told
from tests.edge.tasks import transform


class AirflowWithRuns:
    """Answers about the states of one task, by Dag run. A run that is not there has no state."""

    def __init__(self, **states: str | None) -> None:
        self._states = states

    def send(self, message: Any) -> TaskStatesResult:
        known = {run: {"label": self._states[run]} for run in message.run_ids if run in self._states}
        return TaskStatesResult(task_states=known)


def start(run: str, **changes: Any) -> None:
    """Run the task of one Dag run until it defers."""
    ti = SimpleNamespace(dag_id="dag", run_id=run, task_id="label", map_index=-1, max_tries=0)
    task = transform(deferrable=True, **changes)
    with pytest.raises(TaskDeferred):
        task.execute({"ti": ti, "run_id": run, "task": task})


def cancelled(world: World) -> int:
    return int(world.simulator.ledger()["anthropic"]["calls"].get("cancel", 0))


@pytest.fixture
def monday(world: World) -> World:
    """A run whose batch is running, and whose task has deferred. A new ticket came after it."""
    world.simulator.fault(provider="anthropic", kind="hold", times=None)
    start("monday")
    world.execute("INSERT INTO tickets VALUES (13, 'new', 'new')")
    return world


@pytest.mark.parametrize("state", ["failed", "success", "skipped", "removed"])
def test_the_next_run_on_the_target_cancels_its_batches_and_counts_them(
    monday: World, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    comms = AirflowWithRuns(monday=state, tuesday="running")
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", comms, raising=False)

    with told() as log:
        start("tuesday")
        monday.execute("INSERT INTO tickets VALUES (14, 'newer', 'newer')")
        start("wednesday")

    assert cancelled(monday) == 1
    assert log.tells("The task of the run dag/label/monday/g1 was ended while no process held it: 1 batch is")
    assert log.tells("0 of 12 requests had been processed")


@pytest.mark.parametrize("state", ["deferred", "scheduled", "queued", "running", "up_for_retry", None])
def test_a_run_that_somebody_waits_for_is_left_alone(
    monday: World, monkeypatch: pytest.MonkeyPatch, state: str | None
) -> None:
    comms = AirflowWithRuns(monday=state, tuesday="running")
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", comms, raising=False)

    start("tuesday")

    assert cancelled(monday) == 0


def test_a_run_that_this_airflow_does_not_know_is_left_alone(
    monday: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", AirflowWithRuns(), raising=False)

    start("tuesday")

    assert cancelled(monday) == 0


def test_cancel_on_kill_switches_it_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", AirflowWithRuns(monday="failed"), raising=False)
    world.simulator.fault(provider="anthropic", kind="hold", times=None)
    start("monday", cancel_on_kill=False)
    world.execute("INSERT INTO tickets VALUES (13, 'new', 'new')")

    start("tuesday")

    assert cancelled(world) == 0


def test_what_a_task_leaves_that_failed_by_itself_is_kept_for_its_clear(
    monday: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", AirflowWithRuns(monday="failed"), raising=False)
    ti = SimpleNamespace(dag_id="dag", run_id="monday", task_id="label", map_index=-1, max_tries=0)
    failing = transform(deferrable=True, target_conn_id="nowhere")
    with pytest.raises(Exception, match="nowhere"):
        failing.look({"ti": ti, "run_id": "monday"})

    start("tuesday")
    assert cancelled(monday) == 0

    start("monday")  # a later try comes back and waits
    monday.execute("INSERT INTO tickets VALUES (14, 'newer', 'newer')")
    start("wednesday")
    assert cancelled(monday) == 1


def test_a_retry_of_a_resume_that_never_ran_buys_nothing(monday: World) -> None:
    """Airflow fails a try before any code of the task runs if it takes the task for running already."""
    start("monday")
    start("monday")

    assert len(monday.simulator.ledger()["anthropic"]["batches"]) == 1
