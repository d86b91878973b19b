"""Drive a run from its first row to its report in one process: in scripts, notebooks and tasks without a triggerer."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Self

from airflow_batch_llm.core.model import BatchStatus
from airflow_batch_llm.core.printing import printable
from airflow_batch_llm.core.waiting import (
    Cancel,
    Check,
    Outage,
    Reply,
    Sleep,
    Tell,
    WaitProgress,
    Watch,
    Wish,
    drive,
    waiting,
)
from airflow_batch_llm.providers.steps import no_longer_than
from airflow_batch_llm.stage.land.finishing import Finished
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.run import Pause, Run

if TYPE_CHECKING:
    from rich.console import Console


class Progress:
    """Shows a bar of answered requests below the log lines.

    with Progress() as progress:
        finished = progress.complete(run)
    """

    def __init__(self, console: "Console | None" = None) -> None:
        """`console`: where to show it; by default standard output, or the notebook."""
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Bars(*columns, console=console)
        self._bar = self._bars.add_task("planning", total=None)
        self._headway = WaitProgress()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def complete(self, run: Run) -> Finished:
        """Do as `complete` does, and show the progress."""
        shown = replace(run, parts=replace(run.parts, log=self.say))
        finished = complete(shown, on_pause=self.on_pause, on_check=self.on_check)
        requests = finished.report.requests
        self._bars.update(self._bar, description="done", total=requests, completed=requests)
        return finished

    def say(self, message: str) -> None:
        """Print a line above the bar. For `Parts.log`."""
        self._bars.console.print(printable(message), markup=False, highlight=False)

    def on_pause(self, pause: Pause) -> None:
        """Show that the run waits. For `complete`."""
        self._bars.update(self._bar, description="waiting")
        self.say(pause.waiting)

    def on_check(self, statuses: Mapping[str, BatchStatus]) -> None:
        """Show the result of a look at batches. For `complete`."""
        self._headway.add(statuses)
        requests, finished = self._headway.requests, self._headway.finished
        self._bars.update(self._bar, total=requests or None, completed=finished)


@dataclass(slots=True, kw_only=True)
class Waiter:
    """Performs the actions of the waiting generator with a provider's synchronous client."""

    parts: Parts
    sleep: Callable[[float], None] = time.sleep
    on_check: Callable[[Mapping[str, BatchStatus]], None] | None = None
    is_talking: bool = False
    """The log gets a line before each pause."""
    outage: Outage = field(default_factory=Outage)
    """The failed looks in a row so far."""
    headway: WaitProgress = field(default_factory=WaitProgress)

    def noting(self, pause: Pause) -> Watch:
        """Count the worker's own look, and return what to wait for."""
        if pause.error is not None or pause.watch.batch_ids:
            self._tell(self.outage.after(pause.error, self.parts.clock()))
        return replace(pause.watch, outage=self.outage)

    def _tell(self, tell: Tell) -> None:
        self.outage = tell.outage
        if tell.message:
            (self.parts.warn if tell.outage.looks else self.parts.log)(tell.message)

    def perform(self, wish: Wish) -> Reply:
        match wish:
            case Check(batch_ids=batch_ids, within=within):
                with no_longer_than(within):
                    seen = self.parts.provider.check(batch_ids)
                self.headway.add(seen)
                if self.on_check is not None:
                    self.on_check(seen)
                return seen
            case Cancel(batch_id=batch_id, within=within):
                with no_longer_than(within):
                    self.parts.provider.cancel(batch_id)
            case Tell():
                self._tell(wish)
            case Sleep(seconds=seconds):
                if self.is_talking:
                    self.parts.log(self.headway.until(time.time(), seconds))
                self.sleep(seconds)
        return None


def complete(
    run: Run,
    *,
    sleep: Callable[[float], None] = time.sleep,
    on_pause: Callable[[Pause], None] | None = None,
    on_check: Callable[[Mapping[str, BatchStatus]], None] | None = None,
) -> Finished:
    """Move the run forward until it is over, waiting in between. `on_check` is called after each look at batches."""
    parts = run.parts
    waiter = Waiter(parts=parts, sleep=sleep, on_check=on_check)
    while True:
        state = run.advance()
        if isinstance(state, Finished):
            return state
        if on_pause is not None:
            on_pause(state)
        watch = waiter.noting(state)
        drive(waiting(watch, parts.clock, random.random), waiter.perform)
