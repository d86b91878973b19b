"""The verbs that look at jobs, written once: workers and triggers drive the same generators.

A listing shows up to `PAGE_SIZE` jobs per call, others' among them; single looks cost a call each.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from airflow_batch_llm.core.model import BatchState, BatchStatus, Search, Sighting
from airflow_batch_llm.errors import Refused
from airflow_batch_llm.providers.steps import Calls, Each, Patience, patiently
from airflow_batch_llm.providers.vertex.errors import judge
from airflow_batch_llm.providers.vertex.jobs import OURS, Job, Page, search_filter, sighting, status

# A listing is given up when it has cost this share of the calls that it was to save.
_JOBS_PER_LISTED_PAGE = 10
_YOUNGEST = timedelta(hours=120)  # older jobs than a window and its slack are asked for one by one


def check(names: Sequence[str], now: float, patience: Patience) -> Calls[Mapping[str, BatchStatus]]:
    """The status of many jobs: by listing while that is fewer calls, the rest one by one."""
    unknown = dict.fromkeys(names)
    seen: dict[str, BatchStatus] = {}
    if len(unknown) > 1:
        since = (datetime.fromtimestamp(now, UTC) - _YOUNGEST).strftime("%Y-%m-%dT%H:%M:%SZ")
        seen = yield from _listed(set(unknown), f'{OURS} AND create_time>="{since}"', patience)
    rest = [name for name in unknown if name not in seen]
    replies = yield Each([_look(name, patience) for name in rest])
    for name, reply in zip(rest, replies, strict=True):
        if isinstance(reply, Exception):
            raise reply
        seen[name] = reply
    return {name: seen[name] for name in unknown}


def _listed(wanted: set[str], listed: str, patience: Patience) -> Calls[dict[str, BatchStatus]]:
    seen: dict[str, BatchStatus] = {}
    token = ""
    for _ in range(1 + len(wanted) // _JOBS_PER_LISTED_PAGE):
        page = yield from _page(listed, token, patience)
        seen |= {job.name: status(job) for job in page.jobs if job.name in wanted}
        token = page.next_token
        if not token or len(wanted) - len(seen) <= 1:
            break
    return seen


def cancel(name: str, patience: Patience) -> Calls[None]:
    """Ask for an end. Vertex refuses that for a job that has ended, and then there is nothing to do."""
    try:
        yield from patiently(lambda jobs: jobs.cancel(name), judge, patience)
    except Refused:
        found = yield from _look(name, patience)
        if found.state is BatchState.RUNNING:
            raise


def find(search: Search, patience: Patience) -> Calls[Sequence[Sighting]]:
    """The jobs that bear the run's label and that no record knows."""
    sightings: list[Sighting] = []
    token = ""
    while True:
        page = yield from _page(search_filter(search), token, patience)
        sightings += [sighting(job) for job in page.jobs if job.name not in search.known]
        token = page.next_token
        if not token:
            return sightings


def look(name: str, patience: Patience) -> Calls[Job]:
    """One job as it is now."""
    job: Job = yield from patiently(lambda jobs: jobs.get(name), judge, patience)
    return job


def _look(name: str, patience: Patience) -> Calls[BatchStatus]:
    return status((yield from look(name, patience)))


def _page(listed: str, token: str, patience: Patience) -> Calls[Page]:
    page: Page = yield from patiently(lambda jobs: jobs.page(listed, token), judge, patience)
    return page
