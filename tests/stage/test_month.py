"""Thirty nights on a simulated vendor: the ledger gives its bill to the cent, whatever has happened."""

import re
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from airflow_batch_llm.core.journal import Doer
from airflow_batch_llm.core.settings import Only
from airflow_batch_llm.errors import DeadlinePassed
from airflow_batch_llm.stage.parts import UsageTable
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.send.sweeping import cancel_run
from tests.stage.test_ledger import LEDGER, _unreachable, usage
from tests.stage.world import Bench, let_go

#: Dollars per million tokens: a cent for each, half of it in a batch.
PRICES = {"input": 10_000.0, "output": 10_000.0, "batch_discount": 0.5}
_DAY = 86_400.0
_PAGE = Path(__file__).resolve().parents[2] / "docs/explanation/cost.md"


class _Killed(BaseException):
    """Ends the process here, as a kill does."""


class _DiesAt:
    """A workspace of a process that is killed when it is about to create a record."""

    def __init__(self, workspace: Any, part: str) -> None:
        self._workspace, self._part, self._is_dead = workspace, part, False

    def __getattr__(self, name: str) -> Any:
        if self._is_dead:
            raise _Killed
        return getattr(self._workspace, name)

    def create(self, path: str, data: bytes) -> bool:
        if self._is_dead or self._part in path:
            self._is_dead = True
            raise _Killed(path)
        return self._workspace.create(path, data)  # type: ignore[no-any-return]

    def append(self, folder: str, data: bytes, *, after: int | None = None) -> int | None:
        if self._is_dead or self._part in f"{folder}/":
            self._is_dead = True
            raise _Killed(folder)
        return self._workspace.append(folder, data, after=after)  # type: ignore[no-any-return]


class _Month:
    """Nights of one team, one after the other."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.rows = bench, 4
        bench.world.make_tickets(self.rows)

    def night(self, name: str, **changes: Any) -> Any:
        """Some rows are new since the night before."""
        world = self.bench.world
        world.ask(
            "INSERT INTO tickets SELECT i, 'subject ' || i, 'body of ' || i "
            f"FROM range({self.rows}, {self.rows + 2}) t(i)"
        )
        self.rows += 2
        world.sleep(_DAY)
        by = Doer(dag_id="nightly", task_id="label", run_id=name, team="support")
        parts = {"usage": usage(world), "by": by, **changes.pop("parts", {})}
        asked = {"prices": {world.model: PRICES}, "max_cost_usd": None, "min_success_ratio": 0, **changes}
        return self.bench.run(name, parts=parts, **asked)

    def complete(self, name: str, **changes: Any) -> Any:
        return self.bench.complete(self.night(name, **changes))

    def killed(self, name: str, at: str) -> None:
        """Run a night in which the worker dies."""
        with pytest.raises(_Killed):
            self.complete(name, parts={"workspace": _DiesAt(self.bench.world.workspace(), at)})


def _bill(bench: Bench) -> float:
    """Return what the vendor charges for the month."""
    charges = [row for row in bench.world.simulator.charges(provider="anthropic") if row["charged"]]
    dollars = {"batch": 0.005, "now": 0.01}
    return sum((row["input"] + row["output"]) * dollars[row["way"]] for row in charges)


def test_a_month_adds_up_to_the_bill(anthropic: Bench) -> None:
    month, world = _Month(anthropic), anthropic.world
    older = {"prompt": "Label this ticket. {{ subject }}: {{ body }}"}

    month.complete("n01", **older)
    anthropic.fault(kind="errored", rows=[0])
    month.complete("n02", **older)  # asks again in a second round
    month.killed("n03", "report.json")
    month.complete("n03")  # a retry
    month.complete("n04", only=Only.OUTDATED)  # overwrites the answers of the older prompt
    month.killed("n05", "/ledger/")  # written, and not noted
    month.complete("n06", only=Only.ALL)
    month.complete("n06", only=Only.ALL, max_tries=1)  # a clear
    anthropic.fault(kind="repeat", endpoint="create")
    strays = month.complete("n07").report.spent.stray_cost
    month.complete("n08", way="now")
    down = UsageTable(name=LEDGER, book="book", opened=_unreachable)
    month.complete("n09", parts={"usage": down})
    world.simulator.turn(batch_seconds=3600, cancelled_share=0.5)
    cancelled = month.night("n10")
    cancelled.advance()
    let_go(cancelled)
    world.sleep(1800)
    with closing(world.provider()) as provider:
        cancel_run(RunFolder(workspace=world.workspace(), run="n10"), provider, Doer(user="ada"), world.clock)
    anthropic.complete(cancelled)
    abandoned = month.night("n11", timeout=600, cancel_on_timeout=False)
    abandoned.advance()
    world.sleep(601)
    with pytest.raises(DeadlinePassed):
        anthropic.complete(abandoned)
    month.complete("n12")  # ends the run before
    for night in range(13, 31):  # nothing happens
        month.complete(f"n{night}")

    statement = re.search(r"^SELECT date_trunc.*?(?=^```)", _PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert statement is not None
    months = world.ask(statement[0].replace("finance.llm_usage", LEDGER))

    bill = _bill(anthropic)
    assert bill > 1
    assert sum(usd for _, _, _, usd, _, _ in months) == pytest.approx(bill, abs=0.005)
    assert {(team, model) for _, team, model, *_ in months} == {("support", world.model)}
    assert sum(stray for *_, stray in months) == pytest.approx(strays)
    assert strays > 0
    ((runs, overwritten, canceled),) = world.ask(
        f"SELECT count(DISTINCT run_id), sum(usd) - (SELECT sum(_llm_cost_usd) FROM labels), sum(rows_canceled) FROM {LEDGER}"
    )
    assert runs == 31  # the clear has a run of its own
    assert overwritten > 1
    assert canceled > 0
