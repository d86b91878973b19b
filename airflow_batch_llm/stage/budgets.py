"""The shared budgets of one run: its own, if the stage names one, and the ceiling that holds for every run.

What a run may cost is held in all of them or in none. A run holds no dollars once its report is stored. Each change
looks for the report between its read and its write, so that no change can restore a settled hold.

The periods of a shared budget are numbered states in the workspace, the last of which counts:

    .registers/budgets/<budget>/<period>/000000/0001.json … 0999.json  000001/0000.json …

A purse decides how many requests of each route the budgets still allow, by the cost of the requests so far.
"""

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import fsum

import orjson

from airflow_batch_llm.core.budget import CEILING, HOLD_SECONDS, BudgetState, SharedBudget
from airflow_batch_llm.core.model import Usage
from airflow_batch_llm.core.price import PriceList
from airflow_batch_llm.core.report import Report
from airflow_batch_llm.errors import BudgetExceeded, InputError
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.records.folder import RunFolder, safe_name
from airflow_batch_llm.stage.records.plan import Plan, PlannedRoute
from airflow_batch_llm.stage.records.registers import Registers
from airflow_batch_llm.stage.records.standings import RunMemory
from airflow_batch_llm.store import Workspace, at_once

_ROOT = ".registers/budgets"


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetBook:
    """One budget in one period."""

    workspace: Workspace
    name: str
    period: str
    per_folder: int = 1000
    """States in one folder, so that a list of names stays short. Default: 1,000."""

    def state(self, usd: float | None) -> BudgetState:
        """Return the state as it is now, with this limit. With None the state keeps its own limit."""
        return self._last(usd)[1]

    def change(self, usd: float | None, change: Callable[[BudgetState], BudgetState | None]) -> bool:
        """Create the next state from the last one, and try again if another run was faster.

        Returns False if the change is refused.
        """
        while True:
            number, state = self._last(usd)
            after = change(state)
            if after is None:
                return False
            if after == state:
                return True
            if self.workspace.create(self._path(number + 1), after.to_json(secrets.token_hex(6))):
                return True

    def _last(self, usd: float | None) -> tuple[int, BudgetState]:
        """Return the last state and its number. A list of names may be old, so later numbers are read one by one."""
        number = self._listed()
        data = self.workspace.read(self._path(number)) if number else None
        while (later := self.workspace.read(self._path(number + 1))) is not None:
            number, data = number + 1, later
        state = BudgetState(usd=usd or 0.0) if data is None else BudgetState.from_json(data)
        return number, state if usd is None else replace(state, usd=usd)

    def _listed(self) -> int:
        """Return the highest number that a list shows, or 0 if it shows none."""
        last = max(self.workspace.folders(self._folder), default=None)
        if last is None:
            return 0
        places = [int(name.partition(".")[0]) for name in self.workspace.names(f"{self._folder}/{last}")]
        return int(last) * self.per_folder + max(places, default=0)

    def _path(self, number: int) -> str:
        folder, place = divmod(number, self.per_folder)
        return f"{self._folder}/{folder:06d}/{place:04d}.json"

    @property
    def _folder(self) -> str:
        return f"{_ROOT}/{safe_name(self.name)}/{self.period}"


def budget_books(workspace: Workspace) -> Iterator[BudgetBook]:
    """Yield every period of every budget that runs have used, the last period first."""
    for name in sorted(workspace.folders(_ROOT)):
        for period in sorted(workspace.folders(f"{_ROOT}/{name}"), reverse=True):
            yield BudgetBook(workspace=workspace, name=name, period=period)


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
        """Return the dollars that this run may cost in all, and the name of the budget that sets them.

        Returns None without a budget.
        """
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
        """Hold dollars until the run ends. Returns False if too few are left, and then an earlier hold stays."""
        return self._hold(periods, usd, None)

    def confirm(self, plan: Plan) -> None:
        """Confirm the dollars of a frozen plan. Raises `BudgetExceeded` before anything is sent if they are gone.

        Such a run never sends anything. It ends, so that a plan in a later period can send its rows.
        """
        if not plan.budgets or not plan.requests or self.folder.is_cancelled():
            return
        if self.keep(plan.budgets, plan.dollars or 0.0):
            return
        most = self.most(plan.budgets)
        assert most is not None, "a budget counts for the run"
        if not any(self.folder.deadlines()):  # otherwise it has begun
            self.folder.add_cancelled([], self.parts.clock(), self.parts.by)
        raise BudgetExceeded(
            f"The run {self.folder.path} would cost about ${plan.dollars or 0.0:,.4f}, above {most[1]}. Nothing was sent."
            " Clear the task when other runs have ended, or in the next period."
        )

    def release(self, periods: Mapping[str, str]) -> None:
        """Give back the dollars of a planner that freezes no plan."""
        for name, period in periods.items():
            given_back = partial(BudgetState.release, run=self.folder.path)
            self._book(name, period).change(self._limit(name), given_back)

    def settle(self, plan: Plan, usd: float) -> None:
        """Count the run's cost, once its report is stored."""
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
        reports = at_once(lambda run: registers.folder(run).read_report(), runs)
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


@dataclass(slots=True)
class _Paid:
    requests: int = 0  # items of packed requests, each for itself
    cost: float = 0.0
    usage: Usage = field(default_factory=Usage)

    def add(self, requests: int, cost: float, usage: Usage) -> None:
        self.requests += requests
        self.cost += cost
        self.usage = self.usage + usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Purse:
    """The dollars of a run and of its routes that are spent."""

    first: Plan
    total: _Paid
    by_route: Mapping[str, _Paid]

    @classmethod
    def of(cls, memory: RunMemory, rounds: Sequence[Plan]) -> "Purse":
        """Return the purse after these rounds, all of whose shards have landed."""
        total, by_route = _Paid(), {route.name: _Paid() for route in rounds[0].routes}
        for plan in rounds:
            landed = memory.all_landed(plan.shards)
            for shard in plan.shards:
                report = landed[shard.number].report
                for paid in (total, by_route[plan.route(shard).name]):
                    paid.add(shard.items if report.requests else 0, report.spent.cost, report.usage)
        return cls(first=rounds[0], total=total, by_route=by_route)

    def allowed(self, wanted: Mapping[str, int], shared: tuple[float, str] | None = None) -> dict[str, int]:
        """Return how many of the wanted requests of each route are within the budgets of the run and of the route.

        `shared` has the dollars that the run may cost by the budgets that it shares, and their name. None: it has no
        shared budget.
        """
        mosts = [self.first.limits.max_cost_usd, None if shared is None else shared[0]]
        most = min((one for one in mosts if one is not None), default=None)
        left = None if most is None else most - self.total.cost
        allowed = {}
        for name, requests in wanted.items():
            route = self.first.base(name)
            mine = None if route.max_cost_usd is None else route.max_cost_usd - self.by_route[name].cost
            lefts = [one for one in (left, mine) if one is not None]
            price = self._price(route)
            allowed[name] = requests
            if lefts and price is None:
                allowed[name] = 0
            elif lefts and price:
                allowed[name] = max(0, min(requests, int(min(lefts) / price + 1e-9)))
            if left is not None:
                left -= allowed[name] * (price or 0.0)
        return allowed

    def cost_with(self, allowed: Mapping[str, int]) -> float:
        """Return the cost of the run with the allowed requests of each route."""
        more = (
            requests * (self._price(self.first.base(name)) or 0.0)
            for name, requests in allowed.items()
            if requests
        )
        return self.total.cost + fsum(more)

    def told(self, name: str, shared: tuple[float, str] | None = None) -> str:
        """Say for people what is spent, for a route with requests that are not asked."""
        route, most = self.first.base(name), self.first.limits.max_cost_usd
        if route.max_cost_usd is not None:
            return (
                f"${self.by_route[name].cost:,.2f} of ${route.max_cost_usd:g} of the route {name} are spent."
            )
        if shared is not None and (most is None or shared[0] < most):
            return f"${self.total.cost:,.2f} are spent, and the run has its dollars from {shared[1]} for it."
        return f"${self.total.cost:,.2f} of ${most:g} are spent."

    def _price(self, route: PlannedRoute) -> float | None:
        """Return the dollars of one request of a route: as measured, or from the tokens of other routes."""
        paid, first = self.by_route[route.name], self.first
        if paid.requests:
            return paid.cost / paid.requests
        requests = max(1, self.total.requests)
        mean = Usage(
            input_tokens=round(self.total.usage.input_tokens / requests),
            output_tokens=round(self.total.usage.output_tokens / requests),
        )
        prices = PriceList.of(first.vendor(route), route.call.model, first.limits.prices, at=first.planned_at)
        cost = prices.by(route.way).cost(mean)
        return None if cost is None else float(cost)
