"""The routes of the page. Airflow decides who may read each of them, and all of them only read."""

import time
from datetime import date
from typing import Annotated, Any, Literal

from airflow.api_fastapi.core_api.security import get_user
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import RedirectResponse
from starlette.exceptions import HTTPException as Refused

from airflow_batch_llm.core.evaluation_result import page as evaluation_page
from airflow_batch_llm.errors import BatchLLMError
from airflow_batch_llm.plugins.page.reading import MayReadTasks, Reader, Sight, SomeUser, may_see_commands
from airflow_batch_llm.plugins.page.showing import own_page, page, root, static_file
from airflow_batch_llm.plugins.page.views import Wanted, listed, progress, run_link, shown, spent
from airflow_batch_llm.stage.records.folder import safe_name
from airflow_batch_llm.stage.records.run_index import RunRecord

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
        index = (
            int(map_index) if map_index.isdecimal() else -1
        )  # Airflow's UI leaves the placeholder, or says -1
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
