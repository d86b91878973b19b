"""The verbs that look at jobs, written once: workers and triggers drive the same generators."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from airflow_batch_llm.core.model import BatchState, BatchStatus, Search, Sighting
from airflow_batch_llm.errors import Refused
from airflow_batch_llm.providers import listing
from airflow_batch_llm.providers.listing import Lookup, look_up
from airflow_batch_llm.providers.steps import Calls, Patience, patiently
from airflow_batch_llm.providers.vertex.errors import judge
from airflow_batch_llm.providers.vertex.jobs import OURS, Job, Page, is_name, search_filter, sighting, status

# How far back the listing goes; a job that is older than its window and some slack is asked for by name.
_LISTED = timedelta(hours=120)


def check(names: Sequence[str], now: float, patience: Patience) -> Calls[Mapping[str, BatchStatus]]:
    """The status of many jobs: by listing while that is fewer calls, the rest one by one."""
    since = (datetime.fromtimestamp(now, UTC) - _LISTED).strftime("%Y-%m-%dT%H:%M:%SZ")

    def page(after: str | None) -> Calls[listing.Page]:
        told = yield from _page(f'{OURS} AND create_time>="{since}"', after or "", patience)
        return listing.Page(
            statuses={job.name: status(job) for job in told.jobs}, after=told.next_token or None
        )

    return (yield from look_up(names, Lookup(page=page, one=lambda name: _look(name, patience))))


def cancel(name: str, patience: Patience) -> Calls[None]:
    """Ask for an end. Vertex refuses that for a job that has ended, and then there is nothing to do."""
    try:
        yield from patiently(lambda jobs: jobs.cancel(name), judge, patience)
    except Refused:
        found = yield from _look(name, patience)
        if found.state is BatchState.RUNNING:
            raise
    else:
        # The answer is empty, so anybody could have given it: the look shows that it was Vertex.
        yield from _look(name, patience)


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
    if not is_name(name):
        raise Refused(f"{name!r} is not the name of a batch prediction job.")
    job: Job = yield from patiently(lambda jobs: jobs.get(name), judge, patience)
    return job


def _look(name: str, patience: Patience) -> Calls[BatchStatus]:
    return status((yield from look(name, patience)))


def _page(listed: str, token: str, patience: Patience) -> Calls[Page]:
    page: Page = yield from patiently(lambda jobs: jobs.page(listed, token), judge, patience)
    return page
