"""What became of the requests of one shard: a column for each fact, by the request's number.

Columns, because a record for each request would be looked at by the garbage collector again and again; texts and
numbers are not, and most requests share their records with others.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from airflow_batch_llm.core.model import Outcome, Usage

Values = tuple[Any, ...]

#: The code of a line that names its request and says nothing else that can be used.
UNREADABLE_LINE = "unreadable_line"


class Bill(NamedTuple):
    """The tokens of one answer, and what they cost in a batch and in real time; None: no price of the model is known."""

    usage: Usage = Usage()
    cost: float | None = 0.0
    list_cost: float | None = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a request has no good answer."""

    code: str | None = None
    message: str | None = None
    excerpt: str | None = None
    retryable: bool = True


class Verdict(NamedTuple):
    """What one line says about one request. Exactly one of `values` and `failure` is set."""

    request: int
    outcome: Outcome
    bill: Bill
    model: str | None = None
    values: Values | None = None
    failure: Failure | None = None

    @property
    def is_readable(self) -> bool:
        return self.failure is None or self.failure.code != UNREADABLE_LINE


NO_BILL = Bill()
SILENCE = Failure()


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The columns. Only a request that succeeded has values, and only one that did not has a failure."""

    outcomes: list[Outcome]
    values: list[Values | None]
    bills: list[Bill]
    models: list[str | None]
    batch_ids: list[str | None]  # None: no line has mentioned the request
    failures: dict[int, Failure]

    @classmethod
    def alike(cls, requests: int, outcome: Outcome, failure: Failure = SILENCE) -> "Judged":
        """All requests with the same fate, and nothing said of any of them yet."""
        return cls(
            outcomes=[outcome] * requests,
            values=[None] * requests,
            bills=[NO_BILL] * requests,
            models=[None] * requests,
            batch_ids=[None] * requests,
            failures={} if failure is SILENCE else dict.fromkeys(range(requests), failure),
        )

    def __len__(self) -> int:
        return len(self.outcomes)

    def put(self, verdict: Verdict, batch_id: str) -> None:
        """Enter what a line of this batch says about its request."""
        request = verdict.request
        self.outcomes[request] = verdict.outcome
        self.values[request] = verdict.values
        self.bills[request] = verdict.bill
        self.models[request] = verdict.model
        self.batch_ids[request] = batch_id
        if verdict.failure is None:
            self.failures.pop(request, None)
        else:
            self.failures[request] = verdict.failure

    def failure(self, request: int) -> Failure:
        """Why this request, which did not succeed, has no good answer."""
        return self.failures.get(request, SILENCE)

    def usages(self) -> Iterator[Usage]:
        """The tokens of each request."""
        return (bill.usage for bill in self.bills)

    @property
    def cost(self) -> float:
        """Dollars for all of them, where a price is known."""
        return math.fsum(bill.cost for bill in self.bills if bill.cost is not None)

    @property
    def list_cost(self) -> float:
        """The same in real time."""
        return math.fsum(bill.list_cost for bill in self.bills if bill.list_cost is not None)

    @property
    def unpriced(self) -> int:
        """How many have no known price."""
        return sum(bill.cost is None for bill in self.bills)
