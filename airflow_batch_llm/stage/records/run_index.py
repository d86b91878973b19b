"""Keep an index of runs: a small record when a generation begins and one when it ends, so that a list reads no run folder.

    .registers/runs/<day>/<started>~<hash>~<dag>~<model>~begun~<due>.json
    .registers/runs/<day>/<started>~<hash>~<dag>~<model>~passed~<rows>~<micro dollars>.json
    .registers/runs/deployment=<name>/<day>/…

The names alone tell the Dag, the state and the dollars of each run, so a day is known by one listing, without a read. The
records hold what a list shows besides. The index only saves time. The truth is in the run folder.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, date, datetime
from enum import StrEnum
from itertools import groupby
from typing import Any

import orjson

from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.core.report import Report
from airflow_batch_llm.core.selection import PLANNED
from airflow_batch_llm.stage.records.folder import RunFolder, run_folders, safe_name
from airflow_batch_llm.stage.records.plan import Plan
from airflow_batch_llm.store import Workspace, at_once

_ROOT = ".registers/runs"
_DEPLOYMENT = "deployment="
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_LONGEST_PART = 80  # so that a whole name stays below the 255 bytes of a disk


class RunState(StrEnum):
    """The states of a generation."""

    BEGUN = "begun"
    PASSED = "passed"
    FAILED = "failed"


_ENDED = (RunState.PASSED, RunState.FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One generation of a run, as a list shows it. Times are seconds since the epoch."""

    path: str
    """The folder of the generation in the workspace."""
    dag_id: str = ""
    """Name of the Dag. Empty: a command has run it."""
    task_id: str = ""
    run_id: str = ""
    map_index: int = -1
    """The index of a mapped task. Default: the task is not mapped."""
    user: str = ""
    """The user of the command. Default: a task has run it."""
    deployment: str = ""
    provider: str
    model: str
    target: str
    started: float
    due: float | None = None
    """The end of the run's time. None: an earlier release has planned it."""
    rows: int
    """Rows that end with an outcome."""
    estimated_usd: float | None = None
    budget_usd: float | None = None
    """The most dollars that the run may cost. None: there is no limit."""
    state: RunState = RunState.BEGUN
    ended: float | None = None
    succeeded: int = 0
    usd: float = 0.0
    list_usd: float = 0.0
    """Dollars for the same requests in real time."""

    @property
    def name(self) -> str:
        """Return a name for people: Dag, task, run, and the mapped item; or the folder of a command's run."""
        if not self.dag_id:
            return self.path.rpartition("/")[0]
        index = f" [{self.map_index}]" if self.map_index >= 0 else ""
        return f"{self.dag_id}/{self.task_id}/{self.run_id}{index}"

    def is_late(self, now: float) -> bool:
        """Return whether the run's time is over and the run is not."""
        return self.state is RunState.BEGUN and self.due is not None and self.due < now

    @classmethod
    def from_json(cls, data: bytes) -> "RunRecord":
        """Read a record. What a later release has added is not known here and left out."""
        known = {item.name for item in fields(cls)}
        stored = {name: value for name, value in orjson.loads(data).items() if name in known}
        return cls(**{**stored, "state": RunState(stored["state"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedRun:
    """One generation of a run, as the name of its record describes it."""

    file: str
    """The place of the record in the workspace."""
    started: float
    dag: str
    """The Dag's name as `index_name` gives it. Empty: a command has run it."""
    model: str
    """The model's name as `index_name` gives it."""
    state: RunState
    due: float | None = None
    rows: int = 0
    usd: float = 0.0

    @property
    def day(self) -> date:
        """Return the day in UTC on which the run began."""
        return datetime.fromtimestamp(self.started, UTC).date()

    def is_late(self, now: float) -> bool:
        """Return whether the run's time is over and the run is not."""
        return self.state is RunState.BEGUN and self.due is not None and self.due < now


@dataclass(frozen=True, slots=True, kw_only=True)
class RunIndex:
    """Writes and reads the index of a workspace."""

    workspace: Workspace

    def begin(self, folder: RunFolder, due: float) -> None:
        """Note that a generation begins, or that its time ends at another moment than before."""
        plan = Plan.from_json(folder.read_plan() or b"")
        self._add(planned_run(folder, plan, due))

    def end(self, folder: RunFolder, plan: Plan, report: Report, ended: float) -> None:
        """Note how a generation has ended."""
        begun = asdict(planned_run(folder, plan))
        self._add(
            RunRecord(
                **{
                    **begun,
                    "state": RunState.PASSED if report.passed else RunState.FAILED,
                    "ended": ended,
                    "rows": report.rows,
                    "succeeded": report.final.get(Outcome.SUCCEEDED, 0),
                    "usd": report.spent.cost,
                    "list_usd": report.spent.list_cost,
                }
            )
        )

    def days(self, deployment: str | None = None) -> list[date]:
        """List the days on which runs began, the last first. With None, those of all deployments."""
        found = {name for root in self._roots(deployment) for name in self.workspace.folders(root)}
        return sorted((date.fromisoformat(name) for name in found if _DAY.fullmatch(name)), reverse=True)

    def runs(self, days: Sequence[date], deployment: str | None = None) -> list[IndexedRun]:
        """List the runs that began on these days, the last first, without reading a record."""
        folders = [f"{root}/{day.isoformat()}" for root in self._roots(deployment) for day in days]
        listed = zip(folders, at_once(self.workspace.names, folders), strict=True)
        found = [run for folder, names in listed for run in _listed(folder, names)]
        return sorted(found, key=lambda run: (run.started, run.file), reverse=True)

    def read(self, runs: Iterable[IndexedRun]) -> dict[str, RunRecord]:
        """Read the records of these runs, by their files and in their order. A missing or damaged record is left out."""
        files = [run.file for run in runs]
        found = zip(files, at_once(self.workspace.read, files), strict=True)
        records = {file: None if data is None else _undamaged(data) for file, data in found}
        return {file: record for file, record in records.items() if record is not None}

    def folder(self, record: RunRecord) -> RunFolder:
        """Return the run folder that a record is about."""
        run, _, generation = record.path.rpartition("/g")
        return RunFolder(workspace=self.workspace, run=run, generation=int(generation))

    def rebuild(self) -> int:
        """Add the runs that began or ended under releases without an index. Returns the number of generations found."""
        found = 0
        for folder in run_folders(self.workspace):
            data = folder.read_plan()
            due = max((float(orjson.loads(one)["at"]) for one in folder.deadlines()), default=None)
            if data is None or due is None:  # planned to be looked at, or not to its end
                continue
            found += 1
            report = folder.read_report()
            if report is None:
                self.begin(folder, due)
                continue
            stored = orjson.loads(report)
            ended = stored["about"].get("completed_at") or due
            self.end(folder, Plan.from_json(data), Report.from_json(stored["report"]), ended)
        return found

    def _roots(self, deployment: str | None) -> list[str]:
        if deployment is not None:
            return [_root(deployment)]
        named = [name for name in self.workspace.folders(_ROOT) if name.startswith(_DEPLOYMENT)]
        return [_ROOT, *(f"{_ROOT}/{name}" for name in named)]

    def _add(self, record: RunRecord) -> None:
        day = datetime.fromtimestamp(record.started, UTC).date().isoformat()
        self.workspace.create(
            f"{_root(record.deployment)}/{day}/{_name(record)}", orjson.dumps(asdict(record))
        )


def _undamaged(data: bytes) -> RunRecord | None:
    """Return a record. None: it is damaged, and must not hide the others."""
    try:
        return RunRecord.from_json(data)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def index_name(text: str) -> str:
    """Return a Dag's or a model's name as the index spells it: unchanged if it is plain and short."""
    plain = safe_name(text) if text else ""
    return plain if len(plain) <= _LONGEST_PART else f"{plain[: _LONGEST_PART - 17]}-{_hash(text)}"


def _root(deployment: str) -> str:
    return f"{_ROOT}/{safe_name(f'{_DEPLOYMENT}{deployment}')}" if deployment else _ROOT


def planned_run(folder: RunFolder, plan: Plan, due: float | None = None) -> RunRecord:
    """Return the record of a plan's run."""
    by = plan.planned_by
    names = [name for name in folder.run.split("/") if "=" not in name] if not by else []
    # An earlier release has not recorded who planned the run; a command's folder has two names.
    dag_id, task_id, run_id = (*names[:3],) if len(names) >= 3 else ("", "", "")
    return RunRecord(
        path=folder.path,
        dag_id=by.get("dag_id", dag_id),
        task_id=by.get("task_id", task_id),
        run_id=by.get("run_id", run_id),
        map_index=by.get("map_index", -1),
        user=by.get("user", ""),
        deployment=plan.deployment,
        provider=plan.provider,
        model=plan.model,
        target=plan.target.table,
        started=plan.planned_at,
        due=due,
        rows=sum(count for reason, count in plan.why.items() if reason in PLANNED),
        estimated_usd=plan.dollars,
        budget_usd=plan.limits.max_cost_usd,
    )


def _name(record: RunRecord) -> str:
    begins = (
        f"{int(record.started):012d}",
        _hash(record.path),
        index_name(record.dag_id),
        index_name(record.model),
        record.state.value,
    )
    if record.state is RunState.BEGUN:
        ends: tuple[str, ...] = (str(int(record.due or 0)),)
    else:
        ends = str(record.rows), str(round(record.usd * 1_000_000))
    return "~".join((*begins, *ends)) + ".json"


def _listed(folder: str, names: Iterable[str]) -> Iterator[IndexedRun]:
    """Yield each run of a day once: as it ended, or with the last end of its time."""
    found = sorted(
        (run for name in names if (run := _parsed(folder, name)) is not None),
        key=lambda one: (one[0], one[1].state is not RunState.BEGUN, one[1].due or 0.0),
    )
    for _, same in groupby(found, key=lambda one: one[0]):
        yield list(same)[-1][1]


def _parsed(folder: str, name: str) -> tuple[str, IndexedRun] | None:
    """Return the run that a name encodes, with its hash. Returns None if a later release has written it."""
    parts = name.removesuffix(".json").split("~")
    if len(parts) < 6:
        return None
    started, run, dag, model, state, *ends = parts
    more: dict[str, Any]
    if state == RunState.BEGUN and len(ends) == 1:
        more = {"due": float(ends[0]) or None}
    elif state in _ENDED and len(ends) == 2:
        more = {"rows": int(ends[0]), "usd": int(ends[1]) / 1_000_000}
    else:
        return None
    file, began = f"{folder}/{name}", float(started)
    return run, IndexedRun(file=file, started=began, dag=dag, model=model, state=RunState(state), **more)


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
