"""Estimate a run's cost before the first cent, and name what the estimate rests on.

The number of input tokens is that of an earlier run with the same spec, is scaled up from a counted sample, or is guessed
from the bytes. Without an earlier run nobody knows how long the answers will be: they lie between nothing and `max_tokens`,
so the dollars have a low and a high end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import StrEnum
from typing import Any, assert_never

from airflow_batch_llm.core.attachment import AttachmentTokens
from airflow_batch_llm.core.caching import CachedRun
from airflow_batch_llm.core.model import ColumnType, Usage, Way
from airflow_batch_llm.core.output_type import AnswerKind, OutputType
from airflow_batch_llm.core.packing import ITEM_TOKENS
from airflow_batch_llm.core.price import PriceList
from airflow_batch_llm.core.printing import counted, verb

BYTES_PER_TOKEN = 4.0
_UNCERTAINTY = 0.3  # of a count that was guessed from bytes, either way
_UNBOUNDED_ANSWER = 4096  # tokens, where the user set no limit

_TEXT_TOKENS = 300
_SHORT_COLUMN_TOKENS = 12


class EstimateSource(StrEnum):
    """Name what an estimate's tokens rest on."""

    BYTES = "bytes"  # of the prompts, and of a usual answer
    COUNTED = "counted"  # the provider has counted some prompts; the answer is a usual one
    EARLIER_RUN = "earlier_run"  # the tokens of the last run with the same spec, of prompts and answers
    CANARY = "canary"  # the tokens of the run's own canary


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The means of an earlier run's requests with the same spec, and what their rows took in later rounds."""

    requests: int
    prompt_bytes: float
    input_tokens: float
    output_tokens: float
    items: float = 1.0
    """The prompts of a request. Default: 1."""
    is_packed: bool = False
    """Its requests were packed. Default: no."""
    later_input_tokens: float = 0.0
    """The tokens for each prompt in later rounds: rows that were asked again, or by another route. Default: none."""
    later_output_tokens: float = 0.0
    """The same of the answers. Default: none."""
    later_dollars: float = 0.0
    """Dollars of later rounds for each prompt. Default: none."""

    def answer_tokens(self, items: float, *, is_packed: bool) -> float:
        """Return the tokens of the answer to a request with this many prompts."""
        numbers = ITEM_TOKENS * (is_packed - self.is_packed)
        return items * max(1.0, self.output_tokens / self.items + numbers)


_NOTHING_MEASURED = Measured(requests=0, prompt_bytes=0.0, input_tokens=0.0, output_tokens=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSize:
    """Facts about the requests that are known before they are sent."""

    requests: int
    prompt_bytes: int  # of all prompts together
    largest_bytes: int = 0  # of the longest one
    sample: Sequence[tuple[int, int]] = ()  # (prompt bytes, input tokens as the provider counts them)
    shared_bytes: int = 0  # of system prompt and schema, which each request repeats; used without a sample
    max_tokens: int | None = None
    attached: AttachmentTokens = field(
        default_factory=AttachmentTokens
    )  # of all prompts; an earlier run has measured its own
    attached_assumption: str = ""
    """What is assumed of attachments whose size is not known."""
    answer_tokens: int = _TEXT_TOKENS  # of a usual answer: see `usual_answer`
    measured: Measured | None = None
    """An earlier run with the same spec. It counts before the sample. Default: there is none."""
    cached: CachedRun | None = None
    """The use that such a run made of the vendor's cache, asked as these requests are. Default: not known, so none."""
    packed: int = 0
    """The prompts that share packed requests. Default: 0, each request has one."""

    @property
    def prompts(self) -> int:
        """The number of prompts of all requests together."""
        return self.packed or self.requests

    @property
    def source(self) -> EstimateSource:
        """Return what the estimate rests on."""
        if self.measured is not None:
            return EstimateSource.EARLIER_RUN
        return EstimateSource.COUNTED if self.sample else EstimateSource.BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Tokens and dollars of a whole run. The dollars are None where no price is known."""

    requests: int
    input_tokens: int
    output_tokens: int
    low: Decimal | None
    expected: Decimal | None
    high: Decimal | None
    assumptions: tuple[str, ...] = ()
    prompt_bytes: int = 0
    """Of all prompts together."""
    source: EstimateSource = EstimateSource.BYTES
    """The base of the tokens. Default: the bytes."""

    @property
    def per_request(self) -> Decimal | None:
        """The expected dollars of one request."""
        if self.expected is None:
            return None
        return self.expected / self.requests if self.requests else Decimal(0)

    def to_json(self) -> dict[str, Any]:
        """For the frozen plan, and for people: dollars as numbers."""
        dollars = {"low": self.low, "expected": self.expected, "high": self.high}
        return {
            "requests": self.requests,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            **{name: None if amount is None else float(amount) for name, amount in dollars.items()},
            "assumptions": list(self.assumptions),
            "prompt_bytes": self.prompt_bytes,
            "source": self.source.value,
        }


def usual_answer(output_type: OutputType) -> int:
    """Output tokens that an answer of this type usually has, roughly."""
    match output_type.kind:
        case AnswerKind.TEXT:
            return _TEXT_TOKENS
        case AnswerKind.LABEL:
            return _SHORT_COLUMN_TOKENS
        case AnswerKind.OBJECT | AnswerKind.VALUE | AnswerKind.VECTOR:
            return sum(
                _SHORT_COLUMN_TOKENS if output_type.is_choice(column) else _column_tokens(column.type)
                for column in output_type.columns
            )
        case _:
            assert_never(output_type.kind)


def usual_packed_answer(output_type: OutputType, items: float, *, is_packed: bool) -> int:
    """Output tokens of the answer to a request with this many items, on average."""
    one = usual_answer(output_type)
    return round(items * (one + ITEM_TOKENS)) if is_packed else one


def of_items(guess: Estimate, items: int) -> Estimate:
    """Return the estimate of requests as that of the items that share them."""
    if items == guess.requests:
        return guess
    told = f"Rows per request, on average: {items / guess.requests:.1f}."
    return replace(guess, requests=items, assumptions=(*guess.assumptions, told))


def _column_tokens(type_: ColumnType) -> int:
    match type_:
        case ColumnType.STRING:
            return 40
        case ColumnType.JSON:
            return 80
        case ColumnType.VECTOR:
            return 0
        case ColumnType.INTEGER | ColumnType.NUMBER | ColumnType.DECIMAL:
            return _SHORT_COLUMN_TOKENS
        case ColumnType.BOOLEAN | ColumnType.TIMESTAMP | ColumnType.DATE:
            return _SHORT_COLUMN_TOKENS
        case _:
            assert_never(type_)


def estimate(prices: PriceList, size: RequestSize) -> Estimate:
    """The cost of all requests together."""
    limit = size.max_tokens if size.max_tokens is not None else max(_UNBOUNDED_ANSWER, size.answer_tokens)
    if size.answer_tokens == 0:
        limit = 0
    usual = min(limit, _answer_tokens(size))
    tokens, assumptions = _input_tokens(size)
    slack = _UNCERTAINTY if size.source is EstimateSource.BYTES else 0.0
    low = _cost(prices, size, tokens * (1 - slack), min(1, usual))
    expected = _cost(prices, size, tokens, usual)
    high = _cost(prices, size, tokens * (1 + slack), limit)
    if size.cached is not None:
        assumptions.append(
            f"{size.cached.hit_rate:.0%} of the requests are taken to read from the vendor's cache."
        )
    assumptions.append(f"An answer is taken to have {usual:,} output tokens, and {limit:,} at the most.")
    again = size.measured or _NOTHING_MEASURED
    later = Decimal(str(again.later_dollars)) * size.prompts
    if later:
        assumptions.append(f"Rows that are asked again are taken to cost ${later:,.4f}, as in that run.")
    return Estimate(
        requests=size.requests,
        input_tokens=round(tokens) * size.requests + round(again.later_input_tokens * size.prompts),
        output_tokens=usual * size.requests + round(again.later_output_tokens * size.prompts),
        low=low,
        expected=None if expected is None else expected + later,
        high=None if high is None else high + later,
        assumptions=(*assumptions, *_about_prices(prices, size, tokens * (1 + slack))),
        prompt_bytes=size.prompt_bytes,
        source=size.source,
    )


def _answer_tokens(size: RequestSize) -> int:
    """The mean output tokens of a request."""
    if size.measured is None or not size.requests:
        return size.answer_tokens
    return round(size.measured.answer_tokens(size.prompts / size.requests, is_packed=size.packed > 0))


def _input_tokens(size: RequestSize) -> tuple[float, list[str]]:
    """The mean input tokens of a request, and what that rests on."""
    if not size.requests:
        return 0.0, []
    mean_bytes = size.prompt_bytes / size.requests
    if size.measured is not None:
        longer = (mean_bytes - size.measured.prompt_bytes) / BYTES_PER_TOKEN
        return max(1.0, size.measured.input_tokens + longer), [
            f"Tokens are the mean of {counted(size.measured.requests, 'request')} of an earlier run with the same spec."
        ]
    attached, assumed = size.attached.tokens / size.requests, _about_attachments(size)
    if not size.sample:
        tokens = (mean_bytes + size.shared_bytes) / BYTES_PER_TOKEN
        guessed = f"Input tokens are guessed from the bytes, {BYTES_PER_TOKEN:g} to a token."
        return tokens + attached, [guessed, *assumed]
    # What each request repeats is in the sample's counts whatever its prompts' lengths; only the difference
    # between the sample's prompts and all of them has to be guessed.
    sampled_bytes = sum(count for count, _ in size.sample) / len(size.sample)
    sampled_tokens = sum(tokens for _, tokens in size.sample) / len(size.sample)
    tokens = max(1.0, sampled_tokens + (mean_bytes - sampled_bytes) / BYTES_PER_TOKEN)
    return tokens + attached, [
        f"Input tokens are scaled up from {counted(len(size.sample), 'prompt')} that the provider has counted.",
        *assumed,
    ]


def _about_attachments(size: RequestSize) -> list[str]:
    """Say what the tokens of attachments rest on."""
    count, unmeasured = size.attached.count, size.attached.unmeasured
    if not count:
        return []
    told = f"{counted(count, 'attachment')} {verb(count, 'is', 'are')} counted as {size.attached.tokens:,} input tokens."
    if not unmeasured:
        return [told]
    return [told, f"The size of {unmeasured:,} of them is not known: {size.attached_assumption}."]


def _cost(prices: PriceList, size: RequestSize, input_tokens: float, output_tokens: int) -> Decimal | None:
    whole = round(input_tokens)
    read = 0 if size.cached is None else min(whole, round(size.cached.cached_tokens))
    written = 0 if size.cached is None else min(whole - read, round(size.cached.written_tokens))
    one = prices.cost(Usage(whole, read, written, output_tokens))
    return None if one is None else one * size.requests


def _about_prices(prices: PriceList, size: RequestSize, mean_tokens: float) -> list[str]:
    if not prices.known:
        example = f"prices={{'{prices.model}': {{'input': …, 'output': …}}}}"
        meant = "" if prices.similar is None else f" Is the model {prices.similar}?"
        advice = f"If the name is right, give its price in dollars per million tokens: {example}."
        return [f"No price of {prices.model} is known.{meant} {advice}"]
    said = [prices.assumed] if prices.assumed else []
    if prices.way is Way.FLEX:
        said.append("An answer that comes from the vendor's usual tier costs the full price.")
    longest = max(
        mean_tokens, (size.largest_bytes + size.shared_bytes) / BYTES_PER_TOKEN * (1 + _UNCERTAINTY)
    )
    passed = [start for start in prices.tiers if longest > start >= mean_tokens]
    if passed:
        said.append(
            f"Requests above {passed[0]:,} input tokens cost more; all are priced at the mean length."
        )
    return said
