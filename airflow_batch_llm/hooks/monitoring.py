"""Report to Airflow: errors that are retried or not, quiet logs, metrics, and a warning if no triggerer runs.

Airflow hands an exception's text to lineage and to callbacks. A vendor's own words are in our error's `detail`: they are
logged here, and travel no further. Airflow logs an exception with its stack and those of its causes. An error that the
user is to repair goes up alone, so that the log shows one message and hardly a stack; level DEBUG has the rest.

A metric must not fail a run whose rows are paid for, so tags hold only what every backend takes. Workers have no access to
Airflow's database; its health page is public and asks for no key.
"""

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from difflib import get_close_matches
from types import TracebackType
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, Stats, conf
from jinja2 import TemplateError, TemplateNotFound, UndefinedError

from airflow_batch_llm.errors import BatchLLMError, forget_hidden, raise_alone


def quiet_sdks() -> None:
    """Let SDKs and drivers log warnings only, for a process that belongs to one task."""
    if not _are_wanted():
        from airflow_batch_llm.stage.telemetry import quiet_process

        quiet_process()


def quiet_sdks_here() -> None:
    """Let SDKs and drivers log warnings only for this trigger: other triggers share its process."""
    if not _are_wanted():
        from airflow_batch_llm.stage.telemetry import quiet_context

        quiet_context()


def _are_wanted() -> bool:
    return bool(conf.getboolean("batch_llm", "sdk_logs", fallback=False))


_log = logging.getLogger(__name__)

_UNDEFINED = re.compile(r"'(\w+)' is undefined")


def translated_errors() -> AbstractContextManager[None]:
    """Retry errors that another attempt may not meet; let all others fail the task for good."""
    return _Translated()


class _Translated(AbstractContextManager[None]):
    """Translates the errors of a block. It is a class, since a generator would add frames to the stack that Airflow logs."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        if not isinstance(error, BatchLLMError):
            return
        if error.detail:
            _log.error("The provider said: %s", error.detail)
        forget_hidden(error)
        failed = AirflowException if error.retryable else AirflowFailException
        raised = failed(f"{type(error).__name__}: {error}")
        if not error.is_user_error:
            raise raised from error
        _log.debug("The stack of the error:", exc_info=error)
        try:
            raise raised from None
        finally:
            raised.__context__ = None


@contextmanager
def rendering(task: Any, content: Any, names: Iterable[str]) -> Iterator[None]:
    """Fail the task for good if a template field cannot be rendered. `names` are those that templates may use."""
    field = next((name for name in task.template_fields if getattr(task, name, None) is content), None)
    if field is None:  # a part of a field, which is named when its error reaches the whole
        yield
        return
    try:
        yield
    except TemplateError as error:
        why = _explained(error, names)
    else:
        return
    raise_alone(AirflowFailException(f"InputError: {field} cannot be rendered: {why}"))


def _explained(error: TemplateError, names: Iterable[str]) -> str:
    if isinstance(error, TemplateNotFound):
        return f"there is no file {error.name}. Put it next to the Dag, or into its template_searchpath."
    undefined = _UNDEFINED.fullmatch(str(error)) if isinstance(error, UndefinedError) else None
    if undefined is None:
        return f"{error}. Correct the template."
    close = get_close_matches(undefined[1], list(names), n=1)
    meant = f" Is it {close[0]!r}?" if close else ""
    return (
        f"{error}.{meant} Templates of this field have Airflow's own names, and not the columns of the rows."
    )


_CHECK = "airflow jobs check --job-type TriggererJob"

#: The page is asked for before a task defers, so it may not hold the task up for long.
_TIMEOUT_SECONDS = 2.0


def tell_of_triggerer(log: Any, *, first: bool) -> None:
    """Log that the task defers now. At its `first` deferral warn if no triggerer is alive, as far as can be known."""
    log.info(
        "The task now waits in the triggerer, which logs each look, and holds no worker slot. If no look follows, check"
        " on the Airflow side that a triggerer is running: %s",
        _CHECK,
    )
    if first and (page := _page_without_triggerer()) is not None:
        log.warning(
            "No triggerer is alive, says %s. Batches go on at the provider, but the task resumes only once a triggerer"
            " runs: start one with `airflow triggerer`, or set deferrable=False.",
            page,
        )


def _page_without_triggerer() -> str | None:
    """Return the URL of the health page if it reports no live triggerer. Returns None if one lives, or if it is not known."""
    base = str(conf.get("api", "base_url", fallback="") or "").rstrip("/")
    if not base.startswith(("http://", "https://")):
        return None
    page = f"{base}/api/v2/monitor/health"
    try:
        import httpx

        told = httpx.get(page, timeout=_TIMEOUT_SECONDS).raise_for_status().json()
        return page if told["triggerer"]["status"] != "healthy" else None
    except Exception:  # noqa: BLE001 - whatever keeps the page from being read says nothing about a triggerer
        return None


#: Plain StatsD ends a name at a colon, and its client sends ASCII only.
_UNSAFE = re.compile(r"[^\w./@+-]", re.ASCII)


def metric_tags(**given: object) -> dict[str, str]:
    """Return these tags, with an underscore for each character that some backend does not take."""
    return {name: _UNSAFE.sub("_", str(value)) for name, value in given.items()}


def gauge_open_since(since: float, *, dag_id: str, task_id: str, map_index: int = -1) -> None:
    """Send the time since which a task has an open run, in seconds since the epoch. 0 if it has none."""
    tags = metric_tags(dag_id=dag_id, task_id=task_id)
    if map_index >= 0:
        tags["map_index"] = str(map_index)
    Stats.gauge("batch_llm.open_since", since, tags=tags)
