"""Read the workspace for the page. Nothing is written, and a record of an ended run is read once."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from airflow_batch_llm.core.budget import BudgetState
from airflow_batch_llm.core.evaluation_result import EvaluationResult
from airflow_batch_llm.hooks.arguments import deployment
from airflow_batch_llm.hooks.object_storage import open_workspace
from airflow_batch_llm.stage.evaluating import read_evaluation
from airflow_batch_llm.stage.inspection import Inspected, inspect
from airflow_batch_llm.stage.records.budgets import budget_books
from airflow_batch_llm.stage.records.folder import RunFolder, generations
from airflow_batch_llm.stage.records.plan import Plan
from airflow_batch_llm.stage.records.run_index import IndexedRun, RunIndex, RunRecord, planned_run

_KEPT_RECORDS = 20_000
_LISTING_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The runs that began on some days, the last first."""

    runs: tuple[IndexedRun, ...]
    days: tuple[date, ...]
    older: date | None
    """The last day before them. None: there is none."""


class Reader:
    """Reads for all users. The workspace and the deployment are those of Airflow's configuration."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
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

    def _index(self) -> RunIndex:
        return RunIndex(workspace=open_workspace(probe=False))
