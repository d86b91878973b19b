"""The verbs that look at jobs, written once: workers and triggers drive the same generators."""

from collections.abc import Callable, Mapping, Sequence
from math import floor
from typing import Any, TypeVar

from airflow_batch_llm.core.model import BatchState, BatchStatus, Search, Sighting
from airflow_batch_llm.errors import Refused, ResultsGone, Unavailable
from airflow_batch_llm.providers.incoming import DOWNLOAD, NotUnderstood, count, entries, record, text
from airflow_batch_llm.providers.steps import WORKER, Calls, Lookup, Patience, StatusPage, look_up, patiently
from airflow_batch_llm_mistral.http import judged, status_in
from airflow_batch_llm_mistral.wire import status_of

JOBS, FILES = "/v1/batch/jobs", "/v1/files"
RUN_KEY, SHARD_KEY = "airflow_batch_llm_run", "airflow_batch_llm_shard"

_PAGE_SIZE = 100
_DOWNLOAD_SECONDS = 300.0

T = TypeVar("T")


def _get(path: str, patience: Patience, read: Callable[[Any], T], **params: object) -> Calls[T]:
    return patiently(
        lambda client: client.get(path, params=params), judged, patience, lambda answer: read(answer.json())
    )


def _job(batch_id: str, patience: Patience) -> Calls[BatchStatus]:
    return (yield from _get(f"{JOBS}/{batch_id}", patience, status_of))


def _page(after: str | None, patience: Patience) -> Calls[tuple[list[Mapping[str, Any]], str | None]]:
    number = int(after or 0)

    def read(page: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], str | None]:
        jobs = [record(job) for job in entries(page["data"])]
        for job in jobs:
            status_of(job)
            count(job["created_at"])
        more = (number + 1) * _PAGE_SIZE < count(page["total"])
        return jobs, str(number + 1) if more else None

    return _get(JOBS, patience, read, page=number, page_size=_PAGE_SIZE)


def check(batch_ids: Sequence[str], patience: Patience) -> Calls[dict[str, BatchStatus]]:
    """The status of each of these jobs."""

    def page(after: str | None) -> Calls[StatusPage]:
        jobs, rest = yield from _page(after, patience)
        return StatusPage(statuses={job["id"]: status_of(job) for job in jobs}, after=rest)

    return look_up(batch_ids, Lookup(page=page, one=lambda batch_id: _job(batch_id, patience)))


def cancel(batch_id: str, patience: Patience) -> Calls[None]:
    """Ask for an end; a job that has ended may refuse that, and then there is nothing to do."""
    try:
        yield from patiently(
            lambda client: client.post(f"{JOBS}/{batch_id}/cancel"),
            judged,
            patience,
            lambda answer: status_of(answer.json()),
        )
    except Refused:
        status = yield from _job(batch_id, patience)
        if status.state is BatchState.RUNNING:
            raise


def find(search: Search) -> Calls[list[Sighting]]:
    """The jobs that bear the run's metadata and that no record knows. Newest first: a new job moves others back."""
    found: dict[str, Sighting] = {}
    after: str | None = None
    while True:
        jobs, after = yield from _page(after, WORKER)
        for job in jobs:
            token = record(job.get("metadata") or {}).get(SHARD_KEY)
            if job["created_at"] < floor(search.since) or job["id"] in search.known:
                continue
            if isinstance(token, str) and search.is_for(token):
                status = status_of(job)
                found[job["id"]] = Sighting(
                    batch_id=job["id"], state=status.state, token=token, requests=status.total
                )
        if after is None or (jobs and jobs[-1]["created_at"] < floor(search.since)):
            return list(found.values())


def result_files(batch_id: str) -> Calls[list[str]]:
    """The files with the rows of an ended job; either may be absent."""

    def read(job: Mapping[str, Any]) -> tuple[BatchState, list[str]]:
        files = [text(job[name]) for name in ("output_file", "error_file") if job.get(name)]
        return status_of(job).state, files

    state, files = yield from _get(f"{JOBS}/{batch_id}", WORKER, read)
    if state is BatchState.RUNNING:
        raise Unavailable(f"Batch {batch_id} has not ended, so it has no results yet.")
    return files


def open_file(file_id: str, batch_id: str) -> Calls[Any]:
    """An open response with this file's content."""

    def open_(client: Any) -> Any:
        request = client.build_request(
            "GET", f"{FILES}/{file_id}/content", headers={"Accept": DOWNLOAD}, timeout=_DOWNLOAD_SECONDS
        )
        response = client.send(request, stream=True)
        if response.headers.get("content-type", "").startswith("text/html"):
            response.close()
            raise NotUnderstood("a page in HTML")
        return response

    def gone_or(error: Exception) -> Exception:
        if status_in(error) in (404, 410):
            return ResultsGone(f"Mistral does not show the results of batch {batch_id} (file {file_id}).")
        return judged(error)

    return patiently(open_, gone_or, WORKER)


def discard(file_id: str) -> Calls[None]:
    """Delete a file; one that is gone already is as good as deleted."""

    def delete(client: Any) -> None:
        try:
            client.delete(f"{FILES}/{file_id}")
        except Exception as error:
            if status_in(error) not in (404, 410):
                raise

    return patiently(delete, judged, WORKER)
