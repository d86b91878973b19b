"""A real Airflow on loopback, as four processes over an SQLite file: API server, scheduler, Dag processor, triggerer.

It is started in its parts, not by `airflow standalone`, so that nothing listens beyond loopback and each part can be
stopped, killed and started again by its process id.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any, Self, TypeVar

T = TypeVar("T")

_ANSWER_SECONDS = 30.0
_ASK_SECONDS = 0.25


class AirflowApi:
    """An Airflow that lets everybody in, on loopback."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._token: str | None = None

    # -- Dags and their runs -------------------------------------------------------------------------------------

    def health(self) -> dict[str, str]:
        """Return the status of each component, and nothing while Airflow does not answer."""
        try:
            return {name: part["status"] for name, part in self.call("GET", "/api/v2/monitor/health").items()}
        except (OSError, ValueError):
            return {}

    def dag_ids(self) -> set[str]:
        """Return the Dags that Airflow has read."""
        return {dag["dag_id"] for dag in self.call("GET", "/api/v2/dags?limit=100")["dags"]}

    def import_errors(self) -> dict[str, str]:
        """Return the files that could not be read, and why."""
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
        time.sleep(_ASK_SECONDS)
    raise TimeoutError(f"Waited {seconds:.0f} s in vain: {what}.")


def run_path(dag_id: str, run_id: str) -> str:
    """Return the route of a Dag run."""
    return f"/api/v2/dags/{dag_id}/dagRuns/{urllib.parse.quote(run_id)}"


_STOP_SECONDS = 20.0
_LOOK_SECONDS = 0.05


class Service:
    """One process that runs until it is stopped, and what it says, in a file."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], output: Path) -> None:
        self._command = list(command)
        self._env = dict(env)
        self.output = output
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "it has been started"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        self.output.parent.mkdir(parents=True, exist_ok=True)
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - the command is ours
                self._command,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and to all that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def reap(self) -> int:
        """Wait until the process is gone; at once if that takes too long. Its exit code is given."""
        assert self._process is not None, "it has been started"
        try:
            return self._process.wait(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            return self._process.wait()

    def tail(self, lines: int = 30) -> str:
        """Return the last of what the process has said."""
        return "\n".join(self.output.read_text(errors="replace").splitlines()[-lines:])


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, so that what was started is stopped."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def stop_all(services: Iterable[Service]) -> None:
    """Ask all of them to end, side by side, and see to it that nothing of them is left."""
    running = [service for service in services if service.is_running]
    for service in running:
        service.signal(signal.SIGTERM)
    for service in running:
        service.reap()
        service.signal(signal.SIGKILL)  # what it had started and not stopped
        _until_group_is_gone(service.pid)


def _until_group_is_gone(group: int) -> None:
    deadline = time.monotonic() + _STOP_SECONDS
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(_LOOK_SECONDS)


_START_SECONDS = 180.0

_COMPONENTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "api_server": ("api-server",),
        "scheduler": ("scheduler", "--skip-serve-logs"),  # the log servers listen on all interfaces
        "dag_processor": ("dag-processor",),
        "triggerer": ("triggerer", "--skip-serve-logs"),
    }
)

_SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "API__HOST": "127.0.0.1",
        "CORE__LOAD_EXAMPLES": "False",
        "CORE__DAGS_ARE_PAUSED_AT_CREATION": "True",
        "CORE__EXECUTOR": "LocalExecutor",
        "CORE__PARALLELISM": "4",
        "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "30",
        "DAG_PROCESSOR__REFRESH_INTERVAL": "5",
        "OPERATORS__DEFAULT_DEFERRABLE": "True",
        "USAGE_DATA_COLLECTION__ENABLED": "False",
        # Airflow may see a deferred task's process end this much later; a trigger that fires sooner costs the task a try.
        "WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The folders and addresses of a local Airflow and of its tasks."""

    home: Path
    dags: Path
    connections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)  # SECTION__KEY -> value
    env: Mapping[str, str] = field(default_factory=dict)
    port: int = 0  # 0: a free one

    def environment(self, port: int) -> dict[str, str]:
        """Return the variables of all components. The caller's Airflow settings are left out, except those of this package."""
        url = f"http://127.0.0.1:{port}"
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("AIRFLOW__") or name.startswith("AIRFLOW__BATCH_LLM__")
        }
        settings = {
            **_SETTINGS,
            "API__BASE_URL": url,
            "API__PORT": str(port),
            "API__SECRET_KEY": secrets.token_hex(16),
            "API_AUTH__JWT_SECRET": secrets.token_hex(32),
            "CORE__DAGS_FOLDER": str(self.dags.absolute()),
            "CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
            "CORE__FERNET_KEY": "",
            **self.settings,
        }
        return {
            **{
                f"AIRFLOW_CONN_{name.upper()}": json.dumps(fields)
                for name, fields in self.connections.items()
            },
            **inherited,  # a connection of the user's wins: that is how a real provider is reached
            **self.env,
            **{f"AIRFLOW__{name}": value for name, value in settings.items()},
            "AIRFLOW_HOME": str(self.home.absolute()),
            "PYTHONWARNINGS": "ignore",
        }


class LocalAirflow:
    """Starts Airflow when its block is entered, and stops it at the block's end."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        port = setup.port or _free_port()
        self.env = setup.environment(port)
        self.api = AirflowApi(f"http://127.0.0.1:{port}")
        self.services = {
            name: Service(
                [sys.executable, "-m", "airflow", *arguments],
                self.env,
                setup.home / "output" / f"{name}.txt",
            )
            for name, arguments in _COMPONENTS.items()
        }

    def __enter__(self) -> Self:
        self.setup.home.mkdir(parents=True, exist_ok=True)
        try:
            self._migrate()
            for service in self.services.values():
                service.start()
            for name in _COMPONENTS:
                self.until_healthy(name)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        stop_all(self.services.values())

    def until_healthy(self, component: str) -> None:
        """Wait until a component says so of itself. Raises RuntimeError if it has ended instead."""
        service = self.services[component]
        name = "metadatabase" if component == "api_server" else component

        def look() -> bool:
            if not service.is_running:
                raise RuntimeError(f"Airflow's {component} has ended:\n{service.tail()}")
            return self.api.health().get(name) == "healthy"

        until(look, f"Airflow's {component} to be healthy", _START_SECONDS)

    def until_read(self, *dag_ids: str) -> None:
        """Wait until Airflow has read these Dags. Raises RuntimeError if a file cannot be read."""

        def look() -> bool:
            if errors := self.api.import_errors():
                raise RuntimeError("\n".join(f"{name}: {trace}" for name, trace in errors.items()))
            return self.api.dag_ids() >= set(dag_ids)

        until(look, f"the Dags {', '.join(dag_ids)} to be read", _START_SECONDS)

    def _migrate(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "airflow", "db", "migrate"],
            env=self.env,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(
                f"Airflow's database could not be made:\n{done.stderr.decode(errors='replace')}"
            )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
