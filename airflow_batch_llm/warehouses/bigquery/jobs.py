"""Run BigQuery's jobs. The id of a job that writes follows from its work, so no attempt starts it twice.

The jobs that write to one table are numbered 0, 1, 2 …; BigQuery lets one creator have each number, and none is begun
before the one before has ended: they never write at once. The last of them says where the work stands: running means
wait, done means done, failed or another's means the next number. No row value reaches an error: of BigQuery's own text
only what it says before it has read a row is passed on.
"""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from airflow_batch_llm.errors import BatchLLMError, WarehouseBusy, WarehouseError
from airflow_batch_llm.warehouses import base

if TYPE_CHECKING:
    from google.api_core.retry import Retry
    from google.cloud.bigquery import Client, LoadJob, QueryJob

#: Reasons of failed jobs that may succeed if they are repeated.
_PASSING = frozenset(
    {
        "backendError",
        "internalError",
        "jobBackendError",
        "jobInternalError",
        "jobRateLimitExceeded",
        "quotaExceeded",
        "rateLimitExceeded",
        "resourcesExceeded",
        "stopped",
        "tableUnavailable",
        "timeout",
    }
)
#: The message to the second of two transactions on one table. A transaction that cannot commit has changed nothing.
_CONFLICT = re.compile(r"concurrent update|serialize access|failed to commit", re.IGNORECASE)

#: Reasons whose text names tables and rights, never values of rows.
_NAMES_ONLY = frozenset(
    {
        "accessDenied",
        "authError",
        "billingNotEnabled",
        "duplicate",
        "forbidden",
        "notFound",
        "quotaExceeded",
        "rateLimitExceeded",
        "responseTooLarge",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPatience:
    """The time limit for repeating a call or a job after a passing failure, and the growth of the waits (with jitter)."""

    first_wait: float = 1.0
    longest_wait: float = 32.0
    per_call: float = 300.0  # seconds after which a call that keeps failing is given up
    jobs: int = 8  # fresh jobs for one piece of work

    def waits(self) -> Iterator[float]:
        """Yield the waits between fresh jobs, without end."""
        wait = self.first_wait
        while True:
            yield random.uniform(wait / 2, wait)  # noqa: S311  jitter
            wait = min(wait * 2, self.longest_wait)

    def retry(self) -> Retry:
        """Return the client library's policy for one call: 429, 5xx, lost connections, rate limits, backend errors."""
        from google.cloud.bigquery.retry import DEFAULT_RETRY

        policy: Retry = DEFAULT_RETRY.with_timeout(self.per_call).with_delay(
            initial=self.first_wait, maximum=self.longest_wait, multiplier=2.0
        )
        return policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The work of a job, and the way to see whether it was done."""

    doing: str  # for messages: "merging into d.labels"
    stem: str  # the job id without its number
    content: str  # what the job writes; the same stem with another content is done again
    location: str | None
    submit: Callable[[str], LoadJob | QueryJob]  # a job by its id
    standing: Callable[[Any], bool] = bool  # what a done job left is still there; a job is always true


def stem_of(verb: str, *facts: object) -> str:
    """Return a job's id without its number. The id follows from the job's work."""
    return f"llm-{verb}-{digest(*facts)}"


def digest(*facts: object) -> str:
    """Return a short name for facts. Different facts have different names."""
    written = "\0".join(f"{len(str(fact))}:{fact}" for fact in facts)
    return hashlib.sha256(written.encode()).hexdigest()[:32]


def content_label(content: str) -> dict[str, str]:
    """Return the label by which a job shows what it writes."""
    return {"llm_content": content}


def job_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Labels in the letters that BigQuery allows; at most 63 characters, and keys begin with a letter."""
    written = {}
    for key, value in labels.items():
        name = re.sub(r"[^a-z0-9_-]", "_", key.lower())[:63]
        if not name[:1].isalpha():
            name = f"l{name}"[:63]
        written[name] = re.sub(r"[^a-z0-9_-]", "_", str(value).lower())[:63]
    return written


@dataclass(frozen=True, slots=True, kw_only=True)
class BigQueryJobs:
    """Runs jobs to their end through one client."""

    client: Client
    patience: JobPatience

    def perform(self, work: Work) -> Any:
        """Have the work done once: by the job that an earlier attempt began, or by a new one."""
        fresh, waits = 0, self.patience.waits()
        while True:
            number, last = self._last(work)
            if last is not None and self._failure(work, last) is None and self._same(work, last):
                return last
            job = self._submit(work, number)
            if job is None:  # another attempt has taken this number: see what it does
                continue
            fresh += 1
            failure = self._failure(work, job)
            if failure is None:
                return job
            if not _passes(failure) or fresh == self.patience.jobs:
                raise as_error(work.doing, failure, job=job)
            time.sleep(next(waits))

    def _same(self, work: Work, job: Any) -> bool:
        return (job.labels or {}).get("llm_content") == work.content and work.standing(job)

    def _submit(self, work: Work, number: int) -> Any:
        """Start job N. Returns None if N exists, even if this process created it and lost the reply."""
        from google.api_core.exceptions import Conflict, GoogleAPICallError

        with translated(work.doing):
            try:
                return work.submit(f"{work.stem}-{number}")
            except Conflict:
                return None
            except GoogleAPICallError:
                if self._job(work, number) is None:
                    raise
                return None

    def _last(self, work: Work) -> tuple[int, Any]:
        """Return the first free number, found in steps that double and then halve, and the job before it."""
        taken, free, last = -1, 0, None
        while (job := self._job(work, free)) is not None:
            taken, free, last = free, 2 * free + 1, job
        while free - taken > 1:
            middle = (taken + free) // 2
            if (job := self._job(work, middle)) is None:
                free = middle
            else:
                taken, last = middle, job
        return free, last

    def _job(self, work: Work, number: int) -> Any:
        from google.api_core.exceptions import NotFound

        with translated(work.doing):
            try:
                return self.client.get_job(
                    f"{work.stem}-{number}", location=work.location, retry=self.patience.retry()
                )
            except NotFound:
                return None

    def _failure(self, work: Work, job: Any) -> Exception | None:
        """Wait for a job to end. Returns why it failed, or None. A job with an unknown end never counts as failed."""
        from google.api_core.exceptions import GoogleAPICallError

        more = {"job_retry": None} if job.job_type == "query" else {}
        with translated(work.doing, job=job):
            try:
                job.result(retry=self.patience.retry(), **more)
            except GoogleAPICallError as error:
                job.reload(retry=self.patience.retry())
                if job.state != "DONE":
                    raise
                return error if job.error_result else None
        return None


def translated(doing: str, *, job: Any = None) -> base.translated:
    """Return a context that translates the client library's errors into the package's."""
    from google.api_core.exceptions import GoogleAPICallError, RetryError
    from google.auth.exceptions import GoogleAuthError
    from requests.exceptions import RequestException

    def describe(error: Exception) -> BatchLLMError:
        cause = error.cause if isinstance(error, RetryError) else None
        return as_error(doing, cause or error, job=job)

    errors = (
        RetryError,
        GoogleAPICallError,
        GoogleAuthError,
        RequestException,
        ConnectionError,
        pa.ArrowException,
    )
    return base.translated(errors, describe)


def as_error(
    doing: str, error: BaseException, *, job: Any = None, compiled: str | None = None
) -> BatchLLMError:
    """Return the package's error for BigQuery's: the attempted work, the reason, and the place of the full text."""
    reason = _reason(error)
    text = compiled or (message_of(error) if reason in _NAMES_ONLY else None)
    parts = [f"BigQuery broke off {doing}: {reason}."]
    if text:
        parts.append(text.rstrip(".") + ".")
    if job is not None:
        parts.append(f"Job {job.project}:{job.location}.{job.job_id} holds the full message.")
    if _passes(error):
        return WarehouseBusy(" ".join([*parts, "It was tried again until patience ran out; try later."]))
    return WarehouseError(" ".join(parts))


def _passes(error: BaseException) -> bool:
    from google.api_core.exceptions import GoogleAPICallError, ServerError, TooManyRequests
    from requests.exceptions import RequestException

    if isinstance(error, TooManyRequests | ServerError | RequestException | ConnectionError):
        return True
    if not isinstance(error, GoogleAPICallError):
        return False
    return _reason(error) in _PASSING or bool(_CONFLICT.search(error.message or ""))


def _reason(error: BaseException) -> str:
    from google.api_core.exceptions import GoogleAPICallError

    if isinstance(error, GoogleAPICallError) and error.errors and isinstance(error.errors[0], dict):
        return str(error.errors[0].get("reason") or type(error).__name__)
    return type(error).__name__


def message_of(error: BaseException) -> str | None:
    """Return the first line of BigQuery's message, without the URL that was called."""
    text = str(getattr(error, "message", "") or "")
    # the client library puts the method and the URL before the server's words
    return re.sub(r"^[A-Z]+ https?://\S+: ", "", text).split("\n")[0][:500] or None
