"""Share a budget among runs. Each run reserves its dollars before it sends a request, and settles them when it ends.

A budget of one period is a numbered series of states, each created once. To change it, a run reads the last state and
creates the next. So two runs never take the same dollars, and the dollars of a run are counted once, by one process.

A planner's hold has an end: the dollars of a planner that dies are free again. Before a run sends anything it confirms its
hold, and that fails if another run has taken it back. A confirmed hold stays until the run is settled.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, assert_never

import orjson

from airflow_batch_llm.errors import InputError

#: A planner counts as dead when it has not confirmed its hold for this long.
HOLD_SECONDS = 3600.0

#: The name of the budget that holds for every run.
CEILING = "ceiling"

#: Dollars by which sums of the same amounts may differ.
_ROUNDING = 1e-6


class Per(StrEnum):
    """The length of a budget's period, which begins and ends in UTC."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    YEAR = "year"
    ALL = "all"
    """The budget never begins again."""

    def period(self, at: float) -> str:
        """Return the name of the period that holds this moment."""
        moment = datetime.fromtimestamp(at, UTC)
        match self:
            case Per.DAY:
                return moment.strftime("%Y-%m-%d")
            case Per.WEEK:
                return moment.strftime("%G-W%V")
            case Per.MONTH:
                return moment.strftime("%Y-%m")
            case Per.YEAR:
                return moment.strftime("%Y")
            case Per.ALL:
                return "all"
            case _:
                assert_never(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedBudget:
    """Dollars that all runs which name this budget may cost together in one period."""

    name: str
    usd: float
    per: Per

    def described(self) -> str:
        """Name the budget for people."""
        return f"the budget {self.name} (${self.usd:,.2f} {'in all' if self.per is Per.ALL else f'a {self.per}'})"


def read_budgets(budgets: str, ceiling: str = "") -> dict[str, SharedBudget]:
    """Read the budgets of a configuration, in JSON: `{"support": {"usd": 500, "per": "month"}}`.

    `ceiling` is one such object, which holds for every run. An empty text configures none.
    """
    listed = _json(budgets, "budgets") if budgets.strip() else {}
    if CEILING in listed:
        raise InputError(
            f"[batch_llm] budgets has the name {CEILING!r}, which is the ceiling's. Choose another."
        )
    if ceiling.strip():
        listed = {**listed, CEILING: _json(ceiling, "budget_ceiling")}
    return {name: _budget(name, one) for name, one in listed.items()}


def _json(text: str, option: str) -> dict[str, Any]:
    try:
        read = orjson.loads(text)
    except orjson.JSONDecodeError:
        read = None
    if not isinstance(read, dict):
        raise InputError(f"[batch_llm] {option} must be a JSON object, got {text[:60]!r}.")
    return read


def _budget(name: str, given: Any) -> SharedBudget:
    usd, per = (given.get("usd"), given.get("per")) if isinstance(given, dict) else (None, None)
    is_amount = isinstance(usd, int | float) and not isinstance(usd, bool) and math.isfinite(usd) and usd >= 0
    if not is_amount or per not in list(Per) or set(given) != {"usd", "per"}:
        raise InputError(
            f'[batch_llm]: the budget {name!r} must read like {{"usd": 500, "per": "month"}}. per is one of'
            f" {', '.join(Per)}."
        )
    return SharedBudget(name=name, usd=float(usd or 0.0), per=Per(per))


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Dollars that are kept for one run."""

    usd: float
    until: float | None = None
    """Seconds since the epoch, after which the planner counts as dead. None: the run has confirmed it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetState:
    """One period of a budget: the dollars of ended runs, and those that are held for others."""

    usd: float
    """The limit, as the last run that changed the state knew it."""
    spent: float = 0.0
    holds: Mapping[str, Hold] = field(default_factory=dict)
    """By the run folder's path, with its generation."""

    @property
    def held(self) -> float:
        """The dollars that are held for runs."""
        return math.fsum(hold.usd for hold in self.holds.values())

    @property
    def left(self) -> float:
        """The dollars that a further run may take."""
        return max(0.0, self.usd - self.spent - self.held)

    def left_for(self, run: str, now: float) -> float:
        """Return the dollars that a run may cost in all."""
        return self.usd - self.spent - self._others(run, now).held

    def hold(self, run: str, usd: float, now: float, *, until: float | None = None) -> "BudgetState | None":
        """Hold dollars for a run; without a time, for good. Returns None if too few are left.

        A confirmed hold is never lowered. A run always gets again the dollars that it holds already, even if the limit
        is lower now.
        """
        mine = self.holds.get(run)
        if mine is not None and mine.until is None:
            usd, until = max(usd, mine.usd), None
        grows = mine is None or usd > mine.usd
        if grows and usd > self.left_for(run, now) + _ROUNDING:
            return None
        others = self._others(run, now)
        return replace(others, holds={**others.holds, run: Hold(usd=usd, until=until)})

    def settle(self, run: str, usd: float) -> "BudgetState":
        """Count a run's cost, and hold nothing more for it. A run that holds nothing was counted before."""
        if run not in self.holds:
            return self
        holds = {name: hold for name, hold in self.holds.items() if name != run}
        return replace(self, spent=self.spent + usd, holds=holds)

    def release(self, run: str) -> "BudgetState":
        """Hold nothing more for a planner that gives up. A confirmed hold stays."""
        mine = self.holds.get(run)
        return self if mine is None or mine.until is None else self.settle(run, 0.0)

    def _others(self, run: str, now: float) -> "BudgetState":
        """Return the state without this run, and without planners that count as dead."""
        holds = {
            name: hold
            for name, hold in self.holds.items()
            if name != run and (hold.until is None or now <= hold.until)
        }
        return replace(self, holds=holds)

    def to_json(self, nonce: str) -> bytes:
        """Return the state as it is stored. The nonce distinguishes it from an equal state of another process."""
        holds = {run: [hold.usd, hold.until] for run, hold in self.holds.items()}
        return orjson.dumps({"usd": self.usd, "spent": self.spent, "holds": holds, "nonce": nonce})

    @classmethod
    def from_json(cls, data: bytes) -> "BudgetState":
        fields = orjson.loads(data)
        holds = {run: Hold(usd=usd, until=until) for run, (usd, until) in fields["holds"].items()}
        return cls(usd=fields["usd"], spent=fields["spent"], holds=holds)
