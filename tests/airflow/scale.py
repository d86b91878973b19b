"""A group over a large table in an Airflow with Celery, Redis, PostgreSQL and four workers, of which one is killed.

    make scale ROWS=1000000

Everything listens on loopback or a socket and is stopped by its own process id. Printed is the spending, by step and by
worker, and if the provider has charged each row once.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from airflow_batch_llm.demo.local_airflow import (
    LocalAirflow,
    Service,
    Setup,
    interrupted_by_sigterm,
    run_path,
    stop_all,
    until,
)
from airflow_batch_llm.simulator.handle import Simulator
from tests.airflow.standalone import ROOT
from tests.emulators import postgres

WORKERS, BODY, DAG = 4, 400, "scale"
STEPS = ("plan", "submit", "drive", "collect", "finish")
_TICK = os.sysconf("SC_CLK_TCK")
_SETTINGS: Mapping[str, str] = {
    "BATCH_LLM__SHARED_WORKSPACE": "True",
    "CELERY__OPERATION_TIMEOUT": "20",
    "CELERY__WORKER_CONCURRENCY": "1",
    "CELERY__WORKER_PREFETCH_MULTIPLIER": "1",
    "CORE__EXECUTOR": "CeleryExecutor",
    "CORE__PARALLELISM": "16",
    "SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
}


@dataclass(slots=True)
class Seen:
    """The largest figures of one worker and its descendants."""

    service: Service
    cpu: float = 0.0
    idle_cpu: float = 0.0  # until it was ready
    mb: float = 0.0
    is_killed: bool = False

    def look(self) -> None:
        cpu, mb = 0.0, 0.0
        for pid in tree(self.service.pid):
            with suppress(OSError, ValueError, IndexError):  # it has ended meanwhile
                spent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]
                cpu += sum(map(int, spent)) / _TICK  # with its ended children
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                mb += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1000
        self.cpu, self.mb = max(self.cpu, cpu), max(self.mb, mb)


def tree(root: int) -> set[int]:
    """Return a process and all of its descendants."""
    parents: dict[int, list[int]] = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.read_text().rpartition(")")[2].split()[1])].append(int(stat.parent.name))
    found, left = {root}, [root]
    while left:
        new = [pid for pid in parents[left.pop()] if pid not in found]
        found.update(new)
        left += new
    return found


@dataclass(kw_only=True)
class Cluster:
    """The running processes of the cluster."""

    folder: Path
    rows: int
    uri: str
    airflow: LocalAirflow
    simulator: Simulator
    workers: list[Seen] = field(default_factory=list)

    @property
    def operations(self) -> Path:
        return self.folder / "operations"

    def asked(self, path: str) -> dict[str, Any]:
        """Ask Airflow, again if it is too busy to answer."""
        return until(lambda: self._answer(path), f"an answer to {path}", 1800)

    def _answer(self, path: str) -> dict[str, Any] | None:
        with suppress(OSError):
            return dict(self.airflow.api.call("GET", path))
        return None

    def tasks(self, run_id: str) -> list[dict[str, Any]]:
        return list(self.asked(f"{run_path(DAG, run_id)}/taskInstances?limit=100")["task_instances"])


@contextmanager
def running(folder: Path, rows: int) -> Iterator[Cluster]:
    """Start everything, and stop it at the end."""
    with ExitStack() as started:
        (folder / "postgres").mkdir()
        uri = started.enter_context(postgres.running(folder / "postgres"))
        _make_tables(uri, rows)
        redis = started.enter_context(_redis(folder / "redis"))
        simulator = started.enter_context(Simulator(data_dir=folder / "simulator", batch_seconds=5))
        setup = _setup(folder, rows, uri, redis, simulator.url)
        airflow = started.enter_context(LocalAirflow(setup))
        cluster = Cluster(folder=folder, rows=rows, uri=uri, airflow=airflow, simulator=simulator)
        workers = [_worker(airflow, folder, number) for number in range(1, WORKERS + 1)]
        started.callback(stop_all, workers)
        for worker in workers:
            worker.start()
        for worker in workers:
            until(lambda worker=worker: "ready." in worker.tail(), "a worker to be ready", 180)
        cluster.workers = [Seen(worker) for worker in workers]
        yield cluster


def _make_tables(uri: str, rows: int) -> None:
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute("CREATE DATABASE airflow")
        connection.execute(
            f"CREATE TABLE tickets AS SELECT i AS ticket_id, rpad(i || ' ', {BODY}, 'lorem ipsum ') AS body"
            f" FROM generate_series(1, {rows}) AS numbers(i)"
        )


@contextmanager
def _redis(folder: Path) -> Iterator[str]:
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _setup(folder: Path, rows: int, uri: str, redis: str, simulator: str) -> Setup:
    place = uri.partition("?")[2]
    return Setup(
        home=folder / "airflow",
        dags=ROOT / "tests" / "airflow" / "scale_dags",
        connections={
            "openai_default": {"conn_type": "openai", "host": f"{simulator}/v1", "password": "simulated"},
            "warehouse": {
                "conn_type": "postgres",
                "host": conninfo_to_dict(uri)["host"],
                "login": "postgres",
                "schema": "postgres",
            },
        },
        settings={
            **_SETTINGS,
            "BATCH_LLM__WORKSPACE": (folder / "workspace").as_uri(),
            "CELERY__BROKER_URL": f"{redis}/0",
            "CELERY__RESULT_BACKEND": f"{redis}/1",
            "DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://postgres:@/airflow?{place}",
            "DATABASE__SQL_ALCHEMY_CONN_ASYNC": f"postgresql+asyncpg://postgres:@/airflow?{place}",
        },
        env={
            "C_FORCE_ROOT": "1",
            "SCALE_OPERATIONS": str(folder / "operations"),
            "SCALE_ROWS_PER_BATCH": str(min(10_000, max(1, rows // 8))),
        },
    )


def _worker(airflow: LocalAirflow, folder: Path, number: int) -> Service:
    name = f"worker{number}"
    command = [sys.executable, "-m", "airflow", "celery", "worker", "--celery-hostname", f"{name}@scale"]
    return Service(
        [*command, "--skip-serve-logs"], airflow.env, folder / "airflow" / "output" / f"{name}.txt"
    )


def run(cluster: Cluster) -> dict[str, Any]:
    """Let the Dag run once, and kill a worker meanwhile. Returns the seconds and the report."""
    api = cluster.airflow.api
    cluster.airflow.until_read(DAG)
    for worker in cluster.workers:
        worker.look()
        worker.idle_cpu = worker.cpu
    ended = threading.Event()
    watching = threading.Thread(target=_watch, args=(cluster, ended))
    watching.start()
    try:
        api.unpause(DAG)
        began = time.monotonic()
        run_id = api.trigger(DAG)
        _kill_on_the_way(cluster, run_id)
        state = until(lambda: _end(cluster, run_id), "the run to end", 7200)
        seconds = time.monotonic() - began
    finally:
        ended.set()
        watching.join()
    tasks = cluster.tasks(run_id)
    if state != "success":
        failed = [task["task_id"] for task in tasks if task["state"] == "failed"]
        raise SystemExit(f"scale: the run is {state}: {failed}\n{api.log(DAG, run_id, failed[0])[-5000:]}")
    return {"seconds": seconds, "tasks": tasks, "report": api.xcom(DAG, run_id, "labels.finish")}


def _watch(cluster: Cluster, ended: threading.Event) -> None:
    while not ended.wait(0.5):
        for worker in cluster.workers:
            if not worker.is_killed:
                worker.look()


def _kill_on_the_way(cluster: Cluster, run_id: str) -> None:
    """Kill a worker while it sends shards, or, if it was too quick for that, while it collects them."""

    def find() -> Any:
        if (state := _end(cluster, run_id)) is not None:
            return state
        sent = cluster.simulator.ledger()["openai"]["batches"]
        for task in cluster.tasks(run_id):
            is_sending = task["task_id"] == "labels.submit" and sent
            if task["state"] == "running" and (is_sending or task["task_id"] == "labels.collect"):
                for worker in cluster.workers:
                    if task["hostname"] and _runs(worker, task["id"]):
                        return worker, task
        return None

    found = until(find, "a worker that is at work", 1800)
    if not isinstance(found, tuple):
        return  # the run has ended before
    worker, task = found
    worker.look()
    worker.is_killed = True
    for pid in tree(worker.service.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    sent = len(cluster.simulator.ledger()["openai"]["batches"])
    print(
        f"scale: killed a worker in {task['task_id']}, map index {task['map_index']}, after {sent} batches",
        flush=True,
    )


def _runs(worker: Seen, task_instance_id: str) -> bool:
    for pid in tree(worker.service.pid):
        with suppress(OSError):
            if task_instance_id.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                return True
    return False


def _end(cluster: Cluster, run_id: str) -> str | None:
    state = str(cluster.asked(run_path(DAG, run_id))["state"])
    return state if state in ("success", "failed") else None


def show(cluster: Cluster, ran: dict[str, Any], load: tuple[float, float, float]) -> bool:
    """Print the figures. Returns if each row was charged once and has landed once."""
    rows, report = cluster.rows, ran["report"]
    spent = _by_step(cluster.operations)
    print(
        f"\n{'step':<10}{'tasks':>6}{'s, longest':>12}{'CPU s':>9}{'CPU µs/row':>12}{'peak MB':>9}{'store':>8}"
    )
    for step in STEPS:
        seconds = [task["duration"] or 0 for task in ran["tasks"] if task["task_id"] == f"labels.{step}"]
        cpu, mb, operations = spent[f"labels.{step}"]
        print(
            f"{step:<10}{len(seconds):>6}{max(seconds):>12.1f}{cpu:>9.1f}{cpu / rows * 1e6:>12.1f}"
            f"{mb:>9.0f}{operations:>8,}"
        )
    print(f"\n{'worker':<10}{'CPU s':>9}{'peak MB':>9}   with Celery's and Airflow's own processes")
    for number, worker in enumerate(cluster.workers, start=1):
        killed = "   killed" if worker.is_killed else ""
        print(f"{number:<10}{worker.cpu - worker.idle_cpu:>9.1f}{worker.mb:>9.0f}{killed}")
    shards = len(report["batches"])
    operations = sum(count for _, _, count in spent.values())
    cpu = sum(worker.cpu - worker.idle_cpu for worker in cluster.workers)
    print(f"\nrows               {rows:,} in {shards} batches")
    print(f"rows per second    {rows / ran['seconds']:,.0f}  ({ran['seconds']:.0f} s from trigger to end)")
    print(f"CPU per row        {cpu / rows * 1e6:.0f} µs in the workers")
    print(f"store operations   {operations:,}: {operations / shards:.1f} for each batch")
    print(
        f"bill               ${report['cost']['usd']:,.2f}, of it ${report['cost']['stray_usd']:,.2f} strays"
    )
    print(
        f"machine            {os.cpu_count()} cores, load before {load[0]:.1f}, after {os.getloadavg()[0]:.1f}"
    )
    ledger = cluster.simulator.ledger()["openai"]
    with psycopg.connect(cluster.uri) as connection:
        landed = connection.execute("SELECT count(*), count(DISTINCT ticket_id) FROM labels").fetchone()
    charged, contents = ledger["rows"]["charged"], ledger["duplicates"]["contents"]
    print(f"ledger             {charged:,} charges, {contents:,} contents charged more than once")
    print(f"target             {landed[0] if landed else 0:,} rows")
    is_killed = any(worker.is_killed for worker in cluster.workers)
    return is_killed and charged == rows and not contents and landed == (rows, rows)


def _by_step(operations: Path) -> dict[str, tuple[float, float, int]]:
    """Return the CPU seconds, the largest process and the operations of each task."""
    cpu: dict[tuple[str, str], float] = {}
    mb: dict[str, float] = defaultdict(float)
    count: dict[str, int] = defaultdict(int)
    for line in operations.read_text().splitlines():
        task, pid, seconds, peak = line.split()
        cpu[task, pid] = float(seconds)
        mb[task] = max(mb[task], int(peak) / 1000)
        count[task] += 1
    return defaultdict(
        lambda: (0.0, 0.0, 0),
        {
            task: (sum(seconds for (of, _), seconds in cpu.items() if of == task), mb[task], count[task])
            for task in count
        },
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    chosen = parser.parse_args()
    load = os.getloadavg()
    folder = Path(tempfile.mkdtemp(prefix="batch-llm-scale-"))
    folder.chmod(0o755)  # PostgreSQL runs as another user
    print(f"scale: {chosen.rows:,} rows; everything is below {folder}", flush=True)
    with interrupted_by_sigterm(), running(folder, chosen.rows) as cluster:
        is_right = show(cluster, run(cluster), load)
    if is_right:
        shutil.rmtree(folder)
    print(
        "scale: each row was charged once"
        if is_right
        else "scale: WRONG: no worker was killed, or look above"
    )
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
