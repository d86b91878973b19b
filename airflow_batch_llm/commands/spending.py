"""Commands about money: `usage` reads what runs have spent in their ledger, and `budget` what shared budgets have left."""

import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import date, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from airflow_batch_llm.commands.exit_code import ends_with_a_code, say
from airflow_batch_llm.commands.spec import LedgerFile, read_ledger_file
from airflow_batch_llm.core.budget import BudgetState, Hold, SharedBudget, read_budgets
from airflow_batch_llm.core.printing import counted, printable
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.stage.budgets import budget_books
from airflow_batch_llm.stage.inspection import moment
from airflow_batch_llm.stage.land.ledger import ledger_rows
from airflow_batch_llm.stage.land.ledger import rebuild as rebuilt
from airflow_batch_llm.stage.parts import UsageTable
from airflow_batch_llm.store import Workspace
from airflow_batch_llm.warehouses.base import Warehouse
from airflow_batch_llm.warehouses.registration import SpecFile

if TYPE_CHECKING:
    from rich.table import Table


_WIDTH = 160  # of a table that goes to a file or a pipe
_BAR = 24
_ADDED = ("requests", "input_tokens", "output_tokens", "usd", "saved_usd", "stray_usd", "unpriced")
_COLUMNS = ("run_id", "rows_succeeded", "dag_id", "provider", "model", "prompt_version", "team", *_ADDED)


class By(StrEnum):
    """Choose the groups by which the dollars are added up."""

    DAY = "day"
    DAG = "dag"
    MODEL = "model"
    PROMPT = "prompt"
    TEAM = "team"


@dataclass(slots=True, kw_only=True)
class _Sum:
    """The rows of one day, Dag, model, prompt or team, added up."""

    name: str
    runs: int = 0
    rows: int = 0
    """Good answers."""
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0
    saved_usd: float = 0.0
    stray_usd: float = 0.0
    unpriced: int = 0

    def add(self, row: dict[str, Any]) -> None:
        """Add a row of the ledger."""
        self.rows += row["rows_succeeded"] or 0
        for name in _ADDED:
            setattr(self, name, getattr(self, name) + (row[name] or 0))


def usage(
    ledger_file: Annotated[
        Path,
        typer.Argument(
            metavar="LEDGER.YAML",
            help="A file with usage_table and usage_warehouse, such as that of a stage.",
        ),
    ],
    by: Annotated[By, typer.Option("--by", help="What the dollars are added up by.")] = By.DAY,
    since: Annotated[
        datetime | None, typer.Option("--since", formats=["%Y-%m-%d"], help="The first day, in UTC.")
    ] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="First write all runs from the run folders of the workspace.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show what runs have spent, from their ledger: dollars, rows, requests and tokens."""
    with ends_with_a_code():
        file = read_ledger_file(ledger_file)
        beside = SpecFile(folder=ledger_file.absolute().parent, environment=os.environ)
        if rebuild:
            found = rebuilt(_table(file, beside), _workspace(file, beside), file.deployment)
            say(f"{counted(found, 'run')} written to {file.usage_table}.", err=True)
        with closing(_opened(file, beside)) as warehouse:
            rows = ledger_rows(warehouse, file.usage_table, _COLUMNS)
            sums = _sums(rows, by, None if since is None else since.date())
    if as_json:
        say(orjson.dumps([asdict(one) for one in sums], option=orjson.OPT_INDENT_2).decode())
    else:
        _show(sums, by)


def _opened(file: LedgerFile, beside: SpecFile) -> Warehouse:
    kind, field = file.database.chosen
    assert kind.open_section is not None, "the section has a field for it"
    return kind.open_section(field, beside)


def _table(file: LedgerFile, beside: SpecFile) -> UsageTable:
    return UsageTable(name=file.usage_table, book="", opened=lambda: closing(_opened(file, beside)))


def _workspace(file: LedgerFile, beside: SpecFile) -> Workspace:
    if file.workspace is None:
        raise InputError("The file names no workspace. --rebuild reads the run folders in it.")
    uri = file.workspace
    return Workspace.open(uri if "://" in uri else str(beside.path(uri)), probe=False)


def _sums(rows: Iterable[dict[str, Any]], by: By, since: date | None) -> list[_Sum]:
    """Add rows up. Days and prompts come in the order of their first run, the others with the highest sum first."""
    sums: dict[str, _Sum] = {}
    runs: dict[str, set[str]] = {}
    first: dict[str, datetime] = {}
    for row in rows:
        began = row["started_at"]
        if since is None or began.date() >= since:
            name = began.date().isoformat() if by is By.DAY else _name(row, by)
            first[name] = min(began, first.get(name, began))
            sums.setdefault(name, _Sum(name=name)).add(row)
            runs.setdefault(name, set()).add(row["run_id"])
    for name, one in sums.items():
        one.runs = len(runs[name])
    if by in (By.DAY, By.PROMPT):
        return sorted(sums.values(), key=lambda one: first[one.name])
    return sorted(sums.values(), key=lambda one: (-one.usd, one.name))


def _name(row: dict[str, Any], by: By) -> str:
    match by:
        case By.DAG:
            return row["dag_id"] or "(command line)"
        case By.MODEL:
            return f"{row['provider']}:{row['model']}"
        case By.PROMPT:
            return row["prompt_version"] or "(unknown)"
        case _:
            return row["team"] or "(no team)"


def _show(sums: list[_Sum], by: By) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    console.print(_printed(sums, by) if sums else "The ledger has no rows.")


def _printed(sums: list[_Sum], by: By) -> "Table":
    from rich.box import SIMPLE
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE, pad_edge=False, show_footer=True)
    total = _Sum(name="total")
    for one in sums:
        for name in ("runs", "rows", "requests", "usd", "saved_usd", "stray_usd"):
            setattr(total, name, getattr(total, name) + getattr(one, name))
    headings = (by.value, "runs", "rows", "requests", "spent", "saved", "twice")
    for place, (heading, footer) in enumerate(zip(headings, _cells(total), strict=True)):
        table.add_column(heading, footer=footer, justify="right" if place else "left", no_wrap=bool(place))
    table.add_column("")
    highest = max(one.usd for one in sums)
    for one in sums:
        bar = "█" * round(_BAR * one.usd / highest) if highest else ""
        table.add_row(*(escape(printable(cell)) for cell in _cells(one)), bar)
    return table


def _cells(one: _Sum) -> tuple[str, ...]:
    dollars = (f"${amount:,.4f}" for amount in (one.usd, one.saved_usd, one.stray_usd))
    return (one.name, f"{one.runs:,}", f"{one.rows:,}", f"{one.requests:,}", *dollars)


#: Options of Airflow's configuration, which a shell can set, too.
_BUDGETS, _CEILING = "AIRFLOW__BATCH_LLM__BUDGETS", "AIRFLOW__BATCH_LLM__BUDGET_CEILING"


def configured_budgets(environment: Mapping[str, str]) -> dict[str, SharedBudget]:
    """Return the budgets that the environment has, and its ceiling."""
    return read_budgets(environment.get(_BUDGETS, ""), environment.get(_CEILING, ""))


def budget(
    uri: Annotated[str, typer.Argument(metavar="WORKSPACE", help="Path or URI of the workspace.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show what the shared budgets have spent, what is held for runs that have not ended, and what is left."""
    with ends_with_a_code():
        limits = configured_budgets(os.environ)
        found = []
        for book in budget_books(Workspace.open(uri, probe=False)):
            limit = limits.get(book.name)
            found.append((book.name, book.period, book.state(None if limit is None else limit.usd)))
    if as_json:
        told = [_as_json(name, period, state) for name, period, state in found]
        say(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())
    elif found:
        say("\n".join(line for one in found for line in _told(*one)))
    else:
        say("No run has used a shared budget.")


def _as_json(name: str, period: str, state: BudgetState) -> dict[str, Any]:
    holds = [{"run": run, "usd": hold.usd, "until": hold.until} for run, hold in state.holds.items()]
    sums = {"usd": state.usd, "spent_usd": state.spent, "held_usd": state.held, "left_usd": state.left}
    return {"budget": name, "period": period, **sums, "holds": holds}


def _told(name: str, period: str, state: BudgetState) -> list[str]:
    lines = [
        f"{name} {period}: ${state.spent:,.4f} spent, ${state.held:,.4f} held, ${state.left:,.4f} left of ${state.usd:,.2f}"
    ]
    for run, hold in sorted(state.holds.items()):
        lines.append(f"  ${hold.usd:,.4f} for {run}, {_why(hold)}")
    return lines


def _why(hold: Hold) -> str:
    if hold.until is None:
        return "which has not ended"
    return f"which is being planned; its planner counts as dead after {moment(hold.until)}"
