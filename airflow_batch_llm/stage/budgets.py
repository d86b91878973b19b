"""The shared budgets of one run: its own, if the stage names one, and the ceiling that holds for every run.

What a run may cost is held in all of them or in none. A run holds no dollars once its report is stored: each change looks
for the report between its read and its write, so that none can bring back what has been settled.
"""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import orjson

from airflow_batch_llm.core.budget import CEILING, HOLD_SECONDS, BudgetState, SharedBudget
from airflow_batch_llm.core.report import Report
from airflow_batch_llm.errors import BudgetExceeded, InputError
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.records.budgets import BudgetBook
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.plan import Plan
from airflow_batch_llm.stage.records.registers import Registers

#: Reports read at once: each takes its time in object storage.
_READERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """Holds and settles the dollars of one generation of a run."""

    parts: Parts
    folder: RunFolder

    def periods(self, named: str | None) -> dict[str, str]:
        """Return the period of each budget that counts for a run that is planned now."""
        known = self.parts.budgets
        if named is not None and (named not in known or named == CEILING):
            listed = ", ".join(sorted(set(known) - {CEILING})) or "none"
            raise InputError(
                f"There is no budget {named!r}. [batch_llm] budgets has: {listed}. Nothing was sent."
            )
        names = [name for name in (named, CEILING) if name in known]
        return {name: known[name].per.period(self.parts.clock()) for name in names if name is not None}

    def most(self, periods: Mapping[str, str]) -> tuple[float, str] | None:
        """Return the dollars that this run may cost in all, and the budget that says so. None: no budget counts."""
        found = []
        for name, period in periods.items():
            book = self._book(name, period)
            self._settle_ended(book, name)
            state = book.state(self._limit(name))
            left = max(0.0, state.left_for(self.folder.path, self.parts.clock()))
            found.append((left, f"{self._described(name)}, of which ${left:,.4f} are left"))
        return min(found, default=None)

    def reserve(self, periods: Mapping[str, str], usd: float) -> bool:
        """Hold dollars for a plan that is not frozen yet. They are given back if this process dies."""
        return self._hold(periods, usd, self.parts.clock() + HOLD_SECONDS)

    def keep(self, periods: Mapping[str, str], usd: float) -> bool:
        """Hold dollars until the run ends. False: they are not there; what was held before still is."""
        return self._hold(periods, usd, None)

    def confirm(self, plan: Plan) -> None:
        """Confirm the dollars of a frozen plan. Raises `BudgetExceeded` before anything is sent if they are gone."""
        if not plan.budgets or not plan.requests or self.keep(plan.budgets, plan.dollars or 0.0):
            return
        most = self.most(plan.budgets)
        assert most is not None, "a budget counts for the run"
        raise BudgetExceeded(
            f"The run {self.folder.path} would cost about ${plan.dollars or 0.0:,.4f}, above {most[1]}. Nothing was sent."
            " Clear the task when other runs have ended, or in the next period."
        )

    def release(self, periods: Mapping[str, str]) -> None:
        """Give back what a planner holds that plans nothing after all."""
        for name, period in periods.items():
            given_back = partial(BudgetState.release, run=self.folder.path)
            self._book(name, period).change(self._limit(name), given_back)

    def settle(self, plan: Plan, usd: float) -> None:
        """Count what the run has cost. Its report is stored."""
        for name, period in plan.budgets.items():
            settled = partial(BudgetState.settle, run=self.folder.path, usd=usd)
            self._book(name, period).change(self._limit(name), settled)

    def used(self, periods: Mapping[str, str]) -> dict[str, float]:
        """Return the share of each budget that is spent or held. A budget without dollars has none."""
        states = {name: self._book(name, period).state(self._limit(name)) for name, period in periods.items()}
        return {name: (one.spent + one.held) / one.usd for name, one in states.items() if one.usd}

    def described(self, periods: Mapping[str, str]) -> Iterable[str]:
        """For people: what each budget has spent, holds and has left."""
        for name, period in periods.items():
            state = self._book(name, period).state(self._limit(name))
            yield (
                f"Of {self._described(name)}, ${state.spent:,.4f} are spent, ${state.held:,.4f} are held for runs that have"
                f" not ended, and ${state.left:,.4f} are left."
            )

    def _hold(self, periods: Mapping[str, str], usd: float, until: float | None) -> bool:
        held: dict[str, str] = {}
        for name, period in periods.items():
            book = self._book(name, period)
            if not self._changed(book, name, usd, until):
                self.release(held)
                return False
            held[name] = period
        return True

    def _changed(self, book: BudgetBook, name: str, usd: float, until: float | None) -> bool:
        def change(state: BudgetState) -> BudgetState | None:
            if self.folder.read_report() is not None:  # another attempt has ended the run
                return state
            return state.hold(self.folder.path, usd, self.parts.clock(), until=until)

        return book.change(self._limit(name), change)

    def _settle_ended(self, book: BudgetBook, name: str) -> None:
        """Count the runs that have stored their report and died before they were settled."""
        registers, runs = Registers(workspace=self.parts.workspace), list(book.state(self._limit(name)).holds)
        with ThreadPoolExecutor(_READERS) as pool:
            reports = list(pool.map(lambda run: registers.folder(run).read_report(), runs))
        for run, report in zip(runs, reports, strict=True):
            if report is not None:
                usd = Report.from_json(orjson.loads(report)["report"]).spent.cost
                book.change(self._limit(name), partial(BudgetState.settle, run=run, usd=usd))

    def _book(self, name: str, period: str) -> BudgetBook:
        return BudgetBook(workspace=self.parts.workspace, name=name, period=period)

    def _limit(self, name: str) -> float | None:
        budget = self.parts.budgets.get(name)
        return None if budget is None else budget.usd

    def _described(self, name: str) -> str:
        budget: SharedBudget | None = self.parts.budgets.get(name)
        return f"the budget {name}" if budget is None else budget.described()
