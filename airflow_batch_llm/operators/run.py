"""A task that drives a run to its end: it works, defers, and works again.

What the run has come to stands in its folder, never in Airflow: any attempt, on any worker, goes on from there. Nothing
travels through `defer(kwargs=…)` or XCom.
"""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, BaseOperator, conf
from airflow.sdk import Context

from airflow_batch_llm.core.waiting import CANCEL_GRACE_SECONDS
from airflow_batch_llm.errors import BatchLLMError
from airflow_batch_llm.hooks.llm import llm_provider
from airflow_batch_llm.hooks.workspace import open_workspace
from airflow_batch_llm.links.console import BatchConsoleLink
from airflow_batch_llm.operators.handle import RunHandle
from airflow_batch_llm.operators.outcome import add_to_assets, asset_extra, count_metrics, table_uri
from airflow_batch_llm.triggers.abandonment import TaskKey, is_given_up
from airflow_batch_llm.triggers.llm_batch import LLMBatchTrigger

if TYPE_CHECKING:
    from airflow_batch_llm.stage.finishing import Finished
    from airflow_batch_llm.stage.run import Pause, Run

#: Only a net below the trigger's own deadline: where Airflow's timeout passes first, the task counts as failed.
_DEFER_SLACK_SECONDS = CANCEL_GRACE_SECONDS + 1800.0

#: A worker that is told to end is killed soon after.
_ON_KILL_SECONDS = 20.0

Warn = Callable[[Context], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A run, ready to be moved forward, and the handle by which others find it."""

    run: "Run"
    handle: RunHandle


class RunOperator(BaseOperator):
    """The part of an operator that waits for a run and lands it.

    :param workspace: URI of the folder that holds the run folders; None for the configured one
    :param deferrable: whether the task gives its worker slot away while it waits
    :param cancel_on_kill: whether running batches are cancelled when the task is marked failed or successful, or its Dag
        run is; a clear, a retry or an evicted worker never cancels
    :param warn_after: after so much time of waiting somebody is told, once
    :param on_warning: whom to tell: a notifier or another function of the task's context; None for the log alone
    """

    operator_extra_links = (BatchConsoleLink(),)

    def __init__(
        self,
        *,
        workspace: str | None = None,
        deferrable: bool | None = None,
        cancel_on_kill: bool = True,
        warn_after: timedelta | float | None = None,
        on_warning: Warn | Sequence[Warn] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.workspace = workspace
        self.deferrable = (
            conf.getboolean("operators", "default_deferrable", fallback=False)
            if deferrable is None
            else deferrable
        )
        self.cancel_on_kill = cancel_on_kill
        self.warn_after = warn_after
        self.on_warning = on_warning
        self.console_url: str | None = None
        self._task_key: TaskKey | None = None
        self._handle: RunHandle | None = None

    def open_run(self, context: Context, spool: Path) -> Opened:
        """Make the run with all its parts."""
        raise NotImplementedError

    def execute(self, context: Context) -> Any:
        """Go on from where the run folder says that the run is."""
        from airflow_batch_llm.stage.run import Pause

        with self._opened(context) as opened:
            state = self._moved(context, opened)
            if not isinstance(state, Pause):
                return self._end(context, opened, state)
            self.say_pause(context, opened, state)
        return self._defer(opened.handle, state)

    def look(self, context: Context, event: Any = None) -> Any:  # noqa: ARG002 - it says only that one should look
        """Go on after a deferral."""
        return self.execute(context)

    @contextmanager
    def _opened(self, context: Context) -> Iterator[Opened]:
        """The run for as long as it is worked on. Our errors leave as Airflow's, which know whether to retry."""
        self._task_key = TaskKey.of(context["ti"])
        with tempfile.TemporaryDirectory(prefix="batch-llm-") as spool, translated_errors():
            opened = self.open_run(context, Path(spool))
            self._handle = opened.handle
            try:
                yield opened
            finally:
                parts = opened.run.parts
                for part in (parts.provider, parts.target):
                    with suppress(
                        BatchLLMError
                    ):  # what was done is done; a connection that will not close is no failure
                        part.close()

    def _moved(self, context: Context, opened: Opened) -> "Pause | Finished":
        from airflow_batch_llm.stage.drive import complete

        if self.deferrable:
            return opened.run.advance()
        return complete(opened.run, on_pause=lambda pause: self.say_pause(context, opened, pause))

    def _end(self, context: Context, opened: Opened, finished: "Finished") -> dict[str, Any]:
        from airflow_batch_llm.core.report import to_xcom

        handle = opened.handle
        report = to_xcom(finished.report, replace(finished.about, llm_conn_id=handle.llm_conn_id))
        self.log.info("%s", finished.report.verdict)
        self._link_to(opened, finished.about.batch_ids)
        count_metrics(finished.report, finished.about, {"dag_id": self.dag_id, "task_id": self.task_id})
        if self.outlets:
            uri = table_uri(opened.run.parts.target.asset_uri, handle.target)
            add_to_assets(context, self.outlets, uri, asset_extra(report))
        if not finished.report.passed and self.do_xcom_push:
            context["ti"].xcom_push(key="report", value=report)  # a failed task returns nothing
        finished.raise_for_verdict()
        return report

    def say_pause(self, context: Context, opened: Opened, pause: "Pause") -> None:
        """A line for people, a link to the batch, and a warning where it is due."""
        deadline = _moment(pause.watch.deadline)
        wake = "" if pause.watch.wake_at is None else f" Looks again at {_moment(pause.watch.wake_at)}."
        self.log.info("%s.%s The run's time ends at %s.", pause.waiting, wake, deadline)
        self._link_to(opened, pause.watch.batch_ids)

    def _link_to(self, opened: Opened, batch_ids: Sequence[str]) -> None:
        if batch_ids:
            self.console_url = opened.run.parts.provider.console_url(batch_ids[-1])

    def _defer(self, handle: RunHandle, pause: "Pause") -> NoReturn:
        trigger = LLMBatchTrigger(
            model_id=handle.model_id,
            llm_conn_id=handle.llm_conn_id,
            llm_hook_params=handle.llm_hook_params,
            watch=asdict(pause.watch),
            cancel_on_kill=self.cancel_on_kill,
        )
        remaining = max(0.0, pause.watch.deadline - time.time()) + _DEFER_SLACK_SECONDS
        self.defer(trigger=trigger, method_name="look", timeout=timedelta(seconds=remaining))

    def on_kill(self) -> None:
        """Cancel what is at the provider if the task has been given up.

        Airflow calls this in a signal's handler, which may have interrupted a talk with Airflow that another cannot
        begin before. So it is done in a thread, and left undone if it takes long: the next attempt knows the batches.
        """
        if not self.cancel_on_kill or self._task_key is None or self._handle is None:
            return
        killing = threading.Thread(
            target=self._cancel_if_given_up, args=(self._task_key, self._handle), daemon=True
        )
        killing.start()
        killing.join(_ON_KILL_SECONDS)

    def _cancel_if_given_up(self, key: TaskKey, handle: RunHandle) -> None:
        from airflow_batch_llm.stage.cancelling import cancel_run
        from airflow_batch_llm.stage.folder import RunFolder

        if not is_given_up(key):
            return
        provider = llm_provider(handle.llm_conn_id, handle.model_id, handle.llm_hook_params)
        try:
            folder = RunFolder(workspace=open_workspace(handle.workspace), run=handle.run)
            cancelled = cancel_run(folder, provider)
        finally:
            provider.close()
        self.log.info("The task has been given up; %d batches are cancelled.", len(cancelled))


@contextmanager
def translated_errors() -> Iterator[None]:
    """Errors that another attempt may not meet are retried; all others fail the task for good."""
    try:
        yield
    except BatchLLMError as error:
        kind = AirflowException if error.retryable else AirflowFailException
        raise kind(f"{type(error).__name__}: {error}") from error


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
