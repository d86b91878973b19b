"""Runs in processes of their own, which may be killed. A server that has imported everything forks them."""

import json
import multiprocessing
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from uuid import uuid4

from airflow_batch_llm.stage.drive import complete
from airflow_batch_llm.stage.run import Run
from tests.stage.kills import Kill, Meter, watched
from tests.stage.world import Bench, World, let_go

_PRELOAD = (
    "airflow_batch_llm.cli",
    "airflow_batch_llm.core.template",
    "airflow_batch_llm.providers.anthropic",
    "airflow_batch_llm.providers.openai",
    "airflow_batch_llm.providers.vertex",
    "airflow_batch_llm.warehouses.bigquery.warehouse",
    "anthropic.resources",
    "duckdb",
    "genai_prices.data",
    "google.cloud.aiplatform_v1",
    "google.cloud.bigquery",
    "google.cloud.storage",
    "google_crc32c",
    "h11",
    "httpcore",
    "httpcore2",
    "jinja2.sandbox",
    "jsonschema_rs",
    "openai.pagination",
    "openai.resources",
    "openai.resources.admin",
    "pandas",  # DuckDB looks at it
    "pyarrow.pandas_compat",
    "pyarrow.parquet",
    "sqlglot.dialects.duckdb",
    "sqlglot.generators.duckdb",
    "sqlglot.parsers.duckdb",
    "sqlglot.transforms",
    "tests.stage.processes",
)
_PATIENCE_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The work of a process: drive one run to its end, or do a part of it, unless it is killed before."""

    world: World
    name: str = "dag/task/run"
    max_tries: int = 0
    changes: Mapping[str, Any] = field(default_factory=dict)
    kill: Kill | None = None
    looks: bool = False  # at the world, after each verb
    part: Callable[[Run], None] | None = None  # instead of the whole
    evenly: bool = False  # others are alive: time does not jump
    hook: Callable[[World], Mapping[str, Any]] | None = None  # changes to the parts, made in the process

    def started(self) -> "Started":
        """Start the process, without waiting."""
        out = self.world.folder / f"{uuid4().hex}.json"
        process = processes().Process(target=_drive, args=(self, out))
        process.start()
        return Started(process=process, out=out)

    def run(self) -> "Ended":
        return self.started().wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The end of a process: `verbs` as they were called, and the run's report."""

    killed: bool
    verbs: list[str] = field(default_factory=list)
    traces: list[str] = field(default_factory=list)  # of verbs that should leave none
    report: dict[str, Any] = field(default_factory=dict)
    left_behind: list[str] = field(default_factory=list)  # what this process left on the worker's disk
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    process: BaseProcess
    out: Path

    def wait(self) -> Ended:
        self.process.join(_PATIENCE_SECONDS)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"the process did not end within {_PATIENCE_SECONDS} s")
        if not self.out.exists():
            assert self.process.exitcode == -9, f"the process ended with {self.process.exitcode}"
            return Ended(killed=True)
        return Ended(killed=False, **json.loads(self.out.read_text()))


def processes() -> ForkServerContext:
    """Return the maker of processes: a server, one for this session, forks them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOAD))
    return context


def _drive(job: Job, out: Path) -> None:
    """Drive the run to its end in the new process, and then once more, as a retry does."""
    meter = Meter(kill=job.kill, look=job.world.seen if job.looks else None)
    bench = Bench(job.world)
    before = _spooled(job.world)
    said: dict[str, Any] = {}
    try:
        run = bench.run(job.name, max_tries=job.max_tries, **job.changes)
        parts = watched(run.parts, meter)
        run = bench.run(
            job.name,
            max_tries=job.max_tries,
            parts={name: getattr(parts, name) for name in ("provider", "source", "target", "workspace")}
            | ({"sleep": job.world.sleep_evenly} if job.evenly else {})
            | dict(job.hook(job.world) if job.hook else {}),
            **job.changes,
        )
        try:
            if job.part is not None:
                job.part(run)
            else:
                done = complete(run, sleep=job.world.sleep_evenly if job.evenly else job.world.sleep)
                said["report"] = done.report.to_json()
        finally:
            let_go(run)
    except Exception:  # noqa: BLE001 - the parent judges it
        said["error"] = traceback.format_exc()
    said["left_behind"] = sorted(_spooled(job.world) - before)
    out.write_text(json.dumps({"verbs": meter.verbs, "traces": sorted(meter.traces), **said}))


def _spooled(world: World) -> set[str]:
    spool = world.folder / "spool"
    return {path.name for path in spool.iterdir()} if spool.exists() else set()
