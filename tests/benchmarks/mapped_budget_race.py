"""Let 20 mapped tasks in a real Airflow and a command race for a budget of ten runs, and kill them with SIGKILL.

Each run has a table of its own; all share a workspace. A process is killed when its dollars are held and its batch is not
created yet, every other time with the worker that it belongs to; Airflow tries the task again, and the command is started
again. Run by `python -m tests.benchmarks.mapped_budget_race`; arguments: the number of tasks, and how many runs are killed.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb

from airflow_batch_llm.demo.command import connections
from airflow_batch_llm.demo.local_airflow import AirflowApi, LocalAirflow, Setup
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.stage.budgets import budget_books
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.store import Workspace
from tests.benchmarks.budget_race import BUDGETS, PRICES, ROWS, budgets, shown, start, write_spec
from tests.e2e.driving import task_pids, tasks

DAG_ID, TASK_ID = "race", "label"
_DAG = f"""
from datetime import timedelta

from airflow.sdk import DAG

from airflow_batch_llm.operators.llm_transform import LLMTransformOperator

with DAG("{DAG_ID}", schedule=None, max_active_tasks=100):
    LLMTransformOperator.partial(
        task_id="{TASK_ID}",
        source_conn_id="warehouse",
        key="id",
        prompt="{{{{ body }}}}",
        output_type=["billing", "bug", "other"],
        model_id="openai:gpt-5-mini",
        max_cost_usd=float("inf"),
        budget="support",
        guards={{"prices": {{"gpt-5-mini": {PRICES}}}, "min_success_ratio": 0}},
        pace={{"poll_interval": 1.0}},
        deferrable=True,
        retries=5,
        retry_delay=timedelta(seconds=1),
    ).expand_kwargs(
        [{{"source_table": f"tickets_{{n}}", "target": f"labels_{{n}}"}} for n in range(TASKS)]
    )
"""
_SETTINGS = {
    "CORE__PARALLELISM": "6",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "15",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
}
#: The upload takes so long: time for a look at the book, and for a kill before the batch is created.
_UPLOAD_SECONDS = 4.0
_MOST_SECONDS = 1500.0
_ENDED = ("success", "failed")


@dataclass(slots=True, kw_only=True)
class Race:
    """The running processes, and the observations so far."""

    api: AirflowApi
    run_id: str
    workspace: Workspace
    command: "subprocess.Popen[str]"
    start_command: Any
    kills_left: int
    killed: list[str] = field(default_factory=list)
    """The runs that were killed between their reservation and their batch."""
    workers: int = 0
    """Kills that also killed the worker."""
    most: float = 0.0
    """The most dollars that were spent and held at one moment."""

    def look(self) -> bool:
        """Look at the book, kill processes that only hold dollars, and return whether all runs have ended."""
        for book in budget_books(self.workspace):
            state = book.state(None)
            self.most = max(self.most, state.spent + state.held)
            for run in state.holds:
                if self.kills_left > 0 and run not in self.killed and not self._is_submitted(run):
                    self._kill(run)
        states = [task["state"] for task in self._mapped()]
        return self.command.poll() is not None and bool(states) and all(one in _ENDED for one in states)

    def _kill(self, run: str) -> None:
        if run.startswith("runs/"):
            self.command.kill()
            self.command.wait()
            self.command = self.start_command()
        elif not (pids := self._pids(run)):
            return
        else:
            whole = len(self.killed) % 2 == 0
            self.workers += whole
            for pid in pids if whole else pids[-1:]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        assert not self._is_submitted(run), "it was killed before its batch was created"
        self.kills_left -= 1
        self.killed.append(run)

    def _is_submitted(self, run: str) -> bool:
        path, _, generation = run.rpartition("/g")
        folder = RunFolder(workspace=self.workspace, run=path, generation=int(generation))
        return any(entry.batch_id for entry in folder.journal(1))

    def _pids(self, run: str) -> list[int]:
        """Return the processes of the mapped task that drives a run. Empty if no process runs it now."""
        base, item = run.rpartition("/g")[0].rsplit("/", 1)
        for name in self.workspace.names(f"{base}/items"):
            if self.workspace.read(f"{base}/items/{name}") == item.encode():
                index = int(name.split("-")[0])
                return next((task_pids(one["id"]) for one in self._mapped() if one["map_index"] == index), [])
        return []

    def _mapped(self) -> list[dict[str, Any]]:
        return [task for task in tasks(self.api, DAG_ID, self.run_id) if task["map_index"] >= 0]

    def refused(self) -> int:
        """Return how many tasks have failed, each because of the budget."""
        failed = [task for task in self._mapped() if task["state"] == "failed"]
        for task in failed:
            path = f"/api/v2/dags/{DAG_ID}/dagRuns/{self.run_id}/taskInstances/{TASK_ID}/logs/{task['try_number']}"
            log = str(self.api.call("GET", f"{path.replace('+', '%2B')}?map_index={task['map_index']}"))
            assert "above the budget support" in log, log[-3000:]
        return len(failed)


@contextmanager
def _airflow(folder: Path, simulator: Simulator, limit: float, count: int) -> Iterator[LocalAirflow]:
    dags, path = folder / "dags", folder / "warehouse.duckdb"
    dags.mkdir()
    (dags / "race.py").write_text(_DAG.replace("TASKS", str(count)))
    with duckdb.connect(str(path)) as connection:
        for number in range(count):
            made = f"SELECT i AS id, 'ticket {number} ' || i AS body FROM range({ROWS}) t(i)"
            connection.execute(f"CREATE TABLE tickets_{number} AS {made}")
    settings = {
        **_SETTINGS,
        "BATCH_LLM__WORKSPACE": str(folder / "workspace"),
        "BATCH_LLM__BUDGETS": budgets(limit),
    }
    setup = Setup(
        home=folder / "airflow", dags=dags, connections=connections(simulator.url, path), settings=settings
    )
    with LocalAirflow(setup) as airflow:
        airflow.until_read(DAG_ID)
        airflow.api.unpause(DAG_ID)
        yield airflow


def main(count: int, kills: int) -> None:
    """Race, kill, and print the budget's state."""
    began = time.monotonic()
    with TemporaryDirectory() as name, Simulator(batch_seconds=1.0) as simulator:
        folder = Path(name)
        spec = write_spec(folder, count, simulator.openai_url)
        environment = {**os.environ, "A_KEY": "any", BUDGETS: budgets(1e9)}
        price = shown("estimate", str(spec), environment=environment)["estimate"]["usd"]
        limit = 10.01 * price
        environment[BUDGETS] = budgets(limit)
        simulator.fault(
            provider="openai", kind="delay", endpoint="upload", seconds=_UPLOAD_SECONDS, times=None
        )
        with _airflow(folder, simulator, limit, count) as airflow:
            race = Race(
                api=airflow.api,
                run_id=airflow.api.trigger(DAG_ID),
                workspace=Workspace.open(str(folder / "workspace")),
                command=start(spec, environment),
                start_command=lambda: start(spec, environment),
                kills_left=kills,
            )
            while not race.look():
                assert time.monotonic() - began < _MOST_SECONDS, "the race does not end"
                time.sleep(0.2)
            refused = race.refused() + _command_refused(race.command)
        (book,) = shown("budget", str(folder / "workspace"), environment=environment)
        ledger = simulator.ledger()["openai"]
        bill = (ledger["tokens"]["input"] + ledger["tokens"]["output"]) * 0.005
        done = count + 1 - refused
        print(
            f"{count} mapped tasks and a command, {time.monotonic() - began:.0f} s: {done} done, {refused} refused"
        )
        print(
            f"killed while they only held dollars: {len(race.killed)}, {race.workers} of them with their worker"
        )
        print(
            f"budget ${limit:.4f}, spent ${book['spent_usd']:.4f}, bill ${bill:.4f}, held {book['holds']},"
            f" spent and held at most ${race.most:.4f}"
        )
        assert race.most <= limit + 1e-6
        assert abs(book["spent_usd"] - bill) < 0.005
        assert book["holds"] == []
        assert (done >= 10, refused > 0, len(race.killed)) == (True, True, kills)
        assert ledger["rows"]["charged"] == done * ROWS
        assert ledger["duplicates"]["surplus_charges"] == 0


def _command_refused(command: "subprocess.Popen[str]") -> int:
    told = (command.stderr.read() if command.stderr else "").strip().splitlines()
    assert command.returncode == 0 or "above the budget support" in told[-1], told[-3:]
    return int(command.returncode != 0)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20, int(sys.argv[2]) if len(sys.argv) > 2 else 8)
