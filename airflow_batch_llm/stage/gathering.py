"""From raw result lines to one judged answer per request of a shard.

Lines come in any order, twice, for strangers, or broken. Each costs at most its own row; a request that no line
mentions is `missing`, or what the end of its batch says. What is held is one shard's answers, never the table's.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from airflow_batch_llm.core.answer import Answer, AnswerParser, Invalid
from airflow_batch_llm.core.model import Outcome, Result, Usage
from airflow_batch_llm.core.output_type import OutputType
from airflow_batch_llm.core.price import PriceList
from airflow_batch_llm.providers.base import Provider
from airflow_batch_llm.stage.judged import Bill, Failure, Judged
from airflow_batch_llm.stage.plan import Plan

EXCERPT_CHARS = 200

#: So many usages and answers are remembered, with what they cost and mean: labels and short answers repeat.
_REMEMBERED = 4096


@dataclass(slots=True, kw_only=True)
class Gathered:
    """The judged requests of a shard, and what served nobody."""

    judged: Judged
    token: str = ""  # the shard's: each of its requests bears it
    strange: Counter[str] = field(default_factory=Counter)  # lines, by kind
    stray_cost: float = 0.0  # of answers that served nobody, since another batch had given them
    batches: list[str] = field(default_factory=list)  # that were read


@dataclass(frozen=True, slots=True, kw_only=True)
class Gatherer:
    """Decodes, validates and prices the lines of a plan's shards."""

    provider: Provider
    parser: AnswerParser
    prices: PriceList
    _billed: Callable[[Usage], Bill] = field(init=False)
    _parsed: Callable[[str], Answer | Invalid] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_billed", lru_cache(_REMEMBERED)(self._bill))
        object.__setattr__(self, "_parsed", lru_cache(_REMEMBERED)(self.parser.parse))

    @classmethod
    def of(cls, provider: Provider, plan: Plan) -> "Gatherer":
        """The prices are those of the day of the plan, on which its budget was judged."""
        return cls(
            provider=provider,
            parser=AnswerParser.of(OutputType.from_json(plan.output_type)),
            prices=PriceList.of(plan.provider, plan.model, plan.limits.prices, at=plan.planned_at),
        )

    def gather(
        self,
        batches: Iterable[tuple[str, Iterable[bytes]]],
        *,
        token: str,
        requests: int,
        unmentioned: Outcome = Outcome.MISSING,
    ) -> Gathered:
        """Judge the lines of a shard's batches, the recorded one first. The first good line of a request wins."""
        gathered = Gathered(judged=Judged.alike(requests, unmentioned), token=token)
        for batch_id, lines in batches:
            gathered.batches.append(batch_id)
            for line in lines:
                self._take(line, batch_id, gathered)
        return gathered

    def _take(self, line: bytes, batch_id: str, gathered: Gathered) -> None:
        try:
            result = self.provider.decode(line)
        except ValueError:
            gathered.strange["unreadable_lines"] += 1
            return
        request = _number(result.custom_id, gathered)
        if request is None:
            gathered.strange["foreign_lines"] += 1
            return
        judged = gathered.judged
        if judged.batch_ids[request] is not None and not self._serves(result, request, batch_id, gathered):
            return
        self._judge(result, request, batch_id, judged)

    def _serves(self, result: Result, request: int, batch_id: str, gathered: Gathered) -> bool:
        """Whether a second line takes the place of the first.

        One of the same batch is the provider's slip. One of another batch was bought: the worse of both was for nothing.
        """
        judged = gathered.judged
        better = judged.outcomes[request] is not Outcome.SUCCEEDED and result.outcome is Outcome.SUCCEEDED
        gathered.strange["duplicate_lines"] += 1
        if batch_id != judged.batch_ids[request]:
            useless = judged.bills[request] if better else self._billed(result.usage)
            gathered.stray_cost += useless.cost or 0.0
        return better

    def _bill(self, usage: Usage) -> Bill:
        priced = self.prices.priced(usage)
        if priced is None:
            return Bill(usage, None, None)
        return Bill(usage, float(priced.batch), float(priced.realtime))

    def _judge(self, result: Result, request: int, batch_id: str, judged: Judged) -> None:
        outcome, values = result.outcome, None
        if outcome is Outcome.SUCCEEDED:
            answer = self._parsed(result.text or "")
            if isinstance(answer, Answer):
                values = answer.values
                judged.failures.pop(request, None)
            else:
                outcome = Outcome.INVALID
                judged.failures[request] = _failure(result, answer.code, answer.message)
        else:
            code = result.error_code or result.finish_reason
            judged.failures[request] = _failure(result, code, result.error_message)
        judged.outcomes[request] = outcome
        judged.values[request] = values
        judged.bills[request] = self._billed(result.usage)
        judged.models[request] = result.model
        judged.batch_ids[request] = batch_id


def _number(custom_id: str, gathered: Gathered) -> int | None:
    """Which of the shard's requests a line answers; None: no one of them."""
    token, _, number = custom_id.rpartition("-")
    if token != gathered.token or not number.isdecimal():
        return None
    request = int(number)
    return request if request < len(gathered.judged) else None


def _failure(result: Result, code: str | None, message: str | None) -> Failure:
    excerpt = result.text[:EXCERPT_CHARS] if result.text else None
    return Failure(code=code, message=message, excerpt=excerpt, retryable=result.retryable)
