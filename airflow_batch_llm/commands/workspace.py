"""Commands about a whole workspace: `runs` lists its runs, and `erase` takes one person's rows out of it."""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from airflow_batch_llm.commands.exit_code import ExitCode, ends_with_a_code, say
from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.core.printing import counted, printable
from airflow_batch_llm.stage.erasing import ErasedRun, Erasure, HeldBatch, Options
from airflow_batch_llm.stage.inspection import Inspected, inspect, moment
from airflow_batch_llm.stage.person import Person
from airflow_batch_llm.stage.records.run_index import RunIndex, RunRecord, RunState, index_name
from airflow_batch_llm.stage.tidying import private_spool, sweep_spools
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
    """Look once, or repeatedly until all shown runs have ended."""
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
    """Return the sum of the runs' good rows."""
    good = one.record.succeeded if one.live is None else one.live.outcomes.get(Outcome.SUCCEEDED.value, 0)
    return f"{good:,}/{one.record.rows:,}"


def erase(
    uri: Annotated[str, typer.Argument(metavar="WORKSPACE", help="Path or URI of the workspace.")],
    key: Annotated[list[str], typer.Option("--key", help="The key's value. Once for each key column.")],
    key_column: Annotated[
        list[str] | None, typer.Option("--key-column", help="The column of each --key, in their order.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", help="Only runs that write to this table.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look, and change nothing.")] = False,
    even_unfinished: Annotated[
        bool, typer.Option("--even-unfinished", help="Also runs that nobody will finish.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Erase one person's rows, prompts and answers from the run folders of a workspace.

    Prints the SQL for the tables and the vendor's batches, which it does not touch. May be repeated at any time.
    """
    with ends_with_a_code(), private_spool() as scratch:
        sweep_spools(Path(gettempdir()))
        erasure = Erasure(
            workspace=Workspace.open(uri, probe=False),
            person=Person(values=tuple(key), columns=tuple(key_column or ()), target=target),
            scratch=scratch,
            options=Options(dry_run=dry_run, even_unfinished=even_unfinished),
        )
        runs = list(erasure.run())
        leftovers = erasure.leftovers()
    if as_json:
        done = {"dry_run": dry_run, "leftovers": leftovers, "runs": [asdict(run) for run in runs]}
        say(orjson.dumps(done, option=orjson.OPT_INDENT_2).decode())
    else:
        say("\n".join(_erased_told(runs, leftovers, dry_run=dry_run)))
    if any(run.left for run in runs):
        raise typer.Exit(ExitCode.FAILED)


def _erased_told(runs: list[ErasedRun], leftovers: int, *, dry_run: bool) -> list[str]:
    erased = "would be erased" if dry_run else "erased"
    lines = [_run_line(run, erased) for run in runs]
    if leftovers:
        lines.append(f"{counted(leftovers, 'unfinished file')} of killed workers {erased}")
    statements = sorted(
        {statement for run in runs for statement in run.statements if run.rows or run.examples}
    )
    if statements:
        lines += ["", "Not touched: the tables. Run there:", *(f"  {statement}" for statement in statements)]
    batches = [batch for run in runs for batch in run.batches]
    if batches:
        lines += ["", "Not touched: copies at the vendor:", *map(_batch_line, batches)]
    if not runs:
        lines.append("No run folder holds a row with this key.")
    return lines


def _run_line(run: ErasedRun, erased: str) -> str:
    held = [
        counted(count, noun)
        for count, noun in (
            (run.rows, "row"),
            (run.prompts, "prompt"),
            (run.answers, "answer"),
            (run.examples, "example"),
            (run.unplanned, "unused plan"),
        )
        if count
    ]
    what = ", ".join(held) or "nothing, as its payloads are gone"
    if run.left:
        return f"{run.path}: NOT erased, since {run.left}: {what}. Finish the run, or see --even-unfinished."
    return f"{run.path}: {erased}: {what}"


def _batch_line(batch: HeldBatch) -> str:
    until = (
        "until it is deleted there" if batch.until is None else f"until {moment(batch.until)} at the latest"
    )
    upload = f", requests in {batch.upload}" if batch.upload else ""
    sure = "" if batch.is_sure else " It may hold the row: the run folder no longer knows."
    return f"  {batch.provider} batch {batch.batch_id}{upload}, {until}.{sure}"
