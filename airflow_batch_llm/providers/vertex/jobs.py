"""Read and look up batch prediction jobs, for workers and triggers alike."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from math import floor
from typing import assert_never

from airflow_batch_llm.core.model import BatchState, BatchStatus, Outcome, Search, Sighting
from airflow_batch_llm.errors import Refused
from airflow_batch_llm.providers.failures import detail
from airflow_batch_llm.providers.steps import (
    WORKER,
    AlreadyGone,
    Calls,
    ListMemory,
    Lookup,
    Mark,
    Pager,
    Parts,
    Patience,
    StatusPage,
    look_up,
    patiently,
)
from airflow_batch_llm.providers.vertex.errors import judge

RUN_LABEL = "airflow_batch_llm_run"
SHARD_LABEL = "airflow_batch_llm_shard"

# Each job that the package creates has the run label, so one listing covers the jobs of many runs.
OURS = f"labels.{RUN_LABEL}:*"

_NAME = re.compile(
    r"projects/(?P<project>[^/]+)/locations/(?P<location>[^/]+)/batchPredictionJobs/(?P<job>[^/]+)"
)

# Vertex cancels a job that has been running for 24 hours; its times may differ from that by minutes.
_CUT_OFF_SECONDS = 23.75 * 3600

# google.rpc codes of a failed job that may succeed later: resource exhausted, internal, unavailable.
_PASSING = frozenset({8, 13, 14})

_ADVICE = {
    3: "The request file was not accepted; the same file will not be.",
    5: "Look whether the model and the staging bucket or dataset exist in this location.",
    7: "Grant the Vertex AI service agent of the project storage.objects.create and .get on the staging bucket,"
    " or BigQuery Data Editor on the staging dataset.",
    9: "Look whether the staging bucket or dataset exists and lies in a location that Vertex can reach.",
}


class _End(StrEnum):
    """The states in which a job has ended."""

    SUCCEEDED = "JOB_STATE_SUCCEEDED"
    PARTIALLY_SUCCEEDED = "JOB_STATE_PARTIALLY_SUCCEEDED"
    CANCELLED = "JOB_STATE_CANCELLED"  # by a person or by Vertex; what was finished is written and billed
    EXPIRED = "JOB_STATE_EXPIRED"  # 72 hours in the queue
    FAILED = "JOB_STATE_FAILED"


_CANCELLED = frozenset({"JOB_STATE_CANCELLING", _End.CANCELLED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One batch prediction job. Counts are None if Vertex does not give them."""

    name: str
    state: str
    display_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    succeeded: int | None = None
    failed: int | None = None
    incomplete: int | None = None
    error_code: int | None = None
    error_message: str = ""
    output: str | None = None  # the folder below which the answers lie, or their table
    destination: str = ""  # the table that the job was told to write, where a look at one job tells
    upload: str = ""  # the URI of the request file or table, where a look at one job tells
    created_at: float = 0.0  # in seconds since the epoch; 0 where Vertex does not tell
    ran_seconds: float = 0.0  # of a job that has run and ended

    @property
    def token(self) -> str | None:
        """The shard token. Its display name is the same, and is used if a client leaves the labels out."""
        return self.labels.get(SHARD_LABEL) or self.display_name or None

    @property
    def end(self) -> _End | None:
        """Return the state in which the job has ended. Returns None if it has not."""
        return _End(self.state) if self.state in list(_End) else None

    @property
    def finished(self) -> int | None:
        """Rows that are no longer running."""
        if self.succeeded is None and self.failed is None:
            return None
        return (self.succeeded or 0) + (self.failed or 0)

    @property
    def total(self) -> int | None:
        """Rows in the job. Unknown while Vertex has not counted the incomplete ones."""
        if self.finished is None or self.incomplete is None or self.incomplete < 0:
            return None
        return self.finished + self.incomplete

    @property
    def promises_answers(self) -> bool:
        """Return whether the output of an ended job must hold something."""
        return bool(self.finished) or (self.finished is None and self.state == _End.SUCCEEDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPage:
    """One page of a listing; `next_token` is empty on the last."""

    jobs: tuple[Job, ...]
    next_token: str = ""


def status(job: Job) -> BatchStatus:
    """Translate a job into the package's terms."""
    state = _state(job)
    return BatchStatus(
        state=state,
        total=job.total,
        finished=job.finished,
        reason=_reason(job) if state is BatchState.REJECTED else None,
        detail=_detail(job) if state is BatchState.REJECTED else "",
        later=state is BatchState.REJECTED and job.error_code in _PASSING,
        unmentioned=_unmentioned(job),
    )


def _unmentioned(job: Job) -> Outcome:
    """Return the outcome of rows that are not in the output, which lists the executed rows."""
    match job.end:
        case _End.EXPIRED:
            return Outcome.EXPIRED
        case _End.CANCELLED:
            return Outcome.EXPIRED if job.ran_seconds >= _CUT_OFF_SECONDS else Outcome.CANCELED
        case _End.SUCCEEDED | _End.PARTIALLY_SUCCEEDED | _End.FAILED | None:
            return Outcome.MISSING
        case _:
            assert_never(job.end)


def _state(job: Job) -> BatchState:
    match job.end:
        case None:
            return BatchState.RUNNING
        case _End.SUCCEEDED | _End.PARTIALLY_SUCCEEDED | _End.CANCELLED | _End.EXPIRED:
            return BatchState.ENDED
        case _End.FAILED:
            # A job can fail after it has written rows; these are billed and readable.
            return BatchState.ENDED if job.output and job.finished != 0 else BatchState.REJECTED
        case _:
            assert_never(job.end)


def _reason(job: Job) -> str:
    parts = [f"code {job.error_code}.", _ADVICE.get(job.error_code or 0, "")]
    return " ".join(part for part in parts if part)


def _detail(job: Job) -> str:
    # The importer quotes the values that it refuses, which are row text.
    told = (
        re.sub(r"'[^']*'|\"[^\"]*\"", "'…'", job.error_message) if job.error_code == 3 else job.error_message
    )
    return detail(told)


def labels(token: str) -> dict[str, str]:
    """Return the labels by which the job of a shard is found again."""
    return {RUN_LABEL: token.rpartition("-")[0], SHARD_LABEL: token}


def search_filter(search: Search) -> str:
    """Return the listing filter for the jobs of a run."""
    runs = " OR ".join(f'labels.{RUN_LABEL}="{token}"' for token in sorted(search.run_tokens))
    return f'({runs}) AND create_time>="{_moment(floor(search.since))}"'


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()}Z"


def sighting(job: Job) -> Sighting:
    """Return a job that a search met."""
    return Sighting(
        batch_id=job.name,
        state=_state(job),
        token=job.token,
        requests=job.total,
    )


def is_name(name: str) -> bool:
    """Return whether this is the full name of a job."""
    return _NAME.fullmatch(name) is not None


def console_url(name: str) -> str | None:
    """Return the job's page in the Google Cloud console, or None if this is not the name of a job."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    place = f"locations/{match['location']}/batch-predictions/{match['job']}"
    return f"https://console.cloud.google.com/vertex-ai/{place}?project={match['project']}"


def model_path(model: str) -> str:
    """Return the resource name of a model: a bare name is one of Google's own, or a Claude."""
    publisher = "anthropic" if is_claude(model) else "google"
    return model if "/" in model else f"publishers/{publisher}/models/{model}"


def is_claude(model: str) -> bool:
    """Return whether a model is one of Anthropic's."""
    return model.rpartition("/")[2].startswith("claude-")


#: Jobs in a page of the list.
PAGE_SIZE = 100

# The listing goes back this far. A job that is older than its window and some slack is asked for by name.
_LISTED_SECONDS = 120 * 3600.0


def check(
    names: Sequence[str], now: float, patience: Patience, memory: ListMemory
) -> Calls[Mapping[str, BatchStatus]]:
    """Return the status of many jobs: by listing while that takes no more calls, and the rest one by one."""
    since = now - _LISTED_SECONDS

    def between(newest: Mark | None, oldest: Mark | None) -> Pager:
        times = [f'create_time>="{_moment(since if oldest is None else oldest.created_at)}"']
        if newest is not None:
            times.append(f'create_time<"{_moment(newest.created_at)}"')
        return partial(_status_page, " AND ".join([OURS, *times]), patience)

    lookup = Lookup(
        page=between(None, None),
        one=lambda name: _look(name, patience),
        by_name=memory.by_name,
        parts=Parts(size=PAGE_SIZE, memory=memory, between=between),
    )
    return (yield from look_up(names, lookup))


def _status_page(listed: str, patience: Patience, after: str | None) -> Calls[StatusPage]:
    told = yield from _page(listed, after or "", patience)
    return StatusPage(
        statuses={job.name: status(job) for job in told.jobs},
        after=told.next_token or None,
        tokens={job.name: job.token for job in told.jobs if job.token and job.state not in _CANCELLED},
        created={job.name: job.created_at for job in told.jobs if job.created_at},
    )


def cancel(name: str, patience: Patience) -> Calls[None]:
    """Ask the job to end. Vertex refuses that for a job that has ended, and then nothing is left to do."""
    try:
        yield from patiently(lambda jobs: jobs.cancel(name), judge, patience)
    except Refused:
        found = yield from _look(name, patience)
        if not found.state.is_over:
            raise
    else:
        # The answer is empty, so a gateway could have given it. The look shows whether it was Vertex.
        yield from _look(name, patience)


def delete(name: str) -> Calls[None]:
    """Delete an ended job. A missing job is not an error."""

    def gone(error: Exception) -> Exception:
        verdict = judge(error)
        return AlreadyGone() if isinstance(verdict, Refused) and verdict.status == 404 else verdict

    try:
        yield from patiently(lambda jobs: jobs.delete(name), gone, WORKER)
    except AlreadyGone:
        return


def find(search: Search, patience: Patience) -> Calls[Sequence[Sighting]]:
    """Return the jobs that have the run's label and no record."""
    sightings: list[Sighting] = []
    token = ""
    while True:
        page = yield from _page(search_filter(search), token, patience)
        sightings += [sighting(job) for job in page.jobs if job.name not in search.known]
        token = page.next_token
        if not token:
            return sightings


def look(name: str, patience: Patience) -> Calls[Job]:
    """Fetch one job."""
    if not is_name(name):
        raise Refused(f"{name!r} is not the name of a batch prediction job.")
    job: Job = yield from patiently(lambda jobs: jobs.get(name), judge, patience)
    return job


def _look(name: str, patience: Patience) -> Calls[BatchStatus]:
    return status((yield from look(name, patience)))


def _page(listed: str, token: str, patience: Patience) -> Calls[JobPage]:
    page: JobPage = yield from patiently(lambda jobs: jobs.page(listed, token), judge, patience)
    return page
