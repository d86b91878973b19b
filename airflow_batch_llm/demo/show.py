"""Show a run's progress and its result at the terminal."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from airflow_batch_llm.core.printing import counted

_LOOK_SECONDS = 0.5
_WIDTH = 32  # of a cell, so that a table fits a terminal

_DOING: Mapping[str | None, str] = MappingProxyType(
    {
        None: "waiting for the scheduler",
        "scheduled": "waiting for a worker",
        "queued": "waiting for a worker",
        "running": "working",
        "deferred": "waiting, and no worker is held",
        "up_for_retry": "waiting for another try",
        "success": "done",
        "failed": "failed",
    }
)

_ENDED = ("success", "failed")


def follow(console: Console, state: Callable[[], str | None], answered: Callable[[], int]) -> str:
    """Show a task until it has ended, and how many requests the model has answered meanwhile. Its state is given."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TextColumn("answered"),
        TimeElapsedColumn(),
    )
    before, doing = answered(), ""
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=None)
        while True:
            now = state()
            said = _DOING.get(now, now or "")
            if said != doing and not console.is_terminal:
                progress.console.print(f"  {said}")
            doing = said
            done = answered() - before
            progress.update(bar, description=f"{said:<30}", completed=done)
            if now in _ENDED:
                progress.update(bar, total=done)
                return str(now)
            time.sleep(_LOOK_SECONDS)


def show_rows(console: Console, title: str, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A few rows of a table."""
    table = Table(title=title, title_justify="left")
    for name in names:
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console.print(table)


def show_report(console: Console, report: Mapping[str, Any]) -> None:
    """Print the result and the cost of a run."""
    why = ", ".join(f"{count:,} {reason}" for reason, count in report["why"].items())
    usage, cost = report["usage"], report["cost"]
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_row("verdict", report["verdict"])
    table.add_row("rows read", why)
    table.add_row("requests bought", f"{report['requests']:,} in {counted(len(report['batches']), 'batch')}")
    table.add_row("tokens", f"{usage['input_tokens']:,} in, {usage['output_tokens']:,} out")
    table.add_row("cost", f"${cost['usd']:.4f} by batch; one by one, in real time, ${cost['list_usd']:.4f}")
    console.print(table)


def _cell(value: Any) -> str:
    text = "NULL" if value is None else " ".join(str(value).split())
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"
