"""Judge each result line, and gather one verdict per request of a shard.

One bad line costs one row: no exception leaves the judging of a line. Lines may come in any order, twice, broken, or
for other requests. A request that no line mentions is `missing`, or has the outcome that its batch's end implies. Only
one shard's answers are in memory.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import cycle
from typing import Any, NamedTuple

from airflow_batch_llm.core.answer import Answer, AnswerParser, Invalid, storable
from airflow_batch_llm.core.caching import CacheTotals
from airflow_batch_llm.core.model import MOST_TOKENS, Outcome, Result, Usage, Way
from airflow_batch_llm.core.output_type import OutputType
from airflow_batch_llm.core.packing import Layout, divide_dollars, divide_usage, item_answers
from airflow_batch_llm.core.price import PriceList
from airflow_batch_llm.providers.base import Provider
from airflow_batch_llm.providers.failures import MESSAGE_LENGTH
from airflow_batch_llm.providers.incoming import UnusableUsage
from airflow_batch_llm.providers.routed import by_route
from airflow_batch_llm.stage.records.plan import Plan, PlannedRoute

Values = tuple[Any, ...]

#: The code of a request whose attachment the vendor does not store.
ATTACHMENT_REFUSED = "attachment_refused"

#: The code of a line that names its request and has nothing else that can be used.
UNREADABLE_LINE = "unreadable_line"


class AnswerCost(NamedTuple):
    """The tokens of one answer, and their cost as asked and in real time. None: no price of the model is known."""

    usage: Usage = Usage()
    cost: float | None = 0.0
    list_cost: float | None = 0.0
    cache_won: float = 0.0
    """Dollars that the vendor's cache has saved of the cost. Below 0: it has cost more than it saved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFailure:
    """The reason for which a request has no good answer."""

    code: str | None = None
    message: str | None = None
    excerpt: str | None = None
    retryable: bool = True


class Judgement(NamedTuple):
    """The judgement on one request, or on one item of a packed request. Exactly one of `values` and `failure` is set.

    `request` is the item's number, which is the request's if the shard is not packed.
    """

    request: int
    outcome: Outcome
    bill: AnswerCost
    model: str | None = None
    values: Values | None = None
    failure: RowFailure | None = None
    extra: int = 0
    """The count of entries in a packed request's answer with a number that no item has. The first item's verdict holds it."""

    @property
    def is_readable(self) -> bool:
        return self.failure is None or self.failure.code != UNREADABLE_LINE


NO_BILL = AnswerCost()
SILENCE = RowFailure()


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgements:
    """Verdicts of many requests, in columns. Only a successful request has values, and only a failed one has a failure."""

    outcomes: list[Outcome]
    values: list[Values | None]
    bills: list[AnswerCost]
    models: list[str | None]
    batch_ids: list[str | None]  # None: no line has mentioned the request
    failures: dict[int, RowFailure]
    packed: Sequence[int] | None = None
    """The number of items in the request of each. None: the requests are not packed."""

    @classmethod
    def alike(cls, layout: Layout, outcome: Outcome, failure: RowFailure = SILENCE) -> "Judgements":
        """Return judgements in which every item has this outcome."""
        requests = layout.items
        return cls(
            outcomes=[outcome] * requests,
            values=[None] * requests,
            bills=[NO_BILL] * requests,
            models=[None] * requests,
            batch_ids=[None] * requests,
            failures={} if failure is SILENCE else dict.fromkeys(range(requests), failure),
            packed=list(layout.sizes()) if layout.is_packed else None,
        )

    def __len__(self) -> int:
        return len(self.outcomes)

    def put(self, verdict: Judgement, batch_id: str) -> None:
        """Enter the verdict on a line of this batch."""
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

    def leave_out(self, request: int, why: str) -> None:
        """Note that a request was not sent, because the vendor refuses its attachment."""
        if self.batch_ids[request] is None:
            self.outcomes[request] = Outcome.ERRORED
            self.failures[request] = RowFailure(code=ATTACHMENT_REFUSED, message=why, retryable=False)

    def failure(self, request: int) -> RowFailure:
        """Return the reason for which this request, which did not succeed, has no good answer."""
        return self.failures.get(request, SILENCE)

    def usages(self) -> Iterator[Usage]:
        """Return the tokens of each request."""
        return (bill.usage for bill in self.bills)

    @property
    def output_squares(self) -> float:
        """Return the sum of the squares of the output tokens of requests."""
        tokens = [float(bill.usage.output_tokens) for bill in self.bills]
        if self.packed is None:
            return math.fsum(count * count for count in tokens)
        return math.fsum(count * count * items for count, items in zip(tokens, self.packed, strict=True))

    @property
    def cost(self) -> float:
        """Dollars for all requests with a known price."""
        return math.fsum(bill.cost for bill in self.bills if bill.cost is not None)

    @property
    def list_cost(self) -> float:
        """The same in real time."""
        return math.fsum(bill.list_cost for bill in self.bills if bill.list_cost is not None)

    @property
    def unpriced(self) -> int:
        """Return the number of requests without a known price."""
        return sum(bill.cost is None for bill in self.bills)

    @property
    def cache(self) -> CacheTotals:
        """Count the answers that read from the vendor's cache, and the dollars that it saved."""
        return CacheTotals(
            answers=sum(bill.usage.input_tokens > 0 for bill in self.bills),
            hits=sum(bill.usage.cached_tokens > 0 for bill in self.bills),
            won=math.fsum(bill.cache_won for bill in self.bills),
        )


UNUSABLE_USAGE = "unusable_usage"

#: The codes of items of a packed request: no entry, several entries, and an answer that is not a list of entries.
MISSING_ITEM, DOUBLED_ITEM, NO_LIST = "missing_item", "doubled_item", "no_list_of_items"

#: The name, among the lines that no row needed, of entries with a number that no item has.
EXTRA_ITEMS = "extra_items"

#: The characters that are kept of a bad answer, of an error code and of a model's name.
EXCERPT_CHARS, _NAME_CHARS = 200, 200

#: At most this many usages and answers are cached, with their cost and values: labels and short answers repeat.
_REMEMBERED = 4096

#: An ordinal has fewer digits than this.
_ORDINAL_DIGITS = 12

#: The cost of a line that was probably paid for, but whose tokens are unknown.
_UNKNOWN_BILLS: Sequence[AnswerCost] = (AnswerCost(Usage(), None, None),)

_MESSAGES = {
    UNREADABLE_LINE: "The result line cannot be read",
    UNUSABLE_USAGE: "The result line has a token count that is not a count, so its cost is unknown",
}


class Foreign(Exception):
    """The line answers no request of the shard."""


@dataclass(frozen=True, kw_only=True)
class LineJudge:
    """Judges the lines of a plan's shards that were asked one way."""

    provider: Provider
    parser: AnswerParser
    prices: PriceList
    way: Way = Way.BATCH

    @cached_property
    def _billed(self) -> Callable[[Usage, bool, int], Sequence[AnswerCost]]:
        return lru_cache(_REMEMBERED)(self._bills)

    @cached_property
    def _parsed(self) -> Callable[[str], Answer | Invalid]:
        return lru_cache(_REMEMBERED)(self.parser.parse)

    def judge(self, line: bytes, token: str, layout: Layout) -> Sequence[Judgement]:
        """Return the verdicts on the items of the request that the line answers, exactly one for each.

        Empty if the line cannot be read and names no request. Raises `Foreign` for a readable line that answers no request
        of the shard, and `MemoryError`.
        """
        request, bills = None, _UNKNOWN_BILLS
        try:
            result = self.provider.decode(line)
            request = _request(result.custom_id, token, layout.requests)
            items = layout.items_of(request)
            bills = self._billed(result.usage, result.is_flex, len(items))
            if layout.is_packed:
                return self._verdicts(result, items, bills)
            return (self._verdict(result, request, bills[0]),)
        except (Foreign, MemoryError):
            # A lack of memory is not the line's fault: landing again may read it.
            raise
        except Exception as error:  # noqa: BLE001 - whatever the line does to its readers stays with the line
            named = _named(line, token, layout.requests) if request is None else request
            if named is None:
                return ()
            shared = zip(layout.items_of(named), cycle(bills), strict=False)
            return tuple(_spoiled(line, error, item, bill) for item, bill in shared)

    def _bills(self, usage: Usage, is_flex: bool, items: int) -> Sequence[AnswerCost]:
        """Divide the cost of a request among its items."""
        if not all(type(count) is int and 0 <= count <= MOST_TOKENS for count in usage):
            raise UnusableUsage
        whole = self.prices.by(self.way.billed(is_flex=is_flex)).priced(usage)
        usages = divide_usage(usage, items)
        if whole is None:
            return [AnswerCost(one, None, None) for one in usages]
        dollars = (whole.cost, whole.realtime, whole.uncached - whole.cost)
        shares = zip(*(divide_dollars(one, items) for one in dollars), strict=True)
        return [
            AnswerCost(one, float(cost), float(realtime), float(won))
            for one, (cost, realtime, won) in zip(usages, shares, strict=True)
        ]

    def _verdicts(self, result: Result, items: range, bills: Sequence[AnswerCost]) -> Sequence[Judgement]:
        """Judge the items of one packed request. Entries with other numbers are counted, and no row gets them."""
        found, is_list = item_answers(result.text or "")
        is_whole = result.outcome is Outcome.SUCCEEDED
        if not is_list or not (is_whole or result.outcome is Outcome.TRUNCATED):
            given = result if not is_whole else result._replace(outcome=Outcome.INVALID, error_code=NO_LIST)
            return [self._verdict(given, item, bill) for item, bill in zip(items, bills, strict=True)]
        first, *rest = (
            self._item_verdict(result, item, bill, found.pop(number, ()))
            for number, (item, bill) in enumerate(zip(items, bills, strict=True), 1)
        )
        return [first._replace(extra=sum(map(len, found.values()))), *rest]

    def _item_verdict(self, result: Result, item: int, bill: AnswerCost, answers: Sequence[str]) -> Judgement:
        """Judge an item by the answers that have its number."""
        if len(answers) == 1:
            text = self.parser.item_text(answers[0])
            whole = result._replace(outcome=Outcome.SUCCEEDED, text=text, error_code=None)
            return self._verdict(whole, item, bill)
        if answers:
            message = f"The answer has {len(answers)} entries for this item."
            failure = RowFailure(code=DOUBLED_ITEM, message=message)
            return Judgement(item, Outcome.INVALID, bill, _name(result.model), failure=failure)
        if result.outcome is Outcome.SUCCEEDED:
            failure = RowFailure(code=MISSING_ITEM, message="The answer has no entry for this item.")
            return Judgement(item, Outcome.MISSING, bill, _name(result.model), failure=failure)
        return self._verdict(result._replace(text=None), item, bill)

    def _verdict(self, result: Result, request: int, bill: AnswerCost) -> Judgement:
        model = _name(result.model)
        if result.outcome is not Outcome.SUCCEEDED:
            failure = _failure(result, result.error_code or result.finish_reason, result.error_message)
            return Judgement(request, result.outcome, bill, model, failure=failure)
        answer = self._parsed(result.text or "")
        if isinstance(answer, Answer):
            return Judgement(request, Outcome.SUCCEEDED, bill, model, values=answer.values)
        failure = _failure(result, answer.code, answer.message)
        return Judgement(request, Outcome.INVALID, bill, model, failure=failure)


def _request(custom_id: str, token: str, requests: int) -> int:
    """Return the number of the request that this custom_id names. Raises `Foreign`."""
    named, _, number = custom_id.rpartition("-")
    is_number = number.isascii() and number.isdecimal() and len(number) < _ORDINAL_DIGITS
    if named != token or not is_number or int(number) >= requests:
        raise Foreign
    return int(number)


def _named(line: bytes, token: str, requests: int) -> int | None:
    """Return the request of the shard that the bytes of an unreadable line name, or None if they name none or several."""
    found = re.findall(rb'"%s-(\d{1,%d})"' % (re.escape(token.encode()), _ORDINAL_DIGITS - 1), line)
    named = {number for number in map(int, found) if number < requests}
    return named.pop() if len(named) == 1 else None


def _spoiled(line: bytes, error: Exception, request: int, bill: AnswerCost) -> Judgement:
    """Return the verdict on a line that cannot be used."""
    code = UNUSABLE_USAGE if isinstance(error, UnusableUsage) else UNREADABLE_LINE
    failure = RowFailure(
        code=code,
        message=f"{_MESSAGES[code]} ({type(error).__name__}).",
        excerpt=storable(line[:EXCERPT_CHARS].decode(errors="replace")),
    )
    return Judgement(request, Outcome.INVALID, bill, failure=failure)


def _failure(result: Result, code: str | None, message: str | None) -> RowFailure:
    return RowFailure(
        code=_name(code),
        message=_text(message, MESSAGE_LENGTH),
        excerpt=_text(result.text, EXCERPT_CHARS),
        retryable=result.retryable,
    )


def _name(value: object) -> str | None:
    return _text(value, _NAME_CHARS)


def _text(value: object, length: int) -> str | None:
    """Return the part of a text that is kept, in characters that every database takes."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError
    return storable(value[:length]) or None


@dataclass(slots=True, kw_only=True)
class ReadResults:
    """The judged requests of a shard, and the lines that no row needed."""

    judged: Judgements
    token: str = ""  # the shard's: each of its requests has it
    layout: Layout = Layout.alone(0)  # noqa: RUF009 - it is frozen
    strange: Counter[str] = field(default_factory=Counter)  # lines, by kind
    stray_cost: float = 0.0  # of answers that no row needed, since another batch had given them
    batches: list[str] = field(default_factory=list)  # that were read
    left_out: int = 0  # requests that were not sent, because the vendor refuses their attachments


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultReader:
    """Gathers the verdicts on the lines of a plan's shards."""

    lines: LineJudge

    @classmethod
    def of(cls, provider: Provider, plan: Plan, route: PlannedRoute) -> "ResultReader":
        """Make the reader of a plan, with the prices of the day of the plan, by which its budget was checked."""
        prices = PriceList.of(plan.vendor(route), route.call.model, plan.limits.prices, at=plan.planned_at)
        return cls(
            lines=LineJudge(
                provider=by_route(provider, route.call.via),
                parser=AnswerParser.of(OutputType.from_json(plan.output_type)),
                prices=prices,
                way=route.way,
            )
        )

    def gather(
        self,
        batches: Iterable[tuple[str, Iterable[bytes]]],
        *,
        token: str,
        layout: Layout,
        unmentioned: Outcome = Outcome.MISSING,
    ) -> ReadResults:
        """Judge the lines of a shard's batches, the recorded one first. The first good answer to an item wins."""
        judged = Judgements.alike(layout, unmentioned)
        gathered = ReadResults(judged=judged, token=token, layout=layout)
        for batch_id, lines in batches:
            gathered.batches.append(batch_id)
            for line in lines:
                self._take(line, batch_id, gathered)
        return gathered

    def _take(self, line: bytes, batch_id: str, gathered: ReadResults) -> None:
        judged = gathered.judged
        try:
            verdicts = self.lines.judge(line, gathered.token, gathered.layout)
        except Foreign:
            gathered.strange["foreign_lines"] += 1
            return
        if not verdicts or not verdicts[0].is_readable:
            gathered.strange["unreadable_lines"] += 1
        if verdicts and judged.batch_ids[verdicts[0].request] is not None:
            gathered.strange["duplicate_lines"] += 1
        for verdict in verdicts:
            if verdict.extra:
                gathered.strange[EXTRA_ITEMS] += verdict.extra
            if judged.batch_ids[verdict.request] is None or _serves(
                verdict, batch_id, gathered, is_bought=self.lines.way.in_real_time
            ):
                judged.put(verdict, batch_id)


def _serves(verdict: Judgement, batch_id: str, gathered: ReadResults, *, is_bought: bool) -> bool:
    """Return whether a second line for a request replaces the first.

    A second line of the same batch is the provider's error. One of another batch was paid, and so was each answer in real
    time (`is_bought`), so the worse of both is waste.
    """
    judged, request = gathered.judged, verdict.request
    better = judged.outcomes[request] is not Outcome.SUCCEEDED and verdict.outcome is Outcome.SUCCEEDED
    if is_bought or batch_id != judged.batch_ids[request]:
        useless = judged.bills[request] if better else verdict.bill
        gathered.stray_cost += useless.cost or 0.0
    return better
