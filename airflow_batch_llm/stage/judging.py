"""The one place where a provider's line is decoded, priced and judged.

A line may hold anything: no exception leaves `LineJudge.judge`. What cannot be used is the outcome of the row that
the line names, and costs no other row. A line that names no row of the shard is counted and passed over.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from airflow_batch_llm.core.answer import Answer, AnswerParser, Invalid, storable
from airflow_batch_llm.core.model import MOST_TOKENS, Outcome, Result, Usage
from airflow_batch_llm.core.price import PriceList
from airflow_batch_llm.providers.base import Provider
from airflow_batch_llm.providers.lines import MESSAGE_LENGTH, UnusableUsage
from airflow_batch_llm.stage.judged import UNREADABLE_LINE, Bill, Failure, Verdict

UNUSABLE_USAGE = "unusable_usage"

#: The characters that are kept of a bad answer, of an error code and of a model's name.
EXCERPT_CHARS, _NAME_CHARS = 200, 200

#: So many usages and answers are remembered, with what they cost and mean: labels and short answers repeat.
_REMEMBERED = 4096

#: An ordinal has fewer digits than this.
_ORDINAL_DIGITS = 12

#: The bill of a line that was probably paid for, although nobody can tell what it has cost.
_UNKNOWN_BILL = Bill(Usage(), None, None)

_MESSAGES = {
    UNREADABLE_LINE: "The result line cannot be read",
    UNUSABLE_USAGE: "The result line has a token count that is not a count, so its cost is unknown",
}


class Foreign(Exception):
    """The line answers no request of the shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LineJudge:
    """Judges the lines of a plan's shards."""

    provider: Provider
    parser: AnswerParser
    prices: PriceList
    _billed: Callable[[Usage], Bill] = field(init=False)
    _parsed: Callable[[str], Answer | Invalid] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_billed", lru_cache(_REMEMBERED)(self._bill))
        object.__setattr__(self, "_parsed", lru_cache(_REMEMBERED)(self.parser.parse))

    def judge(self, line: bytes, token: str, requests: int) -> Verdict | None:
        """The verdict on the request of this shard that the line answers; None: the line cannot be read and names none.

        Raises `Foreign` for a readable line that answers no request of the shard, and `MemoryError`.
        """
        request, bill = None, _UNKNOWN_BILL
        try:
            result = self.provider.decode(line)
            request = _request(result.custom_id, token, requests)
            bill = self._billed(result.usage)
            return self._verdict(result, request, bill)
        except (Foreign, MemoryError):
            # Where memory ran out the machine is at fault, not the line: landing again may read it.
            raise
        except Exception as error:  # noqa: BLE001 - whatever the line does to its readers stays with the line
            named = _named(line, token, requests) if request is None else request
            return None if named is None else _spoiled(line, error, named, bill)

    def _verdict(self, result: Result, request: int, bill: Bill) -> Verdict:
        model = _name(result.model)
        if result.outcome is not Outcome.SUCCEEDED:
            failure = _failure(result, result.error_code or result.finish_reason, result.error_message)
            return Verdict(request, result.outcome, bill, model, failure=failure)
        answer = self._parsed(result.text or "")
        if isinstance(answer, Answer):
            return Verdict(request, Outcome.SUCCEEDED, bill, model, values=answer.values)
        failure = _failure(result, answer.code, answer.message)
        return Verdict(request, Outcome.INVALID, bill, model, failure=failure)

    def _bill(self, usage: Usage) -> Bill:
        if not all(type(count) is int and 0 <= count <= MOST_TOKENS for count in usage):
            raise UnusableUsage
        priced = self.prices.priced(usage)
        if priced is None:
            return Bill(usage, None, None)
        return Bill(usage, float(priced.batch), float(priced.realtime))


def _request(custom_id: str, token: str, requests: int) -> int:
    """The number of the request that this custom_id names. Raises `Foreign`."""
    named, _, number = custom_id.rpartition("-")
    is_number = number.isascii() and number.isdecimal() and len(number) < _ORDINAL_DIGITS
    if named != token or not is_number or int(number) >= requests:
        raise Foreign
    return int(number)


def _named(line: bytes, token: str, requests: int) -> int | None:
    """The one request of the shard that the bytes of an unreadable line name; None: they name none, or several."""
    found = re.findall(rb'"%s-(\d{1,%d})"' % (re.escape(token.encode()), _ORDINAL_DIGITS - 1), line)
    named = {number for number in map(int, found) if number < requests}
    return named.pop() if len(named) == 1 else None


def _spoiled(line: bytes, error: Exception, request: int, bill: Bill) -> Verdict:
    """The verdict on a line that cannot be used."""
    code = UNUSABLE_USAGE if isinstance(error, UnusableUsage) else UNREADABLE_LINE
    failure = Failure(
        code=code,
        message=f"{_MESSAGES[code]} ({type(error).__name__}).",
        excerpt=storable(line[:EXCERPT_CHARS].decode(errors="replace")),
    )
    return Verdict(request, Outcome.INVALID, bill, failure=failure)


def _failure(result: Result, code: str | None, message: str | None) -> Failure:
    return Failure(
        code=_name(code),
        message=_text(message, MESSAGE_LENGTH),
        excerpt=_text(result.text, EXCERPT_CHARS),
        retryable=result.retryable,
    )


def _name(value: object) -> str | None:
    return _text(value, _NAME_CHARS)


def _text(value: object, length: int) -> str | None:
    """As much of a text as is kept, in characters that every database takes."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError
    return storable(value[:length]) or None
