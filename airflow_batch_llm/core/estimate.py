"""Estimate a run's cost before the first cent, and name the source of the estimate.

The number of input tokens is that of earlier runs with the same spec, is scaled up from a counted sample, or is guessed
from the bytes. Without an earlier run the length of the answers is unknown: it lies between nothing and `max_tokens`,
so the dollars have a low and a high end. Earlier runs also tell how far chance moves the cost: which requests hit a cache,
which rows are asked again, and how long the answers are.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from decimal import Decimal
from enum import StrEnum
from typing import Any, NamedTuple, assert_never

import orjson

from airflow_batch_llm.core.attachment import AttachmentTokens
from airflow_batch_llm.core.caching import REMEMBERED, CachedRun
from airflow_batch_llm.core.model import ColumnType, Usage, Way
from airflow_batch_llm.core.output_type import AnswerKind, OutputType
from airflow_batch_llm.core.packing import ITEM_TOKENS
from airflow_batch_llm.core.price import PriceList
from airflow_batch_llm.core.printing import counted, verb

BYTES_PER_TOKEN = 4.0
_UNCERTAINTY = 0.3  # of a count that was guessed from bytes, either way
_UNBOUNDED_ANSWER = 4096  # tokens, where the user set no limit

#: Nine in ten values of a normal distribution are within this many standard deviations of its mean.
LIKELY = 1.645

_TEXT_TOKENS = 300
_SHORT_COLUMN_TOKENS = 12


class EstimateSource(StrEnum):
    """The sources of an estimate's tokens."""

    BYTES = "bytes"  # of the prompts, and of a usual answer
    COUNTED = "counted"  # the provider has counted some prompts; the answer is a usual one
    EARLIER_RUN = "earlier_run"  # the tokens of the last runs with the same spec, of prompts and answers
    CANARY = "canary"  # the tokens of the run's own canary


@dataclass(frozen=True, slots=True, kw_only=True)
class Later:
    """Add up the requests of later rounds: rows that were asked again, or by another route."""

    requests: float = 0.0
    prompts: float = 0.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    dollars: float = 0.0
    prompt_dollars: float = 0.0
    """The part of the dollars without a cache that is for prompts and answers. The rest is for what each request repeats."""
    hits: float = 0.0
    """Requests that read from the vendor's cache."""
    won: float = 0.0
    """Dollars that the cache has saved."""

    def plus(self, other: "Later") -> "Later":
        """Return both together."""
        return Later(**{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(self)})

    def times(self, factor: float) -> "Later":
        """Return as many times all of it."""
        return Later(**{one.name: getattr(self, one.name) * factor for one in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The means of the requests of earlier runs with the same spec, and what their rows took in later rounds."""

    requests: float
    prompt_bytes: float
    input_tokens: float
    output_tokens: float
    items: float = 1.0
    """The prompts of a request. Default: 1."""
    is_packed: bool = False
    """Its requests were packed. Default: no."""
    output_variance: float | None = None
    """The variance of the tokens of one prompt's answer. Default: not known, an earlier release has measured."""
    alone: Later = field(default_factory=Later)
    """The later requests with one prompt each. Default: none."""
    packed: Later = field(default_factory=Later)
    """The later requests that were packed. Default: none."""

    @property
    def prompts(self) -> float:
        """The number of prompts of the first rounds."""
        return self.requests * self.items

    def answer_tokens(self, items: float, *, is_packed: bool) -> float:
        """Return the tokens of the answer to a request with this many prompts."""
        numbers = ITEM_TOKENS * (is_packed - self.is_packed)
        return items * max(1.0, self.output_tokens / self.items + numbers)

    def after(self, earlier: "Measured | None") -> "Measured":
        """Return the means of this run and of those before it, which count as `REMEMBERED` prompts at the most."""
        if earlier is None or earlier.is_packed is not self.is_packed:
            return self
        factor = min(1.0, REMEMBERED / max(1.0, earlier.prompts))
        weights = (self.requests, earlier.requests * factor)
        variances = [one for one in (self.output_variance, earlier.output_variance) if one is not None]

        def mean(mine: float, theirs: float) -> float:
            return (mine * weights[0] + theirs * weights[1]) / sum(weights)

        return replace(
            self,
            requests=sum(weights),
            prompt_bytes=mean(self.prompt_bytes, earlier.prompt_bytes),
            input_tokens=mean(self.input_tokens, earlier.input_tokens),
            output_tokens=mean(self.output_tokens, earlier.output_tokens),
            items=mean(self.items, earlier.items),
            output_variance=mean(variances[0], variances[-1]) if variances else None,
            alone=self.alone.plus(earlier.alone.times(factor)),
            packed=self.packed.plus(earlier.packed.times(factor)),
        )

    def to_json(self) -> bytes:
        """For the workspace."""
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> "Measured":
        """From the workspace. Other releases may have kept other numbers of later rounds."""
        stored = orjson.loads(data)
        known = {one.name: stored[one.name] for one in fields(cls) if one.name in stored}
        later: dict[str, Any] = {name: Later(**known[name]) for name in ("alone", "packed") if name in known}
        return cls(**{**known, **later})


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSize:
    """Facts about the requests that are known before they are sent."""

    requests: int
    prompt_bytes: int  # of all prompts together
    largest_bytes: int = 0  # of the longest one
    sample: Sequence[tuple[int, int]] = ()  # (prompt bytes, input tokens as the provider counts them)
    shared_bytes: int = 0  # of system prompt and schema, which each request repeats; used without a sample
    max_tokens: int | None = None
    attached: AttachmentTokens = field(default_factory=AttachmentTokens)
    """The attachments of all prompts. Earlier runs have measured their own."""
    attached_assumption: str = ""
    """The assumed size of attachments whose size is not known."""
    answer_tokens: int = _TEXT_TOKENS  # of a usual answer: see `usual_answer`
    measured: Measured | None = None
    """Earlier runs with the same spec. They count before the sample. Default: there are none."""
    cached: CachedRun | None = None
    """The use that such a run made of the vendor's cache, asked as these requests are. Default: not known, so none."""
    packed: int = 0
    """The prompts that share packed requests. Default: 0, each request has one."""
    rows_per_request: int = 1
    """The most prompts of a request. Default: 1."""

    @property
    def prompts(self) -> int:
        """The number of prompts of all requests together."""
        return self.packed or self.requests

    @property
    def source(self) -> EstimateSource:
        """Return the source of the estimate."""
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
    """The sum over all prompts."""
    source: EstimateSource = EstimateSource.BYTES
    """The base of the tokens. Default: the bytes."""
    spread: float | None = None
    """The standard deviation of the dollars by chance. Default: not known, there is no earlier run."""

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
            "spread": self.spread,
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
    """Return the cost of all requests together."""
    limit = size.max_tokens if size.max_tokens is not None else max(_UNBOUNDED_ANSWER, size.answer_tokens)
    if size.answer_tokens == 0:
        limit = 0
    usual = min(float(limit), _answer_tokens(size))
    tokens, assumptions = _input_tokens(size)
    slack = _UNCERTAINTY if size.source is EstimateSource.BYTES else 0.0
    low = _cost(prices, size, tokens * (1 - slack), min(1.0, usual))
    expected = _cost(prices, size, tokens, usual)
    high = _cost(prices, size, tokens * (1 + slack), limit)
    if size.cached is not None:
        assumptions.append(
            f"{size.cached.hit_rate:.0%} of the requests are taken to read from the vendor's cache."
        )
    assumptions.append(
        f"An answer is taken to have {round(usual):,} output tokens, and {limit:,} at the most."
    )
    later = _expected_later(size)
    dollars = Decimal(str(later.dollars))
    if dollars:
        assumptions.append(f"Rows that are asked again are taken to cost ${dollars:,.4f}, by those runs.")
    return Estimate(
        requests=size.requests,
        input_tokens=round(tokens * size.requests + later.input_tokens),
        output_tokens=round(usual * size.requests + later.output_tokens),
        low=low,
        expected=None if expected is None else expected + dollars,
        high=None if high is None else high + dollars,
        assumptions=(*assumptions, *_about_prices(prices, size, tokens * (1 + slack))),
        prompt_bytes=size.prompt_bytes,
        source=size.source,
        spread=_spread(prices, size, Usage(round(tokens), output_tokens=round(usual)), later.variance),
    )


def _answer_tokens(size: RequestSize) -> float:
    """Return the mean output tokens of a request."""
    if size.measured is None or not size.requests:
        return size.answer_tokens
    return size.measured.answer_tokens(size.prompts / size.requests, is_packed=size.packed > 0)


def _input_tokens(size: RequestSize) -> tuple[float, list[str]]:
    """Return the mean input tokens of a request, and what that rests on."""
    if not size.requests:
        return 0.0, []
    mean_bytes = size.prompt_bytes / size.requests
    if size.measured is not None:
        longer = (mean_bytes - size.measured.prompt_bytes) / BYTES_PER_TOKEN
        return max(1.0, size.measured.input_tokens + longer), [
            f"Tokens are the mean of {counted(round(size.measured.requests), 'request')} of earlier runs with the same spec."
        ]
    attached, assumed = size.attached.tokens / size.requests, _about_attachments(size)
    if not size.sample:
        tokens = (mean_bytes + size.shared_bytes) / BYTES_PER_TOKEN
        guessed = f"Input tokens are guessed from the bytes, {BYTES_PER_TOKEN:g} to a token."
        return tokens + attached, [guessed, *assumed]
    # The sample's counts hold what each request repeats, whatever its prompts' lengths; only the difference
    # between the sample's prompts and all of them has to be guessed.
    sampled_bytes = sum(count for count, _ in size.sample) / len(size.sample)
    sampled_tokens = sum(tokens for _, tokens in size.sample) / len(size.sample)
    tokens = max(1.0, sampled_tokens + (mean_bytes - sampled_bytes) / BYTES_PER_TOKEN)
    return tokens + attached, [
        f"Input tokens are scaled up from {counted(len(size.sample), 'prompt')} that the provider has counted.",
        *assumed,
    ]


def _about_attachments(size: RequestSize) -> list[str]:
    """Say for people how the tokens of attachments were estimated."""
    count, unmeasured = size.attached.count, size.attached.unmeasured
    if not count:
        return []
    told = f"{counted(count, 'attachment')} {verb(count, 'is', 'are')} counted as {size.attached.tokens:,} input tokens."
    if not unmeasured:
        return [told]
    return [told, f"The size of {unmeasured:,} of them is not known: {size.attached_assumption}."]


def _cost(prices: PriceList, size: RequestSize, input_tokens: float, output_tokens: float) -> Decimal | None:
    """Return the dollars of all requests, each with these mean tokens. Parts of a token count."""
    read = 0.0 if size.cached is None else min(input_tokens, size.cached.cached_tokens)
    written = 0.0 if size.cached is None else min(input_tokens - read, size.cached.written_tokens)
    means = Usage._fields, (input_tokens, read, written, output_tokens)
    whole = Usage(*map(math.floor, means[1]))
    one = base = prices.cost(whole)
    if one is None or base is None:
        return None
    for name, mean in zip(*means, strict=False):
        more = prices.cost(whole._replace(**{name: getattr(whole, name) + 1})) or base
        one += (more - base) * Decimal(str(mean - math.floor(mean)))
    return one * size.requests


class _Expected(NamedTuple):
    """Tokens and dollars that the later rounds of a run are expected to take, and the variance of the dollars."""

    input_tokens: float = 0.0
    output_tokens: float = 0.0
    dollars: float = 0.0
    variance: float = 0.0


def _expected_later(size: RequestSize) -> _Expected:
    """Return the tokens and dollars of later rounds, if the same share of prompts goes on as in earlier runs."""
    measured = size.measured
    if measured is None or not size.prompts:
        return _Expected()
    kinds = ((measured.alone, 1), (measured.packed, size.rows_per_request))
    found = [_going_on(later, measured, size.prompts, rows) for later, rows in kinds if later.prompts]
    return _Expected(*map(math.fsum, zip(*found, strict=True))) if found else _Expected()


def _going_on(later: Later, measured: Measured, prompts: int, rows: int) -> _Expected:
    """Return the expected tokens and dollars of later requests with this many rows.

    The number of prompts that go on is binomial. They share requests, each of which repeats the instructions, and the
    first of which finds nothing in the vendor's cache, unless the number of hits shows that it was among them.
    """
    share = later.prompts / measured.prompts
    chance = min(1.0, share)
    repeats, could_hit = share / chance, max(1.0, later.requests - 1, later.hits)
    fixed = max(0.0, later.dollars + later.won - later.prompt_dollars) / later.requests
    each, saved = later.prompt_dollars / later.prompts * repeats, later.won / could_hit
    requests = hitting = dollars = squares = 0.0
    for going, weight in _binomial(prompts, chance):
        asked = math.ceil(going * repeats / rows)
        cost = asked * fixed - max(0, asked - 1) * saved + going * each
        requests += weight * asked
        hitting += weight * max(0, asked - 1)
        dollars += weight * cost
        squares += weight * cost * cost
    hits = min(1.0, later.hits / could_hit)
    won = later.won / later.hits if later.hits else 0.0
    variance = max(0.0, squares - dollars * dollars) + hitting * hits * (1 - hits) * won * won
    own = measured.prompt_bytes / measured.items / BYTES_PER_TOKEN
    repeated = max(0.0, later.input_tokens - later.prompts * own) / later.requests
    return _Expected(
        input_tokens=requests * repeated + prompts * share * own,
        output_tokens=prompts * share * later.output_tokens / later.prompts,
        dollars=dollars,
        variance=variance * (1 + prompts / measured.prompts),
    )


def _binomial(trials: int, chance: float) -> Iterator[tuple[int, float]]:
    """Yield the numbers of successes that are not very unlikely, with their probabilities."""
    if chance >= 1.0:
        yield trials, 1.0
        return
    mean, wide = trials * chance, 6 * math.sqrt(trials * chance * (1 - chance)) + 6
    whole = math.lgamma(trials + 1)
    for count in range(max(0, math.floor(mean - wide)), min(trials, math.ceil(mean + wide)) + 1):
        ways = whole - math.lgamma(count + 1) - math.lgamma(trials - count + 1)
        yield count, math.exp(ways + count * math.log(chance) + (trials - count) * math.log1p(-chance))


def _spread(prices: PriceList, size: RequestSize, mean: Usage, later: float) -> float | None:
    """Return the standard deviation of the dollars: by answers' lengths, by hits, and by rows that are asked again.

    The means of few earlier requests are uncertain themselves, and so are the tokens of what is longer than in those.
    `mean` is a request without a cache.
    """
    measured, plain = size.measured, prices.cost(mean)
    if not size.requests:
        return 0.0
    if measured is None or measured.output_variance is None or plain is None:
        return None
    longer = prices.cost(mean._replace(output_tokens=mean.output_tokens + 1))
    token = float((longer or plain) - plain)
    variance = size.prompts * measured.output_variance * token * token
    more = prices.cost(mean._replace(input_tokens=mean.input_tokens + 1))
    longer_by = abs(size.prompt_bytes / size.requests - measured.prompt_bytes) / BYTES_PER_TOKEN
    guessed = size.requests * longer_by * _UNCERTAINTY * float((more or plain) - plain)
    variance += _cache_variance(prices, size, mean)
    return math.sqrt(variance * (1 + size.requests / measured.requests) + later + guessed * guessed)


def _cache_variance(prices: PriceList, size: RequestSize, mean: Usage) -> float:
    """Return the variance of the dollars by hits of the vendor's cache. The first requests cannot hit."""
    if size.cached is None or not 0 < size.cached.hit_rate < 1:
        return 0.0
    rate, could_hit = size.cached.hit_rate, max(1, size.requests - size.cached.first)
    read = min(mean.input_tokens, round(size.cached.cached_tokens / rate))
    written = min(mean.input_tokens, round(size.cached.written_tokens / (1 - rate)))
    hit = prices.cost(mean._replace(cached_tokens=read)) or Decimal(0)
    miss = prices.cost(mean._replace(cache_write_tokens=written)) or Decimal(0)
    hits = min(1.0, rate * size.requests / could_hit)
    return could_hit * hits * (1 - hits) * float(miss - hit) ** 2


def likely(expected: float, spread: float) -> tuple[float, float]:
    """Return the dollars between which nine runs in ten are expected to end."""
    return max(0.0, expected - LIKELY * spread), expected + LIKELY * spread


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
