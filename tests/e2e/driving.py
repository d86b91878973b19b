"""Do to a running Airflow what people and machines do to it: clear, fail and pause by its API, and kill by process id."""

from collections.abc import Iterator
from pathlib import Path
from signal import Signals
from time import sleep
from typing import Any

from airflow_batch_llm.demo.local_airflow import AirflowApi, LocalAirflow, run_path, until

#: A scheduler that sees the answer before it has seen the question makes the task retry. No person is that fast.
_SCHEDULER_NOTICES_SECONDS = 5.0


def pause(api: AirflowApi, dag_id: str) -> None:
    api.call("PATCH", f"/api/v2/dags/{dag_id}", {"is_paused": True})


def run_state(api: AirflowApi, dag_id: str, run_id: str) -> str:
    """Return the state of a Dag run."""
    return str(api.call("GET", run_path(dag_id, run_id))["state"])


def set_run_state(api: AirflowApi, dag_id: str, run_id: str, state: str) -> None:
    api.call("PATCH", run_path(dag_id, run_id), {"state": state})


def tasks(api: AirflowApi, dag_id: str, run_id: str) -> list[dict[str, Any]]:
    """Return the task instances of a Dag run, one for each map index."""
    return list(api.call("GET", f"{run_path(dag_id, run_id)}/taskInstances?limit=100")["task_instances"])


def set_task_state(api: AirflowApi, dag_id: str, run_id: str, task_id: str, state: str) -> None:
    api.call("PATCH", f"{run_path(dag_id, run_id)}/taskInstances/{task_id}", {"new_state": state})


def answer_request(api: AirflowApi, dag_id: str, run_id: str, task_id: str, option: str) -> str:
    """Choose an option of a task that asks a person, once it waits. Returns what it asks."""
    path = f"{run_path(dag_id, run_id)}/taskInstances/{task_id}/-1/hitlDetails"
    until(lambda: _waits_for_person(api.task(dag_id, run_id, task_id)), f"{task_id} to ask", 150)
    sleep(_SCHEDULER_NOTICES_SECONDS)
    asked = api.call("GET", path)["subject"]
    api.call("PATCH", path, {"chosen_options": [option], "params_input": {}})
    return str(asked)


def _waits_for_person(task: dict[str, Any]) -> bool:
    assert task["state"] not in ("failed", "skipped", "upstream_failed"), task["state"]
    return task["state"] in ("awaiting_input", "deferred")  # deferred: Airflow 3.1 and 3.2


def clear(api: AirflowApi, dag_id: str, run_id: str, task_id: str) -> None:
    """Clear a task and those after it, as the button in the UI does."""
    body = {
        "dry_run": False,
        "dag_run_id": run_id,
        "task_ids": [task_id],
        "only_failed": False,
        "include_downstream": True,
    }
    api.call("POST", f"/api/v2/dags/{dag_id}/clearTaskInstances", body)


def restart(airflow: LocalAirflow, component: str, number: Signals) -> None:
    """End a component, and all that it has started, by a signal, and start it again."""
    end(airflow, component, number)
    airflow.services[component].start()


def end(airflow: LocalAirflow, component: str, number: Signals) -> None:
    """End a component, and all that it has started, by a signal."""
    airflow.services[component].signal(number)
    airflow.services[component].reap()


def task_pids(task_instance_id: str) -> list[int]:
    """Return the processes that run a task: the executor's worker first, then the one that it has started for the task."""
    found = [(title, pid) for pid, title in _titles() if task_instance_id in title]
    workers = [(title, pid) for title, pid in found if title.startswith("airflow worker")]
    return [pid for _, pid in sorted(workers, key=lambda each: "LocalExecutor" not in each[0])]


def _titles() -> Iterator[tuple[int, str]]:
    """Yield all processes with their titles, on Linux."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended meanwhile
            continue
        yield int(folder.name), title
