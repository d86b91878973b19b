"""Read the workspace for the page, and ask Airflow's auth manager which runs a user may see.

The page writes nothing, and reads a record of an ended run once.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import date
from itertools import islice
from typing import Annotated, Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import get_user, requires_access_dag
from airflow.providers.common.compat.sdk import conf
from fastapi import Depends, HTTPException

from airflow_batch_llm.core.budget import BudgetState
from airflow_batch_llm.core.evaluation_result import EvaluationResult
from airflow_batch_llm.errors import BatchLLMError
from airflow_batch_llm.hooks.arguments import deployment
from airflow_batch_llm.hooks.object_storage import open_workspace
from airflow_batch_llm.hooks.warehouse import warehouse
from airflow_batch_llm.stage.budgets import budget_books
from airflow_batch_llm.stage.evaluating import SECOND, read_evaluation
from airflow_batch_llm.stage.inspection import Inspected, inspect
from airflow_batch_llm.stage.land.ledger import ledger_rows
from airflow_batch_llm.stage.records.folder import (
    RunFolder,
    generations,
    run_folders,
    run_path,
    safe_name,
)
from airflow_batch_llm.stage.records.plan import Plan
from airflow_batch_llm.stage.records.run_index import IndexedRun, RunIndex, RunRecord, index_name, planned_run
from airflow_batch_llm.store import Workspace

SomeUser = Annotated[BaseUser, Depends(get_user)]

#: Refuses a user who may not read the task instances of the Dag in the request; without a Dag, of any.
MayReadTasks: Callable[..., Any] = requires_access_dag(
    method="GET", access_entity=DagAccessEntity.TASK_INSTANCE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """The runs that a user may see."""

    dag_ids: frozenset[str]
    """The Dags that the user may read."""
    commands: bool
    """Return whether the user sees the runs of the command line, which belong to no Dag."""

    @classmethod
    def of(cls, user: BaseUser) -> "Sight":
        """Ask Airflow once for a request."""
        manager = get_auth_manager()
        return cls(
            dag_ids=frozenset(manager.get_authorized_dag_ids(user=user, method="GET")),
            commands=manager.is_authorized_connection(method="GET", user=user),
        )

    def seen(self, runs: list[IndexedRun]) -> list[IndexedRun]:
        """Return those of the runs that the user may see."""
        dags = set(map(index_name, self.dag_ids))
        return [run for run in runs if (run.dag in dags if run.dag else self.commands)]


def may_see_commands(user: SomeUser) -> None:
    """Refuse a user who may not read connections. Runs of the command line do not belong to a Dag."""
    if not get_auth_manager().is_authorized_connection(method="GET", user=user):
        raise HTTPException(403, "Runs of the command line are for those who may read Airflow's connections.")


_LOG = logging.getLogger(__name__)
_MOST_RUNS = 200
_SPENT = ("run_id", "deployment", "dag_id", "model", "usd", "rows_succeeded")
_LEDGER_SECONDS = 60.0
_KEPT_RECORDS = 20_000
_LISTING_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The runs that began on some days, the last first."""

    runs: tuple[IndexedRun, ...]
    days: tuple[date, ...]
    older: date | None
    """The last day before them. None: there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """The dollars of a run, or of one round and route of it."""

    run: str
    """A name of the run, which tells it from others."""
    dag_id: str
    """Empty: a command has run it."""
    day: date
    """The day in UTC on which it began."""
    model: str
    usd: float
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """The ledger as it was read last."""

    name: str
    conn_id: str
    rows: tuple[Spending, ...]
    is_read: bool
    """The ledger could be read."""
    until: float
    """The moment of the monotonic clock from which on it is read again."""


class Reader:
    """Reads for all users. The workspace and the deployment are those of Airflow's configuration."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reading_ledger = threading.Lock()
        self._ledger: Ledger | None = None
        self._records: dict[tuple[str, str], RunRecord] = {}  # by workspace and file
        self._listings: dict[tuple[str, str, int, date | None], tuple[float, Listing]] = {}

    def listing(self, days: int, until: date | None = None) -> Listing:
        """List the runs of the last days on which runs began, up to one day. A listing serves for five seconds."""
        index, now = self._index(), time.monotonic()
        asked = (index.workspace.uri, deployment(), days, until)
        with self._lock:
            kept = self._listings.get(asked)
        if kept is not None and now - kept[0] < _LISTING_SECONDS:
            return kept[1]
        known = [day for day in index.days(deployment()) if until is None or day <= until]
        shown = known[:days]
        listing = Listing(
            runs=tuple(index.runs(shown, deployment())),
            days=tuple(shown),
            older=known[days] if len(known) > days else None,
        )
        with self._lock:
            self._listings = {
                **{key: one for key, one in self._listings.items() if now - one[0] < _LISTING_SECONDS},
                asked: (now, listing),
            }
        return listing

    def records(self, runs: Sequence[IndexedRun]) -> dict[str, RunRecord]:
        """Return the records of runs, by their files."""
        index = self._index()
        place = index.workspace.uri
        with self._lock:
            found = {run.file: self._records.get((place, run.file)) for run in runs}
        read = index.read([run for run in runs if found[run.file] is None])
        with self._lock:
            if len(self._records) + len(read) > _KEPT_RECORDS:
                self._records.clear()
            self._records.update({(place, file): record for file, record in read.items()})
        return {**{file: record for file, record in found.items() if record is not None}, **read}

    def folder(self, path: str) -> RunFolder | None:
        """Return the folder of a generation by its path, or the last one of a run by the run's. None: there is none."""
        workspace = open_workspace(probe=False)
        run, separator, generation = path.rpartition("/g")
        if separator and run and generation.isdecimal():
            return RunFolder(workspace=workspace, run=run, generation=int(generation))
        return max(generations(workspace, path), key=lambda folder: folder.generation, default=None)

    def run(self, path: str) -> RunRecord | None:
        """Return what the plan of a run says. None: this deployment has planned no run there."""
        try:
            folder = self.folder(path)
            data = None if folder is None else folder.read_plan()
        except ValueError:  # no path inside a workspace
            return None
        if folder is None or data is None:
            return None
        record = planned_run(folder, Plan.from_json(data))
        return record if record.deployment == deployment() else None

    def runs_of_task(self, dag_id: str, run_id: str, task_id: str, map_index: int) -> list[RunRecord]:
        """Return the run that a task instance has planned, or else those of its Dag run, at most 200. Empty: no run."""
        workspace = open_workspace(probe=False)
        above = run_path(dag_id, deployment=deployment())
        name = safe_name(run_id)
        own = f"{above}/{safe_name(task_id)}/{name}"
        if map_index >= 0:
            own = f"{own}/{_item(workspace, own, map_index)}"
        record = self.run(own)
        if record is not None:
            return [record] if record.dag_id in (dag_id, safe_name(dag_id)) else []
        found = (
            folder.path
            for task in workspace.folders(above)
            for run in (name, f"{name}{SECOND}")
            for folder in run_folders(workspace, f"{above}/{task}/{run}")
        )
        records = [self.run(path) for path in islice(found, _MOST_RUNS)]
        return [one for one in records if one and one.dag_id in (dag_id, safe_name(dag_id))]

    def others(self, record: RunRecord) -> list[RunRecord]:
        """Return all generations of a run, in their order. Empty: there is only one."""
        folder = self.folder(record.path)
        assert folder is not None, "the record names it"
        found = [
            planned_run(one, Plan.from_json(one.read_plan() or b""))
            for one in generations(folder.workspace, folder.run)
        ]
        return found if len(found) > 1 else []

    def budgets(self) -> list[tuple[str, str, BudgetState]]:
        """Return the last period of each shared budget: its name, the period, and the state."""
        books = budget_books(open_workspace(probe=False))
        latest = {book.name: book for book in reversed(list(books))}
        return [(name, book.period, book.state(None)) for name, book in sorted(latest.items())]

    def inspected(self, record: RunRecord) -> Inspected:
        """Read the folder of a run."""
        folder = self.folder(record.path)
        assert folder is not None, "the record names it"
        return inspect(folder, time.time())

    def evaluation(self, record: RunRecord) -> EvaluationResult | None:
        """Read what an evaluation has found. None: the run is none, or has not been compared yet."""
        folder = self.folder(record.path)
        return None if folder is None else read_evaluation(folder)

    def ledger(self) -> Ledger | None:
        """Read the ledger of the configuration, at most once a minute. None: none is configured with its connection."""
        name, conn_id = (
            conf.get("batch_llm", option, fallback="") for option in ("usage_table", "usage_conn_id")
        )
        if not name or not conn_id:
            return None
        with self._reading_ledger:
            kept = self._ledger
            if kept is None or (kept.name, kept.conn_id) != (name, conn_id) or time.monotonic() > kept.until:
                self._ledger = kept = _read_ledger(name, conn_id)
        return kept

    def _index(self) -> RunIndex:
        return RunIndex(workspace=open_workspace(probe=False))


def _item(workspace: Workspace, run: str, map_index: int) -> str:
    """Return the folder of the item that a mapped task has planned last. Empty: it has planned none."""
    attempts = [name.removesuffix(".json").split("-") for name in workspace.names(f"{run}/items")]
    tries = [int(last) for index, last in attempts if int(index) == map_index]
    data = workspace.read(f"{run}/items/{map_index}-{max(tries)}.json") if tries else None
    return "" if data is None else safe_name(data.decode())


def _read_ledger(name: str, conn_id: str) -> Ledger:
    """Read a ledger. A page must not fail for the sake of it, so what is wrong is logged."""
    rows: tuple[Spending, ...] = ()
    is_read = True
    try:
        with closing(warehouse(conn_id, argument="[batch_llm] usage_conn_id")) as opened:
            rows = tuple(_spending(row) for row in ledger_rows(opened, name, _SPENT) if _is_ours(row))
    except Exception as error:  # noqa: BLE001 - drivers have errors of their own
        is_read = False
        told = error.in_full if isinstance(error, BatchLLMError) else type(error).__name__
        _LOG.warning("The ledger %s could not be read for the page: %s", name, told)
    until = time.monotonic() + _LEDGER_SECONDS
    return Ledger(name=name, conn_id=conn_id, rows=rows, is_read=is_read, until=until)


def _is_ours(row: dict[str, Any]) -> bool:
    return (row["deployment"] or "") == deployment()


def _spending(row: dict[str, Any]) -> Spending:
    return Spending(
        run=row["run_id"],
        dag_id=row["dag_id"] or "",
        day=row["started_at"].date(),
        model=row["model"],
        usd=row["usd"] or 0.0,
        rows=row["rows_succeeded"] or 0,
    )
