"""`budget`: what the shared budgets of a workspace have spent, hold and have left."""

import os
from collections.abc import Mapping
from typing import Annotated, Any

import orjson
import typer

from airflow_batch_llm.commands.exit_code import ends_with_a_code, say
from airflow_batch_llm.core.budget import BudgetState, Hold, SharedBudget, read_budgets
from airflow_batch_llm.stage.inspection import moment
from airflow_batch_llm.stage.records.budgets import budget_books
from airflow_batch_llm.store import Workspace

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
