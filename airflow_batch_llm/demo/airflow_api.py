"""Airflow's REST API, as far as one drives Dag runs with it. Only the standard library is imported."""

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_ANSWER_SECONDS = 30.0
_LOOK_SECONDS = 0.25


class AirflowApi:
    """An Airflow that lets everybody in, on loopback."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._token: str | None = None

    # -- Dags and their runs -------------------------------------------------------------------------------------

    def health(self) -> dict[str, str]:
        """The status of each component, and nothing while Airflow does not answer."""
        try:
            return {name: part["status"] for name, part in self.call("GET", "/api/v2/monitor/health").items()}
        except (OSError, ValueError):
            return {}

    def dag_ids(self) -> set[str]:
        """The Dags that Airflow has read."""
        return {dag["dag_id"] for dag in self.call("GET", "/api/v2/dags?limit=100")["dags"]}

    def import_errors(self) -> dict[str, str]:
        """The files that could not be read, and why."""
        found = self.call("GET", "/api/v2/importErrors")["import_errors"]
        return {error["filename"]: error["stack_trace"] for error in found}

    def unpause(self, dag_id: str) -> None:
        self.call("PATCH", f"/api/v2/dags/{dag_id}", {"is_paused": False})

    def trigger(
        self, dag_id: str, conf: dict[str, Any] | None = None, logical_date: str | None = None
    ) -> str:
        """Start a Dag run. Its id is given."""
        body = {"logical_date": logical_date, "conf": conf or {}}
        return str(self.call("POST", f"/api/v2/dags/{dag_id}/dagRuns", body)["dag_run_id"])

    def run_ids(self, dag_id: str) -> list[str]:
        found = self.call("GET", f"/api/v2/dags/{dag_id}/dagRuns?order_by=run_after&limit=100")["dag_runs"]
        return [run["dag_run_id"] for run in found]

    # -- tasks ---------------------------------------------------------------------------------------------------

    def task(self, dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
        return self.call("GET", f"{run_path(dag_id, run_id)}/taskInstances/{task_id}")  # type: ignore[no-any-return]

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        path = f"{run_path(dag_id, run_id)}/taskInstances/{task_id}/xcomEntries/{key}?deserialize=true"
        return self.call("GET", path)["value"]

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1) -> str:
        """Return the log of a try, one line per event."""
        path = f"{run_path(dag_id, run_id)}/taskInstances/{task_id}/logs/{try_number}?full_content=true"
        content = self.call("GET", path)["content"]
        return "\n".join(json.dumps(line) if isinstance(line, dict) else str(line) for line in content)

    def link(self, dag_id: str, run_id: str, task_id: str, name: str) -> str | None:
        """Return the address of an operator's link, or None if the task has not made it yet."""
        links = self.call("GET", f"{run_path(dag_id, run_id)}/taskInstances/{task_id}/links")["extra_links"]
        found: str | None = links.get(name)
        return found

    # -- calls ---------------------------------------------------------------------------------------------------

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Call one route of the API. Raises ValueError with what it refuses."""
        if path != "/api/v2/monitor/health":
            self._sign_in()
        return self._send(method, path, body)

    def page(self, path: str) -> str:
        """Return the HTML of a page below Airflow's own address. Raises ValueError with what is refused."""
        self._sign_in()
        return self._read("GET", path, None).decode()

    def _sign_in(self) -> None:
        if self._token is None:
            self._token = self._send("GET", "/auth/token", None)["access_token"]

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        return json.loads(self._read(method, path, body) or b"null")

    def _read(self, method: str, path: str, body: dict[str, Any] | None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(self.url + path, data=data, method=method, headers=headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:  # noqa: S310
                read: bytes = answer.read()
                return read
        except urllib.error.HTTPError as error:
            raise ValueError(
                f"{method} {path}: {error.code} {error.read().decode(errors='replace')}"
            ) from None


def until(look: Callable[[], T | None], what: str, seconds: float = 120.0) -> T:
    """Call `look` until it returns something. Raises TimeoutError that names `what` was waited for."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(_LOOK_SECONDS)
    raise TimeoutError(f"Waited {seconds:.0f} s in vain: {what}.")


def run_path(dag_id: str, run_id: str) -> str:
    """Return the route of a Dag run."""
    return f"/api/v2/dags/{dag_id}/dagRuns/{urllib.parse.quote(run_id)}"
