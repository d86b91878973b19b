"""The routes of the page, and the values that each view shows.

Airflow decides who may read each view, and all of them only read. In the list of runs, late ones come first, then the
unfinished, then those that have ended. Spending is by day, by Dag and by model, from the ledger or from the names of the index.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlencode

from airflow.api_fastapi.core_api.security import get_user
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import RedirectResponse
from starlette.exceptions import HTTPException as Refused

from airflow_batch_llm.core.evaluation_result import page as evaluation_page
from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.errors import BatchLLMError
from airflow_batch_llm.plugins.page.reading import (
    MayReadTasks,
    Reader,
    Sight,
    SomeUser,
    Spending,
    may_see_commands,
)
from airflow_batch_llm.plugins.page.showing import (
    days,
    dollars,
    own_page,
    page,
    percent,
    root,
    shares,
    static_file,
    timeline,
)
from airflow_batch_llm.stage.inspection import Inspected, ShardState
from airflow_batch_llm.stage.records.folder import safe_name
from airflow_batch_llm.stage.records.run_index import IndexedRun, RunRecord, RunState, index_name

_ERRORS = {
    401: "Sign in to Airflow, then open this page again.",
    403: "You may not read the task instances of this Dag. Ask an administrator of Airflow for a role that may.",
    404: "There is no such run. Its folder may have been deleted, or another deployment has run it.",
    422: "The address of this page is not complete.",
}

Path = Annotated[str, Query(max_length=1000)]


def build() -> FastAPI:
    """Make the application. Nothing is opened before a page is asked for."""
    app = FastAPI(
        title="LLM batches",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        dependencies=[Depends(get_user)],
    )
    reader = Reader()
    _add_errors(app)
    _add_lists(app, reader)
    _add_run(app, reader)
    _add_task(app, reader)

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        found = static_file(name)
        if found is None:
            raise HTTPException(404)
        return Response(found[0], media_type=found[1], headers={"Cache-Control": "max-age=300"})

    return app


def _add_lists(app: FastAPI, reader: Reader) -> None:
    """Add the views of many runs: each user sees those of the Dags that the user may read."""

    @app.get("/", dependencies=[Depends(MayReadTasks)])
    def runs(
        request: Request,
        user: SomeUser,
        dag_id: str = "",
        state: Literal["", "late", "running", "failed", "passed"] = "",
        until: date | None = None,
        page_number: Annotated[int, Query(alias="page", ge=1, le=10_000)] = 1,
    ) -> Response:
        wanted = Wanted(dag_id=dag_id, state=state, page=page_number, until=until)
        return page(request, "runs.html", **listed(reader, Sight.of(user), wanted))

    @app.get("/spend", dependencies=[Depends(MayReadTasks)])
    def spend(
        request: Request, user: SomeUser, dag_id: str = "", days: Literal[30, 90, 365] = 30
    ) -> Response:
        return page(request, "spend.html", **spent(reader, Sight.of(user), dag_id, days))


def _add_run(app: FastAPI, reader: Reader) -> None:
    """Add the views of one run. Access is granted to a Dag, so the run must be one of that Dag's; else to commands."""

    def of_dag(dag_id: str, path: Path) -> RunRecord:
        return _checked(reader.run(path), {dag_id, safe_name(dag_id)})

    def of_command(path: Path) -> RunRecord:
        return _checked(reader.run(path), {""})

    for prefix, find, access in (
        ("/dags/{dag_id}", of_dag, MayReadTasks),
        ("/commands", of_command, may_see_commands),
    ):
        _add_run_below(app, reader, prefix, (Depends(find), Depends(access)))


def _add_task(app: FastAPI, reader: Reader) -> None:
    """Add the tab of a task instance: it leads to the task's run, or lists those of its Dag run."""

    @app.get("/dags/{dag_id}/task", dependencies=[Depends(MayReadTasks)])
    def task(request: Request, dag_id: str, run_id: Path, task_id: Path, map_index: str = "") -> Response:
        # Airflow's UI leaves the placeholder, or says -1.
        index = int(map_index) if map_index.isdecimal() else -1
        records = reader.runs_of_task(dag_id, run_id, task_id, index)
        if len(records) == 1:
            return RedirectResponse(f"{root(request)}{run_link(records[0])}", 303)
        names: dict[str, Any] = {"dag_id": dag_id, "run_id": run_id, "task_id": task_id}
        return page(request, "task.html", records=records, link=run_link, **names)


def _add_run_below(app: FastAPI, reader: Reader, prefix: str, found: tuple[Any, Any]) -> None:
    record_of, access = found

    @app.get(f"{prefix}/run", dependencies=[access])
    def run(request: Request, record: RunRecord = record_of) -> Response:
        return page(request, "run.html", **shown(reader, record))

    @app.get(f"{prefix}/evaluation", dependencies=[access])
    def evaluation(record: RunRecord = record_of) -> Response:
        found = reader.evaluation(record)
        if found is None:
            raise HTTPException(404)
        return own_page(evaluation_page(found))

    @app.get(f"{prefix}/progress", dependencies=[access])
    def run_progress(record: RunRecord = record_of) -> dict[str, Any]:
        return progress(reader.inspected(record), record, time.time())


def _checked(record: RunRecord | None, dag_ids: set[str]) -> RunRecord:
    if record is None or record.dag_id not in dag_ids:
        raise HTTPException(404)
    return record


def _add_errors(app: FastAPI) -> None:
    """Answer errors with a page that says what to do."""

    @app.exception_handler(Refused)
    def refused(request: Request, error: Refused) -> Response:
        told = _ERRORS.get(error.status_code, str(error.detail))
        return page(request, "error.html", error.status_code, told=told, is_store=False)

    @app.exception_handler(Exception)
    def broken(request: Request, error: Exception) -> Response:
        told = f"Something unexpected has happened ({type(error).__name__}). The API server's log has the details."
        return page(request, "error.html", 500, told=told, is_store=False)

    @app.exception_handler(BatchLLMError)
    def failed(request: Request, error: BatchLLMError) -> Response:
        return page(request, "error.html", 503, told=str(error), is_store=True)


#: The days with runs that one listing covers.
DAYS = 14
_PAGE = 50
STATES = ("late", "running", "failed", "passed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The runs that a reader asks for."""

    dag_id: str = ""
    state: str = ""
    page: int = 1
    until: date | None = None

    def query(self, **changes: object) -> str:
        """Return the part of a URL that asks for these runs, with some of it changed."""
        asked = {"dag_id": self.dag_id, "state": self.state, "until": self.until or "", "page": self.page}
        given = {name: value for name, value in {**asked, **changes}.items() if value}
        if given.get("page") == 1:
            del given["page"]
        return urlencode(given)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A run in the list."""

    record: RunRecord
    state: str
    link: str
    live: str
    """The path of the run's progress. Empty: it has ended."""
    task: str
    """The path of the task instance in Airflow. Empty: a command has run it."""


def listed(reader: Reader, sight: Sight, wanted: Wanted) -> dict[str, Any]:
    """Return what the view of all runs shows."""
    now = time.time()
    listing = reader.listing(DAYS, wanted.until)
    seen = sight.seen(list(listing.runs))
    of_dag = [run for run in seen if not wanted.dag_id or run.dag == index_name(wanted.dag_id)]
    chosen = [run for run in of_dag if wanted.state in ("", state(run, now))]
    chosen.sort(key=lambda run: STATES.index(state(run, now)) if run.state is RunState.BEGUN else len(STATES))
    first = (wanted.page - 1) * _PAGE
    records = reader.records(chosen[first : first + _PAGE])
    return {
        "rows": [
            _row(records[run.file], run, now) for run in chosen[first : first + _PAGE] if run.file in records
        ],
        "states": Counter(state(run, now) for run in of_dag),
        "dags": sorted(sight.dag_ids & _named(seen, sight)),
        "wanted": wanted,
        "total": len(chosen),
        "pages": -(-len(chosen) // _PAGE),
        "days": listing.days,
        "older": listing.older,
    }


def state(run: IndexedRun, now: float) -> str:
    """Return the state of a run for people."""
    if run.state is RunState.BEGUN:
        return "late" if run.is_late(now) else "running"
    return run.state.value


def run_link(record: RunRecord, view: str = "run") -> str:
    """Return the path of a view of one run, below the page's own."""
    of = f"dags/{quote(record.dag_id, safe='')}" if record.dag_id else "commands"
    return f"/{of}/{view}?{urlencode({'path': record.path})}"


def task_link(record: RunRecord) -> str:
    """Return the path of a run's task instance in Airflow's UI. Empty: a command has run it."""
    if not record.dag_id:
        return ""
    dag, run, task = (quote(name, safe="") for name in (record.dag_id, record.run_id, record.task_id))
    mapped = f"/mapped/{record.map_index}" if record.map_index >= 0 else ""
    return f"/dags/{dag}/runs/{run}/tasks/{task}{mapped}"


def progress(run: Inspected, record: RunRecord, now: float) -> dict[str, Any]:
    """Return how far an unfinished run has come, in words."""
    shards = Counter(shard.state for shard in run.shards)
    good = run.outcomes.get(Outcome.SUCCEEDED.value, 0)
    late = run.deadline is not None and run.deadline < now and run.verdict is None
    ended = "" if run.passed is None else "passed" if run.passed else "failed"
    return {
        "state": ended or ("late" if late else "running"),
        "rows": f"{good:,} / {record.rows:,}",
        "percent": percent(good, record.rows),
        "batches": ", ".join(f"{shards[one]:,} {one}" for one in ShardState if shards[one]),
        "spent": dollars(run.spent_usd),
        "spent_percent": percent(run.spent_usd, record.budget_usd or 0.0),
        "next": run.next,
    }


def _row(record: RunRecord, run: IndexedRun, now: float) -> Row:
    live = run_link(record, "progress") if run.state is RunState.BEGUN else ""
    return Row(record=record, state=state(run, now), link=run_link(record), live=live, task=task_link(record))


def _named(runs: list[IndexedRun], sight: Sight) -> set[str]:
    """Return the Dags of these runs by their own names."""
    found = {run.dag for run in runs}
    return {dag_id for dag_id in sight.dag_ids if index_name(dag_id) in found}


_EXPECTED = (
    ("rows", "rows", "count"),
    ("requests", "requests", "count"),
    ("input_tokens", "input tokens", "count"),
    ("output_tokens", "output tokens", "count"),
    ("usd", "dollars", "dollars"),
)


def shown(reader: Reader, record: RunRecord) -> dict[str, Any]:
    """Return what the view of one run shows."""
    now = time.time()
    run = reader.inspected(record)
    total = sum(run.outcomes.values())
    return {
        "record": record,
        "run": run,
        "progress": progress(run, record, now),
        "live": run_link(record, "progress") if run.verdict is None else "",
        "task": task_link(record),
        "evaluation": run_link(record, "evaluation") if reader.evaluation(record) is not None else "",
        "others": reader.others(record),
        "link": run_link,
        "chart": timeline(run, now),
        "outcomes": [(name, count, round(100 * count / total, 1)) for name, count in run.outcomes.items()],
        "compared": _compared(run),
        "now": now,
    }


def _compared(run: Inspected) -> list[tuple[str, str, float | None, float]]:
    """Return the estimated numbers with the actual ones, and the form of the numbers."""
    actual = {
        "rows": sum(run.outcomes.values()),
        "requests": run.requests,
        **{name: run.usage.get(name, 0) for name in ("input_tokens", "output_tokens")},
        "usd": run.spent_usd,
    }
    return [(words, form, run.estimate.get(name), actual[name]) for name, words, form in _EXPECTED]


SPANS = (30, 90, 365)
_MOST_LINES = 20
_OTHERS = "others"


def spent(reader: Reader, sight: Sight, dag_id: str, span: int) -> dict[str, Any]:
    """Return what the view of spending shows: of the ledger if one is configured and can be read, else of the index."""
    last = datetime.fromtimestamp(time.time(), UTC).date()
    first = last - timedelta(days=span - 1)
    ledger = reader.ledger()
    is_read = ledger is not None and ledger.is_read
    found = _in_ledger(ledger.rows, sight) if ledger and is_read else _in_index(reader, sight, span)
    seen = [one for one in found if first <= one.day <= last]
    chosen = [one for one in seen if not dag_id or one.dag_id == dag_id]
    by_day: dict[date, float] = defaultdict(float)
    for one in chosen:
        by_day[one.day] += one.usd
    total, rows = sum(one.usd for one in chosen), sum(one.rows for one in chosen)
    return {
        "ledger": ledger,
        "is_read": is_read,
        "span": span,
        "spans": SPANS,
        "dag_id": dag_id,
        "dags": sorted({one.dag_id for one in seen} & sight.dag_ids),
        "runs": len({one.run for one in chosen}),
        "rows": rows,
        "total": total,
        "per_thousand": 1000 * total / rows if rows else None,
        "highest": max(by_day.values(), default=0.0),
        "chart": days(by_day, first, last),
        "by_dag": _lines(chosen, lambda one: one.dag_id or "command line"),
        "by_model": _lines(chosen, lambda one: one.model),
        "budgets": reader.budgets() if sight.commands else [],
        "by_day": sorted(by_day.items(), reverse=True),
    }


def _in_ledger(rows: Iterable[Spending], sight: Sight) -> list[Spending]:
    return [one for one in rows if (one.dag_id in sight.dag_ids if one.dag_id else sight.commands)]


def _in_index(reader: Reader, sight: Sight, span: int) -> list[Spending]:
    """Return the runs that have ended, from the names of the index alone."""
    names = {index_name(one): one for one in sight.dag_ids}
    return [
        Spending(
            run=run.file,
            dag_id=names.get(run.dag, run.dag),
            day=run.day,
            model=run.model,
            usd=run.usd,
            rows=run.rows,
        )
        for run in sight.seen(list(reader.listing(span).runs))
        if run.state is not RunState.BEGUN
    ]


def _lines(found: Iterable[Spending], name: Callable[[Spending], str]) -> list[tuple[str, float, float, int]]:
    """Return dollars, their share of the largest, and runs for each name; the smallest together."""
    dollars: dict[str, float] = defaultdict(float)
    runs: dict[str, set[str]] = defaultdict(set)
    for one in found:
        dollars[name(one)] += one.usd
        runs[name(one)].add(one.run)
    ordered = sorted(dollars, key=lambda one: (-dollars[one], one))
    kept, rest = ordered[:_MOST_LINES], ordered[_MOST_LINES:]
    amounts = [(one, dollars[one]) for one in kept]
    if rest:
        amounts.append((_OTHERS, sum(dollars[one] for one in rest)))
        runs[_OTHERS] = set[str]().union(*(runs[one] for one in rest))
    return [(one, amount, share, len(runs[one])) for one, amount, share in shares(amounts)]
