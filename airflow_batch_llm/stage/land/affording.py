"""Decide how many requests of each route the budget still allows, by what those so far have cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum

from airflow_batch_llm.core.model import Usage
from airflow_batch_llm.core.price import PriceList
from airflow_batch_llm.stage.records.memory import RunMemory
from airflow_batch_llm.stage.records.plan import Plan, PlannedRoute


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

        `shared` has the dollars that the run may cost by the budgets that it shares, and their name. None: it shares none.
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
        """Return what the run costs with so many more requests of each route."""
        more = (
            requests * (self._price(self.first.base(name)) or 0.0)
            for name, requests in allowed.items()
            if requests
        )
        return self.total.cost + fsum(more)

    def told(self, name: str, shared: tuple[float, str] | None = None) -> str:
        """Say what is spent, for a route whose requests are not all asked."""
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
