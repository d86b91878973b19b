"""One real Airflow for all end-to-end tests, and what each of them does with it.

The intervals at which Airflow notices that something has died are short here, so that the tests are.
"""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import duckdb
import pytest

from airflow_batch_llm.demo.local_airflow import until
from tests.airflow.standalone import ROOT, Plan, Stack, running
from tests.e2e import driving
from tests.e2e.mail import Mailbox, mail_server

ROWS = 20
_DAGS = (
    ROOT / "dags" / "nightly_labels.py",
    ROOT / "dags" / "evening_and_morning.py",
    ROOT / "dags" / "file_watcher.py",
    ROOT / "dags" / "partitions.py",
    ROOT / "dags" / "approve_the_bill.py",
    ROOT / "dags" / "human_review.py",
    ROOT / "dags" / "complete_by_six.py",
    ROOT / "tests" / "e2e" / "dags" / "cases.py",
)
_SETTINGS = {
    "SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "15",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
    "TRIGGERER__JOB_HEARTBEAT_SEC": "2",
    "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "8",
}
_ENDED = ("success", "failed", "upstream_failed", "skipped")


@pytest.fixture(scope="session")
def mailbox() -> Iterator[Mailbox]:
    """The mails that Airflow sends."""
    with mail_server() as mailbox, pytest.MonkeyPatch.context() as patch:
        plain = {"disable_ssl": True, "disable_tls": True}
        sender = {"conn_type": "smtp", "host": "127.0.0.1", "port": mailbox.port, "extra": plain}
        patch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", json.dumps(sender))
        yield mailbox


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, mailbox: Mailbox) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("e2e")
    dags = folder / "dags"
    dags.mkdir()
    for path in _DAGS:
        shutil.copy(path, dags)
    with running(Plan(folder=folder, dags=dags, batch_seconds=8, settings=_SETTINGS)) as stack:
        stack.airflow.until_read(
            "one_task",
            "on_cron",
            "on_cron_too",
            "by_hand",
            "as_group",
            "nightly_labels",
            "evening_sends",
            "morning_collects",
            "file_watcher",
            "mood_of_day",
            "apologies_of_day",
            "approve_the_bill",
            "human_review",
            "complete_by_six",
        )
        for dag_id in ("one_task", "by_hand", "as_group"):
            stack.airflow.api.unpause(dag_id)
        yield stack


@pytest.fixture(autouse=True)
def forgotten(stack: Stack) -> None:
    """Reset the simulator."""
    stack.simulator.reset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One Dag run over its own table, and its spending."""

    stack: Stack
    dag_id: str
    run_id: str
    table: str

    # -- what Airflow says ---------------------------------------------------------------------------------------

    def task(self, task_id: str) -> dict[str, Any]:
        return self.stack.airflow.api.task(self.dag_id, self.run_id, task_id)

    def mapped(self, task_id: str) -> list[dict[str, Any]]:
        """The instances of a mapped task, by their index."""
        found = [task for task in self._tasks() if task["task_id"] == task_id and task["map_index"] >= 0]
        return sorted(found, key=lambda task: int(task["map_index"]))

    def until_state(self, task_id: str, state: str, try_number: int = 1) -> dict[str, Any]:
        """Wait until a task is in a state, on this try or a later one."""

        def look() -> dict[str, Any] | None:
            found = self.task(task_id)
            if found["state"] == state and found["try_number"] >= try_number:
                return found
            assert found["state"] not in _ENDED or found["try_number"] < try_number, self._log(found)
            return None

        return until(look, f"{task_id} of {self.run_id} to be {state}", 150)

    def until_watched(self, task_id: str, try_number: int = 1) -> dict[str, Any]:
        """Wait until a triggerer waits for the task."""

        def look() -> dict[str, Any] | None:
            found = self.task(task_id)
            watched = found["state"] == "deferred" and found["triggerer_job"] is not None
            return found if watched and found["try_number"] >= try_number else None

        return until(look, f"a triggerer to wait for {task_id} of {self.run_id}", 150)

    def until_success(self) -> None:
        def look() -> bool:
            state = driving.run_state(self.stack.airflow.api, self.dag_id, self.run_id)
            assert state != "failed", [self._log(task) for task in self._tasks()]
            return state == "success"

        until(look, f"the run {self.run_id} to succeed", 150)

    def log(self, task_id: str, try_number: int) -> str:
        return self.stack.airflow.api.log(self.dag_id, self.run_id, task_id, try_number)

    # -- what is done to it --------------------------------------------------------------------------------------

    def kill(self, task_id: str, *, whole: bool) -> None:
        """Kill the worker that runs the task, or only the process that it has started for the task."""
        for pid in self._pids(task_id) if whole else self._pids(task_id)[-1:]:
            os.kill(pid, signal.SIGKILL)

    def ask_to_end(self, task_id: str) -> None:
        """Ask the worker that runs the task to end, as the eviction of a pod does before it kills."""
        os.kill(self._pids(task_id)[0], signal.SIGTERM)

    def clear(self, task_id: str) -> None:
        driving.clear(self.stack.airflow.api, self.dag_id, self.run_id, task_id)

    def mark_failed(self, task_id: str) -> None:
        driving.set_task_state(self.stack.airflow.api, self.dag_id, self.run_id, task_id, "failed")

    def fail_run(self) -> None:
        driving.set_run_state(self.stack.airflow.api, self.dag_id, self.run_id, "failed")

    # -- what the provider says ----------------------------------------------------------------------------------

    @property
    def ledger(self) -> dict[str, Any]:
        return dict(self.stack.simulator.ledger()["openai"])

    def until_sent(self) -> str:
        """Wait until the provider has the batch. Its id is given."""
        return str(until(lambda: self.ledger["batches"], "a batch at the provider")[0])

    def finish(self) -> None:
        """Let the held batch end."""
        for batch_id in self.ledger["running"]:
            self.stack.simulator.finish(batch_id)

    def assert_paid_once(self, batches: int = 1) -> None:
        """Check that each row was bought and landed once, in this many batches without a cancelled one."""
        ledger = self.ledger
        assert ledger["rows"]["charged"] == ROWS
        assert len(ledger["batches"]) == batches
        assert ledger["running"] == []
        assert "cancel" not in ledger["calls"]
        landed = self.stack.ask(f"SELECT count(*), count(DISTINCT id) FROM {self.table}_labels")
        assert landed == [(ROWS, ROWS)]

    def assert_given_up(self) -> None:
        """Check that the batch was cancelled, since no task waits for it, and that nothing was bought."""
        until(lambda: not self.ledger["running"], "the batch to be cancelled")
        assert self.ledger["calls"]["cancel"] >= 1
        assert self.ledger["rows"]["charged"] == 0

    def _pids(self, task_id: str) -> list[int]:
        return until(lambda: driving.task_pids(self.task(task_id)["id"]), f"the process of {task_id}")

    def _tasks(self) -> list[dict[str, Any]]:
        return driving.tasks(self.stack.airflow.api, self.dag_id, self.run_id)

    def _log(self, task: dict[str, Any]) -> str:
        return f"{task['task_id']} is {task['state']}:\n" + self.log(task["task_id"], task["try_number"])


def _make_table(stack: Stack, table: str) -> None:
    with duckdb.connect(stack.duckdb) as connection:
        connection.execute(
            f"CREATE TABLE {table} AS SELECT i AS id, 'word ' || i AS text FROM range({ROWS}) AS numbers(i)"
        )


@pytest.fixture
def on_one_cron(stack: Stack) -> Iterator[list[Case]]:
    """The runs of two Dags that their cron has started at one minute, over one table."""
    dag_ids, table = ("on_cron", "on_cron_too"), "on_cron"
    _make_table(stack, table)
    api = stack.airflow.api
    for dag_id in dag_ids:
        api.unpause(dag_id)
    runs = until(lambda: _same_minute([api.run_ids(dag_id) for dag_id in dag_ids]), "the cron", 150)
    yield [
        Case(stack=stack, dag_id=dag_id, run_id=run_id, table=table)
        for dag_id, run_id in zip(dag_ids, runs, strict=True)
    ]
    for dag_id in dag_ids:
        driving.pause(api, dag_id)


def _same_minute(runs: list[list[str]]) -> list[str] | None:
    """A run of each Dag, named after the same minute."""
    for run_id in runs[0]:
        others = [next((one for one in ids if one[:27] == run_id[:27]), None) for ids in runs]
        if all(others):
            return [one for one in others if one is not None]
    return None


@pytest.fixture
def begin(stack: Stack, request: pytest.FixtureRequest) -> Any:
    """Begin a Dag run over a new table."""

    def begin(dag_id: str, suffix: str = "") -> Case:
        name = f"{request.node.name}{suffix}"
        table = "".join(letter if letter.isalnum() else "_" for letter in name)
        _make_table(stack, table)
        run_id = stack.airflow.api.trigger(dag_id, {"table": table})
        return Case(stack=stack, dag_id=dag_id, run_id=run_id, table=table)

    return begin
