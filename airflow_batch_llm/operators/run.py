"""Drive a run to its end: the task works, defers, and works again.

The state of the run is in its folder, never in Airflow, so any attempt on any worker goes on from there. No state
travels through `defer(kwargs=…)` or XCom.
"""

import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.common.compat.sdk import BaseOperator
from airflow.sdk import Context

from airflow_batch_llm.core.checked import seconds
from airflow_batch_llm.core.printing import counted
from airflow_batch_llm.core.waiting import CANCEL_GRACE_SECONDS, Outage, WaitProgress, Watch, drive, waiting
from airflow_batch_llm.errors import BatchLLMError
from airflow_batch_llm.hooks.arguments import deployment, is_deferrable, settling_seconds
from airflow_batch_llm.hooks.handle import Departures, RunHandle, TaskKey, doer
from airflow_batch_llm.hooks.llm import llm_provider
from airflow_batch_llm.hooks.monitoring import (
    gauge_open_since,
    quiet_sdks,
    rendering,
    tell_of_triggerer,
    translated_errors,
)
from airflow_batch_llm.hooks.object_storage import open_workspace
from airflow_batch_llm.links import BatchConsoleLink, RunPageLink
from airflow_batch_llm.operators.reporting import (
    Lineage,
    WaitWarning,
    add_to_assets,
    asset_extra,
    count_metrics,
    gauge_budgets,
    is_lineage_wanted,
    planned_lineage,
    to_openlineage,
    unfailing,
)
from airflow_batch_llm.store import Workspace
from airflow_batch_llm.triggers.llm_batch import LLMBatchTrigger, is_given_up
from airflow_batch_llm.warehouses import table_uri

if TYPE_CHECKING:
    from airflow_batch_llm.core.journal import Doer
    from airflow_batch_llm.stage.drive import Waiter
    from airflow_batch_llm.stage.land.finishing import Finished
    from airflow_batch_llm.stage.records.folder import RunFolder
    from airflow_batch_llm.stage.records.plan import Plan
    from airflow_batch_llm.stage.run import Pause, Run


def _import_stage() -> None:
    """Import the stage with the garbage collector paused, which would scan it for a tenth of a second."""
    from airflow_batch_llm.providers.clients import gc_paused

    with gc_paused():
        import airflow_batch_llm.stage.drive
        import airflow_batch_llm.stage.run  # noqa: F401


def run_name(context: Context, workspace: Workspace, asked: object) -> str:
    """Return the run folder's path. `asked` is whatever distinguishes a mapped task's item from the others."""
    from airflow_batch_llm.stage.records.folder import run_path

    task_instance: Any = context["ti"]
    names = (task_instance.dag_id, task_instance.task_id, task_instance.run_id)
    run = run_path(*names, deployment=deployment())
    map_index = task_instance.map_index
    if map_index is None or map_index < 0:
        return run
    item = _item(workspace, run, f"{map_index}-{task_instance.max_tries}", asked)
    return run_path(*names, item, deployment=deployment())


def _item(workspace: Workspace, run: str, attempt: str, asked: object) -> str:
    """Return the name of the item that a mapped task's index means.

    All tries of one task take the item of the first try, whatever templates render to now. After a clear the item is
    found by what is asked, since the list may have another order by then.
    """
    record = f"{run}/items/{attempt}.json"
    item = hashlib.blake2b(repr(asked).encode(), digest_size=8).hexdigest()
    workspace.create(record, item.encode())
    recorded = workspace.read(record)
    assert recorded is not None, "it was created here, or before"
    return recorded.decode()


#: A margin above the trigger's own deadline: if Airflow's timeout passes first, the task counts as failed.
_DEFER_SLACK_SECONDS = CANCEL_GRACE_SECONDS + 1800.0

#: Airflow kills a worker soon after it asks the worker to end.
_ON_KILL_SECONDS = 20.0

Warn = Callable[[Context], Any]


class RunOperator(BaseOperator):
    """The part of an operator that waits for a run and lands it.

    :param workspace: URI of the folder that holds the run folders; None for the configured one
    :param deferrable: whether the task gives its worker slot away while it waits
    :param cancel_on_kill: whether running batches are cancelled when the task is marked failed or successful, or its Dag
        run is; a clear, a retry or an evicted worker never cancels
    :param warn_after: warn once if the run is still waiting after this long
    :param on_warning: a notifier or another function of the task's context, called for that warning, and once if three
        looks in a row have not reached the provider; None for the log alone
    """

    operator_extra_links = (BatchConsoleLink(), RunPageLink())

    #: Tasks that go on with the run, and with its batches, if this one is given up.
    successors: Sequence[str] = ()

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
        self.deferrable = is_deferrable(deferrable)
        self.cancel_on_kill = cancel_on_kill
        self.warn_after = warn_after
        self.on_warning = on_warning
        self.console_url: str | None = None
        self._task_key: TaskKey | None = None
        self._outage = Outage()
        self._handles: tuple[RunHandle, ...] = ()
        self._lineages: list[Lineage] = []
        self._open: dict[str, float] = {}  # when runs were planned that have not ended

    @property
    def page_run(self) -> str | None:
        """The run that the page in Airflow's UI shows for this task.

        None if there is none, or the page does not know its workspace.
        """
        return next((handle.run for handle in self._handles if handle.workspace is None), None)

    def handles(self, context: Context) -> Sequence[RunHandle]:
        """Return the runs that this task drives: the same ones at each of its tries."""
        raise NotImplementedError

    def open_run(self, context: Context, handle: RunHandle, spool: Path) -> "Run":
        """Look the connections up and put the parts of a run together. Nothing is opened yet."""
        raise NotImplementedError

    def execute(self, context: Context) -> Any:
        """Begin a try: go on from the state in the run folders."""
        return self._go_on(context, begins=True)

    def look(self, context: Context, event: Any = None) -> Any:
        """Go on after a deferral. The event only says how long the provider has not been reached."""
        self._outage = Outage(**(event or {}).get("outage", {}))
        return self._go_on(context, begins=False)

    def _go_on(self, context: Context, *, begins: bool) -> Any:
        quiet_sdks()
        _import_stage()
        self._task_key = TaskKey.of(context["ti"])
        with translated_errors(), _Departing(self._leave):
            self._handles = tuple(self.handles(context))
            if begins:
                for handle in self._handles:
                    Departures(workspace=open_workspace(handle.workspace), run=handle.run).come_back()
            failed: list[BatchLLMError] = []
            states = [(handle, self._tried(context, handle, failed)) for handle in self._handles]
            watches = [(handle, state) for handle, state in states if isinstance(state, Watch)]
            if watches:
                handle, watch = watches[0]
                return self._defer(handle, replace(watch, wake_at=_earliest(watches)), first=begins)
            if failed:
                raise failed[0]
            return self.returned(context, [state for _, state in states if isinstance(state, Ended)])

    def _leave(self) -> None:
        """Note in the run folders that this try fails by itself, so that no other task cancels the batches that it leaves."""
        with suppress(BatchLLMError):  # the task's own error says more
            for handle in self._handles:
                Departures(workspace=open_workspace(handle.workspace), run=handle.run).leave()

    def render_template(
        self, content: Any, context: Context, jinja_env: Any = None, seen_oids: set[int] | None = None
    ) -> Any:
        """Render a template, and name the field if that fails."""
        with rendering(self, content, context):
            return super().render_template(content, context, jinja_env, seen_oids)

    def step(self, run: "Run") -> "Pause | Finished | None":
        """Move a run as far as it goes without waiting. Returns None if this task has nothing left to do."""
        return run.advance()

    def returned(self, context: Context, ended: Sequence["Ended"]) -> Any:  # noqa: ARG002 - for those that ask Airflow
        """Return the task's XCom value if all of its runs are good enough."""
        for one in ended:
            one.finished.raise_for_verdict()
        return ended[0].report

    def _tried(
        self, context: Context, handle: RunHandle, failed: list[BatchLLMError]
    ) -> "Watch | Ended | None":
        """Move a run. An error of one run does not stop the others."""
        try:
            return self._moved(context, handle)
        except BatchLLMError as error:
            if len(self._handles) > 1:
                self.log.warning("The run %s cannot go on: %s", handle.run, error.in_full)
            failed.append(error)
            return None

    def _moved(self, context: Context, handle: RunHandle) -> "Watch | Ended | None":
        """Move a run as far as it goes without waiting. If the task is not deferrable, wait and go on until it has ended."""
        from airflow_batch_llm.stage.drive import Waiter
        from airflow_batch_llm.stage.run import Pause
        from airflow_batch_llm.stage.telemetry import span, waited

        with self.opened(context, handle) as run:
            waiter = Waiter(parts=run.parts, is_talking=True, outage=self._outage)
            while isinstance(state := self.step(run), Pause):
                watch = self._alerted(context, waiter, self._paused(context, handle, run, state), state)
                if self.deferrable:
                    return watch
                waiter.headway = WaitProgress()
                with span("wait", **waited(handle.model_id, watch)):
                    drive(waiting(watch, time.time, random.random), waiter.perform)
            self._measure_open(handle, None)
            return None if state is None else self.ended(context, handle, run, state)

    @contextmanager
    def opened(self, context: Context, handle: RunHandle) -> Iterator["Run"]:
        """Open a run, and close its connections at the end of the block."""
        from airflow_batch_llm.stage.tidying import private_spool

        quiet_sdks()
        with private_spool() as spool:
            run = self.open_run(context, handle, spool)
            try:
                yield run
            finally:
                for part in (run.parts.provider, run.parts.source, run.parts.target):
                    with suppress(BatchLLMError):  # the work is done
                        if hasattr(part, "close"):  # files hold nothing open
                            part.close()

    def ended(self, context: Context, handle: RunHandle, run: "Run", finished: "Finished") -> "Ended":
        """Report a run's result to Airflow, while its connections are open."""
        from airflow_batch_llm.core.report import to_xcom

        report = to_xcom(finished.report, replace(finished.about, llm_conn_id=handle.llm_conn_id))
        if finished.report.passed:  # what has failed is told by the task's error
            self.log.info("%s", finished.report.verdict)
        self._link_to(run, finished.about.batch_ids)
        if run.stage is None or not run.stage.plan_only:
            self._observe(handle, run, finished)
        if self.outlets:
            uri = table_uri(run.parts.target.asset_uri, handle.target)
            add_to_assets(context, self.outlets, uri, asset_extra(report))
        if not finished.report.passed and self.do_xcom_push:
            context["ti"].xcom_push(key="report", value=report)  # a task that fails returns nothing
        return Ended(finished=finished, report=report)

    def waiter(self, context: Context) -> dict[str, Any] | None:
        """Return the task that waits for the run, and its successors. Returns None if batches stay when the task is given up."""
        if not self.cancel_on_kill:
            return None
        return {**asdict(TaskKey.of(context["ti"])), "successors": list(self.successors)}

    def inputs(self, handle: RunHandle, run: "Run") -> tuple[str, ...]:  # noqa: ARG002 - for those that have the source
        """Return the URIs of the tables or files that the run has read, as far as this task knows."""
        return handle.inputs

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:  # noqa: ARG002 - Airflow's signature
        """Return the facets that Airflow's OpenLineage provider collects."""
        return to_openlineage(self._lineages) if self._lineages else None

    def _measure_open(self, handle: RunHandle, since: float | None) -> None:
        """Send since when the oldest of this task's runs has been open."""
        assert self._task_key is not None, "the task works"
        self._open = {run: at for run, at in self._open.items() if run != handle.run}
        if since is not None:
            self._open[handle.run] = since
        gauge_open_since(min(self._open.values(), default=0.0), **self._task_key.tags)

    def _measure_budgets(self, run: "Run", plan: "Plan") -> None:
        """Send how much of the shared budgets is used. Nothing depends on it."""
        from airflow_batch_llm.stage.budgets import Budgets

        if not plan.budgets:
            return
        with suppress(BatchLLMError):
            gauge_budgets(Budgets(parts=run.parts, folder=run.generation().folder).used(plan.budgets))

    def _observe(self, handle: RunHandle, run: "Run", finished: "Finished") -> None:
        """Send a run's metrics and note its lineage, while the connections are open. Nothing depends on them."""
        task = {"dag_id": self.dag_id, "task_id": self.task_id}
        with suppress(BatchLLMError):
            plan = run.generation().first
            count_metrics(finished.report, finished.about, plan.limits.max_cost_usd, **task)
            self._measure_budgets(run, plan)
            if is_lineage_wanted():
                with unfailing():
                    uris = self.inputs(handle, run), run.parts.target.asset_uri
                    self._lineages.append(planned_lineage(plan, *uris, finished))

    def _paused(self, context: Context, handle: RunHandle, run: "Run", pause: "Pause") -> Watch:
        """Log what the run waits for, and send a warning that is due."""
        watch = pause.watch
        wake = "" if watch.wake_at is None else f" Looks again at {_moment(watch.wake_at)} at the latest."
        self.log.info("%s.%s The run's time ends at %s.", pause.waiting, wake, _moment(watch.deadline))
        self._measure_open(handle, pause.plan.planned_at)
        self._measure_budgets(run, pause.plan)
        self._link_to(run, watch.batch_ids)
        after = seconds(self.warn_after)
        if after is None:
            return watch
        alarm = WaitWarning(workspace=run.parts.workspace, handle=handle, after=after)
        due = alarm.due_at(time.time())
        if time.time() < due:
            return replace(watch, wake_at=due if watch.wake_at is None else min(due, watch.wake_at))
        if alarm.take():
            self.log.warning("Still waiting after %g seconds. %s.", after, pause.waiting)
            self._warn(context)
        return watch

    def _alerted(self, context: Context, waiter: "Waiter", watch: Watch, pause: "Pause") -> Watch:
        """Count the worker's own look, and call `on_warning` once for an outage of the provider."""
        watch = replace(waiter.noting(replace(pause, watch=watch)), alerts=self.on_warning is not None)
        outage = watch.outage
        if not outage.is_told or outage.alerted:
            return watch
        waiter.outage = replace(outage, alerted=True)
        self._warn(context)
        return replace(watch, outage=waiter.outage)

    def _warn(self, context: Context) -> None:
        for tell in _several(self.on_warning):
            tell(context)

    def _link_to(self, run: "Run", batch_ids: Sequence[str]) -> None:
        if batch_ids:
            self.console_url = run.parts.provider.console_url(batch_ids[-1])

    def _defer(self, handle: RunHandle, watch: Watch, *, first: bool) -> NoReturn:
        tell_of_triggerer(self.log, first=first)
        watch = replace(watch, not_before=time.time() + settling_seconds())
        trigger = LLMBatchTrigger(
            model_id=handle.model_id,
            llm_conn_id=handle.llm_conn_id,
            llm_hook_params=handle.llm_hook_params,
            others=handle.others,
            watch=asdict(watch),
            cancel_on_kill=self.cancel_on_kill,
            successors=self.successors,
        )
        remaining = max(0.0, watch.deadline - time.time()) + _DEFER_SLACK_SECONDS
        self.defer(trigger=trigger, method_name="look", timeout=timedelta(seconds=remaining))

    def on_kill(self) -> None:
        """Cancel the run's batches if the task has been given up.

        Airflow calls this in a signal handler, which may have interrupted a request to Airflow that must end first. So
        a thread does it, and gives up if that takes long: the next attempt knows the batches.
        """
        if not self.cancel_on_kill or self._task_key is None:
            return
        killing = threading.Thread(target=self._cancel_if_given_up, args=(self._task_key,), daemon=True)
        killing.start()
        killing.join(_ON_KILL_SECONDS)

    def _cancel_if_given_up(self, key: TaskKey) -> None:
        try:
            if is_given_up(key, self.successors):
                gauge_open_since(0.0, **key.tags)
                for handle in self._handles:
                    self._cancel(handle, doer(key, handle))
            else:
                self.log.info(
                    "The worker is to end, but the task is not given up: its batches are left running."
                )
        except Exception as error:  # noqa: BLE001 - no other thread waits for this one
            self.log.warning(
                "Batches may be left running: Airflow, the workspace or the provider did not answer (%s). The next"
                " attempt goes on with them; if there is none, cancel them at the provider.",
                type(error).__name__,
            )

    def _cancel(self, handle: RunHandle, by: "Doer") -> None:
        from airflow_batch_llm.stage.records.folder import RunFolder
        from airflow_batch_llm.stage.send.sweeping import cancel_run

        provider = llm_provider(handle.llm_conn_id, handle.model_id, handle.llm_hook_params, handle.others)
        try:
            folder = RunFolder(workspace=open_workspace(handle.workspace), run=handle.run)
            cancelled = cancel_run(folder, provider, by)
        finally:
            provider.close()
        told = counted(len(cancelled.now), "batch")
        if cancelled.asked:
            told += f" and {counted(cancelled.asked, 'shard')} asked in real time"
        is_one = len(cancelled.now) + cancelled.asked == 1
        self.log.info("The task has been given up; %s %s cancelled.", told, "is" if is_one else "are")


class _Departing(AbstractContextManager[None]):
    """Calls a function if its block fails, but not if it defers. A generator would add frames to the logged stack."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave = leave

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            self._leave()


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenUp:
    """Asks Airflow whether a user has ended the task that waits for another run.

    Airflow does not call `on_kill` if the task is marked between its trigger's event and its worker's start.
    """

    workspace: Workspace
    log: Any

    def __call__(self, folder: "RunFolder", max_tries: int) -> bool:
        handle = RunHandle.of_run(self.workspace, folder.run, max_tries)
        if handle is None or handle.waiter is None:
            return False
        if Departures(workspace=self.workspace, run=folder.run).is_left():
            return False
        key = TaskKey(**{name: value for name, value in handle.waiter.items() if name != "successors"})
        try:
            return is_given_up(key, handle.waiter["successors"], or_gone=False)
        except Exception as error:  # noqa: BLE001 - whatever Airflow answers; the run is left as it is
            self.log.warning(
                "Airflow does not say whether the run %s is given up (%s).", folder.run, type(error).__name__
            )
            return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A run that has ended, and its report."""

    finished: "Finished"
    report: dict[str, Any]


def _several(value: Warn | Sequence[Warn] | None) -> Sequence[Warn]:
    if value is None:
        return ()
    return (value,) if callable(value) else value


def _earliest(watches: Sequence[tuple[RunHandle, Watch]]) -> float | None:
    """Return when the first of several runs needs a worker. The trigger looks at the batches of one of them."""
    return min((watch.wake_at for _, watch in watches if watch.wake_at is not None), default=None)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
