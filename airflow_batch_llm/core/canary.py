"""Judge a run's canary: the few requests that are asked before all others."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any

import orjson

from airflow_batch_llm.core.estimate import EstimateSource
from airflow_batch_llm.core.model import Usage, Way
from airflow_batch_llm.core.price import PriceList
from airflow_batch_llm.core.printing import counted, verb
from airflow_batch_llm.core.report import Report, Verdict, gate


class Ruling(StrEnum):
    """Choose whether the rest of a run is sent after its canary."""

    GO = "go"
    """The rest is sent, or what fits into the budget of it."""
    BAD_ANSWERS = "bad_answers"
    """The rest is not sent: too few of the canary's answers are good."""
    OVER_BUDGET = "over_budget"
    """The rest is not sent: by the canary's tokens it would cost more than the budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryVerdict:
    """The verdict on a canary as it is stored, once for a run. It holds no key of a row."""

    ruling: Ruling
    why: str = ""
    """The reason for which the budget is too small. Empty: it is large enough."""
    asked: Mapping[str, float] = field(default_factory=dict)
    """The canary in numbers: rows, good rows, requests, mean tokens of a request and dollars."""
    estimates: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """Estimates by the number of a route, from the tokens that were measured."""
    left_out: tuple[int, ...] = ()
    """The numbers of the shards that do not fit into the budget, and are not sent. Default: all are sent."""

    @property
    def goes(self) -> bool:
        """Return whether the rest is sent."""
        return self.ruling is Ruling.GO

    def to_json(self) -> bytes:
        """For the run folder."""
        return orjson.dumps(asdict(self), option=orjson.OPT_NON_STR_KEYS)

    @classmethod
    def from_json(cls, data: bytes) -> "CanaryVerdict":
        """From the run folder."""
        fields = orjson.loads(data)
        estimates = {int(number): one for number, one in fields["estimates"].items()}
        left_out = tuple(fields.get("left_out", ()))
        return cls(
            **{**fields, "ruling": Ruling(fields["ruling"]), "estimates": estimates, "left_out": left_out}
        )


def judge_answers(report: Report, min_success_ratio: float, samples: Sequence[str] = ()) -> Verdict:
    """Judge the answers of a canary, however few they are. `samples` are keys of rows without a good answer."""
    return gate(report, min_success_ratio, from_rows=1, samples=samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSample:
    """Measures of the canary's requests of one route, and of the requests that would follow."""

    name: str
    asked: int
    usage: Usage
    cost: float
    unpriced: int
    """Answers whose tokens are not known. The mean leaves them out."""
    prices: PriceList
    ways: tuple[Way, Way]
    """The way of the canary, and that of the rest."""
    rest: int
    max_cost_usd: float | None = None
    is_packed: bool = False
    """Its requests ask about several rows. `asked` and `rest` are then items. Default: no."""

    @property
    def noun(self) -> str:
        """The noun for the counted things: requests, or items of packed ones."""
        return "item" if self.is_packed else "request"

    def estimates(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the estimates of the canary's route and of the route itself, as a plan holds them."""
        own = _estimate(self.asked, self._priced, self.usage, self.cost if self._priced else None)
        one = self.per_request
        rest = _estimate(self.rest, self._priced, self.usage, None if one is None else one * self.rest)
        told = f"Tokens are the mean of {counted(self.asked, self.noun)} of the canary."
        return own, {**rest, "assumptions": [told], "source": EstimateSource.CANARY.value}

    @property
    def per_request(self) -> float | None:
        """Return the dollars of one more request: what one of the canary has cost, at the price of the other way."""
        if not self._priced:
            return None
        mean = Usage(*(round(tokens / self._priced) for tokens in self.usage))
        asked, rest = (self.prices.by(way).cost(mean) for way in self.ways)
        factor = rest / asked if asked and rest is not None else Decimal(1)
        return self.cost / self._priced * float(factor)

    @property
    def _priced(self) -> int:
        return self.asked - self.unpriced


def _estimate(requests: int, priced: int, usage: Usage, dollars: float | None) -> dict[str, Any]:
    tokens = {
        name: round(getattr(usage, name) / max(1, priced) * requests)
        for name in ("input_tokens", "output_tokens")
    }
    return {"requests": requests, **tokens, **dict.fromkeys(("low", "expected", "high"), dollars)}


def over_budget(
    samples: Sequence[RouteSample], unmeasured: float, max_cost_usd: float | None, shared: str = ""
) -> str:
    """Say which budget is too small for the rest: that of a route, or that of the run. Returns an empty text if none is.

    `unmeasured` is the expected cost of the routes that no request of the canary has taken. `shared` names the budget
    that the dollars are of, where it is not the run's own.
    """
    told = [_cost(sample) for sample in samples]
    for sample, cost in zip(samples, told, strict=True):
        if sample.max_cost_usd is not None and cost > sample.max_cost_usd:
            return _too_much(
                [sample],
                f" of the route {sample.name}",
                cost,
                f"the route's max_cost_usd={sample.max_cost_usd:g}",
            )
    total = sum(told) + unmeasured
    if max_cost_usd is not None and total > max_cost_usd:
        return _too_much(samples, "", total, shared or f"max_cost_usd={max_cost_usd:g}")
    return ""


def _cost(sample: RouteSample) -> float:
    return float(sum(one["expected"] or 0.0 for one in sample.estimates()))


def _too_much(samples: Sequence[RouteSample], whose: str, dollars: float, most: str) -> str:
    count = sum(sample.asked + sample.rest for sample in samples)
    noun = next((sample.noun for sample in samples if sample.is_packed), "request")
    return (
        f"{counted(count, noun)}{whose} {verb(count, 'is', 'are')} estimated at ${dollars:,.4f} by the tokens of"
        f" the canary's answers, above {most}. Raise max_cost_usd, or lower max_rows."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RestOfRoute:
    """The shards of one route that would follow the canary, in their order, and their costs."""

    shards: Sequence[tuple[int, int]]
    """The number and the requests of each."""
    per_request: float | None
    """Dollars of one request. None: it is not known, so all fit."""
    left: float | None
    """Dollars that the route may still cost. None: only the run's budget counts."""


def beyond_budget(routes: Sequence[RestOfRoute], left: float | None) -> tuple[int, ...]:
    """Return the numbers of the shards that do not fit into the rest of the budgets.

    The routes are served in their order, and the first shard of a route that does not fit ends it. `left` is that of the run.
    """
    beyond: list[int] = []
    for route in routes:
        mine = math.inf if route.left is None else route.left
        is_full = False
        for number, requests in route.shards:
            cost = requests * (route.per_request or 0.0)
            is_full = is_full or cost > min(mine, math.inf if left is None else left)
            if is_full:
                beyond.append(number)
                continue
            mine -= cost
            left = None if left is None else left - cost
    return tuple(beyond)
