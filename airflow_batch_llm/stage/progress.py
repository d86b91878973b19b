"""A run shown while it goes on, at a terminal or in a notebook: what has been answered, and what is said.

It watches what `complete` and the parts tell, and decides nothing.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Self

from airflow_batch_llm.core.model import BatchStatus
from airflow_batch_llm.core.printing import printable
from airflow_batch_llm.core.waiting import Headway
from airflow_batch_llm.stage.drive import complete
from airflow_batch_llm.stage.land.finishing import Finished
from airflow_batch_llm.stage.run import Pause, Run

if TYPE_CHECKING:
    from rich.console import Console


class Progress:
    """A bar of answered requests, under the lines that are said.

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
        self._headway = Headway()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def complete(self, run: Run) -> Finished:
        """`complete`, shown."""
        shown = replace(run, parts=replace(run.parts, say=self.say))
        finished = complete(shown, on_pause=self.on_pause, on_check=self.on_check)
        requests = finished.report.requests
        self._bars.update(self._bar, description="done", total=requests, completed=requests)
        return finished

    def say(self, message: str) -> None:
        """A line above the bar: for `Parts.say`."""
        self._bars.console.print(printable(message), markup=False, highlight=False)

    def on_pause(self, pause: Pause) -> None:
        """The run waits: for `complete`."""
        self._bars.update(self._bar, description="waiting")
        self.say(pause.waiting)

    def on_check(self, statuses: Mapping[str, BatchStatus]) -> None:
        """Batches have been looked at: for `complete`."""
        self._headway.add(statuses)
        requests, finished = self._headway.requests, self._headway.finished
        self._bars.update(self._bar, total=requests or None, completed=finished)
