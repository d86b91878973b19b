"""`runs`: the runs of a workspace, and how far the unfinished ones have come."""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from airflow_batch_llm.commands.exit_code import ends_with_a_code, say
from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.core.printing import counted, printable
from airflow_batch_llm.stage.inspection import Inspected, inspect, moment
from airflow_batch_llm.stage.records.run_index import RunIndex, RunRecord, RunState, index_name
from airflow_batch_llm.store import Workspace

if TYPE_CHECKING:
    from rich.table import Table

_WATCH_SECONDS = 5.0
_WIDTH = 200  # of a table that goes to a file or a pipe


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """A run as it is listed, and its folder's state if it has not ended."""

    record: RunRecord
    live: Inspected | None

    def state(self, now: float) -> str:
        """Return the run's state for people."""
        if self.record.state is not RunState.BEGUN:
            return self.record.state.value
        due = self.record.due if self.live is None else self.live.deadline
        return "late" if due is not None and due < now else "running"

    def to_json(self, now: float) -> dict[str, Any]:
        """Return it for other programs."""
        progress = None
        if self.live is not None:
            shards = Counter(shard.state.value for shard in self.live.shards)
            progress = {"shards": shards, "spent_usd": self.live.spent_usd, "next": self.live.next}
        return {**asdict(self.record), "state": self.state(now), "progress": progress}


def runs(
    uri: Annotated[str, typer.Argument(metavar="WORKSPACE", help="Path or URI of the workspace.")],
    dag: Annotated[str | None, typer.Option("--dag", help="Only runs of this Dag.")] = None,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Only runs that have not ended.")] = False,
    deployment: Annotated[
        str | None, typer.Option("--deployment", help="Only runs of this deployment.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="The most runs to show.")] = 20,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again every five seconds, until all of them have ended.")
    ] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="First add runs that earlier releases did not list.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
) -> None:
    """List the runs of a workspace, the last first: state, rows, and dollars spent of the budget.

    With --rebuild it reads all run folders once and writes the list. Otherwise it writes nothing.
    """
    with ends_with_a_code():
        index = RunIndex(workspace=Workspace.open(uri, probe=rebuild))
        if rebuild:
            say(f"{counted(index.rebuild(), 'run')} found in run folders.", err=True)
        looks = _looks(index, _Wanted(dag, deployment, limit, unfinished=unfinished), watch=watch)
        if as_json:
            for seen in looks:
                listed = [one.to_json(time.time()) for one in seen]
                say(orjson.dumps(listed, option=0 if watch else orjson.OPT_INDENT_2).decode())
        else:
            _show(looks)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The runs that are asked for."""

    dag: str | None
    deployment: str | None
    limit: int
    unfinished: bool = False


def _looks(index: RunIndex, wanted: _Wanted, *, watch: bool) -> Iterator[list[_Seen]]:
    """Look once; or again and again, until all runs that are shown have ended."""
    while True:
        seen = _look(index, wanted)
        yield seen
        if not watch or all(one.live is None for one in seen):
            return
        time.sleep(_WATCH_SECONDS)


def _look(index: RunIndex, wanted: _Wanted) -> list[_Seen]:
    """List days from the last one until there are enough runs, and read the folders of those that have not ended."""
    found: list[_Seen] = []
    for day in index.days(wanted.deployment):
        runs = [
            run
            for run in index.runs([day], wanted.deployment)
            if (wanted.dag is None or run.dag == index_name(wanted.dag))
            and (not wanted.unfinished or run.state is RunState.BEGUN)
        ]
        for record in index.read(runs[: wanted.limit - len(found)]).values():
            is_live = record.state is RunState.BEGUN
            live = inspect(index.folder(record), time.time()) if is_live else None
            found.append(_Seen(record=record, live=live))
        if len(found) == wanted.limit:
            break
    return found


def _show(looks: Iterator[list[_Seen]]) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    with Live(console=console, auto_refresh=False) as live:
        for seen in looks:
            live.update(_table(seen) if seen else "No runs are listed. See --rebuild.", refresh=True)


def _table(seen: Sequence[_Seen]) -> "Table":
    from rich.box import SIMPLE
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE, pad_edge=False)
    for column in ("began", "state", "run", "model", "target"):
        table.add_column(column, overflow="fold")
    for column in ("rows", "spent", "budget"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("next")
    for one in seen:
        record = one.record
        cells = (
            moment(record.started),
            one.state(time.time()),
            record.name,
            f"{record.provider}:{record.model}",
            record.target,
            _rows(one),
            f"${record.usd if one.live is None else one.live.spent_usd:,.4f}",
            "" if record.budget_usd is None else f"${record.budget_usd:,.2f}",
            "" if one.live is None else one.live.next,
        )
        table.add_row(*(escape(printable(cell)) for cell in cells))
    return table


def _rows(one: _Seen) -> str:
    """Return the good rows of all."""
    good = one.record.succeeded if one.live is None else one.live.outcomes.get(Outcome.SUCCEEDED.value, 0)
    return f"{good:,}/{one.record.rows:,}"
