"""From raw result lines to one judged answer per request of a shard.

Lines come in any order, twice, for strangers, or broken. Each costs at most its own row; a request that no line
mentions is `missing`. What is held is one shard's answers, never the table's.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from airflow_batch_llm.core.answer import Answer, AnswerParser, Invalid
from airflow_batch_llm.core.model import Outcome, Result, Usage
from airflow_batch_llm.core.price import PriceList
from airflow_batch_llm.providers.base import Provider

EXCERPT_CHARS = 200


@dataclass(slots=True)
class Judged:
    """What became of one request."""

    outcome: Outcome = Outcome.MISSING
    values: tuple[Any, ...] | None = None
    usage: Usage = field(default_factory=Usage)
    cost: float | None = 0.0  # None: no price of the model is known
    list_cost: float | None = 0.0
    model: str | None = None
    batch_id: str | None = None
    code: str | None = None
    message: str | None = None
    excerpt: str | None = None
    retryable: bool = True


#: What stands for a request until a line mentions it. Shared, so never changed.
_MISSING = Judged()

#: So many usages and answers are remembered, with what they cost and mean: labels and short answers repeat.
_REMEMBERED = 1024


@dataclass(slots=True, kw_only=True)
class Gathered:
    """The judged requests by ordinal, and what served nobody."""

    judged: list[Judged]
    strange: Counter[str] = field(default_factory=Counter)  # lines, by kind
    stray_cost: float = 0.0  # of answers that another batch had given already


@dataclass(frozen=True, slots=True, kw_only=True)
class Gatherer:
    """Decodes, validates and prices the lines of one shard."""

    provider: Provider
    parser: AnswerParser
    prices: PriceList
    token: str
    requests: int
    _priced: Callable[[Usage], tuple[float, float] | None] = field(init=False)
    _parsed: Callable[[str], Answer | Invalid] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_priced", lru_cache(_REMEMBERED)(self._dollars))
        object.__setattr__(self, "_parsed", lru_cache(_REMEMBERED)(self.parser.parse))

    def gather(self, batches: Iterable[tuple[str, Iterable[bytes]]]) -> Gathered:
        """Judge the lines of the shard's batches, the recorded one first. The first good line of a request wins."""
        gathered = Gathered(judged=[_MISSING] * self.requests)
        for batch_id, lines in batches:
            for line in lines:
                self._take(line, batch_id, gathered)
        return gathered

    def _take(self, line: bytes, batch_id: str, gathered: Gathered) -> None:
        try:
            result = self.provider.decode(line)
        except ValueError:
            gathered.strange["unreadable_lines"] += 1
            return
        ordinal = self._ordinal(result.custom_id)
        if ordinal is None:
            gathered.strange["foreign_lines"] += 1
            return
        before = gathered.judged[ordinal]
        if before.outcome is not Outcome.MISSING:
            self._note_second(result, batch_id, before, gathered)
            if before.outcome is Outcome.SUCCEEDED or result.outcome is not Outcome.SUCCEEDED:
                return
        gathered.judged[ordinal] = self._judge(result, batch_id)

    def _note_second(self, result: Result, batch_id: str, before: Judged, gathered: Gathered) -> None:
        """A second line of one batch is the provider's slip; one of another batch was bought twice."""
        gathered.strange["duplicate_lines"] += 1
        priced = self._priced(result.usage)
        if priced is not None and batch_id != before.batch_id:
            gathered.stray_cost += priced[0]

    def _dollars(self, usage: Usage) -> tuple[float, float] | None:
        """In a batch, and in real time."""
        priced = self.prices.priced(usage)
        return None if priced is None else (float(priced.batch), float(priced.realtime))

    def _ordinal(self, custom_id: str) -> int | None:
        token, _, ordinal = custom_id.rpartition("-")
        if token != self.token or not ordinal.isdecimal() or int(ordinal) >= self.requests:
            return None
        return int(ordinal)

    def _judge(self, result: Result, batch_id: str) -> Judged:
        cost, list_cost = self._priced(result.usage) or (None, None)
        judged = Judged(
            outcome=result.outcome,
            usage=result.usage,
            cost=cost,
            list_cost=list_cost,
            model=result.model,
            batch_id=batch_id,
            code=result.error_code or result.finish_reason,
            message=result.error_message,
            excerpt=result.text[:EXCERPT_CHARS] if result.text else None,
            retryable=result.retryable,
        )
        if result.outcome is Outcome.SUCCEEDED:
            self._validate(result.text or "", judged)
        return judged

    def _validate(self, text: str, judged: Judged) -> None:
        answer = self._parsed(text)
        if isinstance(answer, Invalid):
            judged.outcome, judged.code, judged.message = Outcome.INVALID, answer.code, answer.message
        else:
            judged.values, judged.code, judged.excerpt = answer.values, None, None
