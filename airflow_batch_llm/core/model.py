"""The records that a row becomes on its way, in walking order, and the two vocabularies they use.

Row -> Prompt -> Request -> Shard -> Batch -> Result -> Output -> Report. Identity travels as `custom_id`
from the request on, and is joined back to the row's keys once, on landing; position never matters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, assert_never


class Outcome(StrEnum):
    """The fate of one planned row. Only `SUCCEEDED` reaches the target table."""

    SUCCEEDED = "succeeded"  # a whole answer that fits the output type
    INVALID = "invalid"  # a whole answer that does not fit the output type, or an unreadable line
    TRUNCATED = "truncated"  # the answer was cut off at a token limit
    REFUSED = "refused"  # the model or a filter declined to answer
    ERRORED = "errored"  # the provider reports an error for this row, or the row could not be sent
    EXPIRED = "expired"  # the provider's window passed before the row was executed
    CANCELED = "canceled"  # the batch was cancelled before the row was executed
    MISSING = "missing"  # the provider never mentioned the row


class BatchState(StrEnum):
    """The states of a batch that lead to different actions."""

    RUNNING = "running"  # not finished: wait
    ENDED = "ended"  # finished in any way that may hold answers: read them
    REJECTED = "rejected"  # finished without having executed anything: there is nothing to read

    @property
    def is_over(self) -> bool:
        """Return whether the provider does nothing more for the batch."""
        match self:
            case BatchState.RUNNING:
                return False
            case BatchState.ENDED | BatchState.REJECTED:
                return True
            case _:
                assert_never(self)

    @property
    def has_results(self) -> bool:
        """Return whether there may be answers to read."""
        match self:
            case BatchState.ENDED:
                return True
            case BatchState.RUNNING | BatchState.REJECTED:
                return False
            case _:
                assert_never(self)


class Way(StrEnum):
    """The ways to ask a model."""

    BATCH = "batch"  # in batches within the provider's window, at the batch price
    FLEX = "flex"  # one request at a time in real time, at half the price, as far as the vendor has room
    NOW = "now"  # one request at a time in real time, at the full price

    @property
    def in_real_time(self) -> bool:
        """Return whether a worker asks each request, instead of a batch."""
        match self:
            case Way.BATCH:
                return False
            case Way.FLEX | Way.NOW:
                return True
            case _:
                assert_never(self)

    def billed(self, *, is_flex: bool) -> "Way":
        """Return the way whose price an answer costs. In real time the answer decides, and not the request."""
        if not self.in_real_time:
            return self
        return Way.FLEX if is_flex else Way.NOW


class Caching(StrEnum):
    """Choose if the vendor caches the part that all requests of a route share."""

    AUTO = "auto"
    """Ask where it is expected to pay: by the last run that asked, or by the usual share of hits."""
    ON = "on"
    """Ask always."""
    OFF = "off"
    """Never ask, and turn off the vendor's own caching, if that is possible."""


class Execution(StrEnum):
    """Choose where rows become requests, and answers become rows."""

    WORKER = "worker"
    """In the worker. Each row passes through it."""
    WAREHOUSE = "warehouse"
    """In the warehouse, by its own statements. No row passes through the worker but those with a problem."""


class ColumnType(StrEnum):
    """The types that an answer's column can have."""

    STRING = "string"
    INTEGER = "integer"
    NUMBER = "number"
    DECIMAL = "decimal"  # a number that is exact to its last digit: money
    BOOLEAN = "boolean"
    TIMESTAMP = "timestamp"
    DATE = "date"
    JSON = "json"
    VECTOR = "vector"  # a list of numbers: an embedding


#: No answer has more tokens of one kind than this. Sums over a whole run stay within 64 bits.
MOST_TOKENS = 10**9


class Usage(NamedTuple):
    """Tokens of one answer. `input_tokens` and `output_tokens` are totals: the other three are parts of them.

    A tuple, as `Result` is: one is made for each answer, and prices are looked up by it.
    """

    input_tokens: int = 0
    cached_tokens: int = 0  # of the input, read from a cache
    cache_write_tokens: int = 0  # of the input, written to a cache
    output_tokens: int = 0
    reasoning_tokens: int = 0  # of the output, thought and not shown

    @classmethod
    def total(cls, usages: Sequence["Usage"]) -> "Usage":
        """Return the sum of these, without an object for each step."""
        return cls(
            input_tokens=sum(one.input_tokens for one in usages),
            cached_tokens=sum(one.cached_tokens for one in usages),
            cache_write_tokens=sum(one.cache_write_tokens for one in usages),
            output_tokens=sum(one.output_tokens for one in usages),
            reasoning_tokens=sum(one.reasoning_tokens for one in usages),
        )

    def __add__(self, other: "Usage") -> "Usage":  # type: ignore[override]  # not one tuple after the other
        return Usage.total((self, other))


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """All that the requests of a stage have in common: everything but the row's own text."""

    model: str
    system_prompt: str | None = None
    schema: Mapping[str, object] | None = (
        None  # the answer's JSON Schema, an object at the root; None: free text
    )
    vector: bool = False  # the answer is an embedding, and no text
    max_tokens: int | None = 1024
    params: Mapping[str, object] = field(default_factory=dict)
    """Parameters in the provider's own words, which are sent unchanged."""
    endpoint: str | None = None  # where a provider has several (OpenAI); None: its default
    via: str = ""  # the connection of a route that has its own; empty: the stage's
    attachments: bool = False  # prompts may have images and PDFs
    cache_system_prompt: bool | Caching = False
    """Ask the vendor to cache what requests share (`ON`), leave it to the vendor (`AUTO`), or have nothing cached (`OFF`).

    A boolean is in the plans of earlier releases, whose requests must be written as they were.
    """

    @property
    def asks_to_cache(self) -> bool:
        """Return whether the requests ask the vendor to cache their shared part."""
        return self.cache_system_prompt in (True, Caching.ON)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a provider's batches, and the facts that it shows about them."""

    max_requests: int
    max_bytes: int  # of one batch's lines: a comfortable size, below what the provider takes
    max_request_bytes: int
    window_seconds: float  # after this a batch has ended, whatever happened
    list_lag_seconds: float = 60.0  # a batch that exists shows in a listing after this at the latest
    kept_seconds: float | None = None
    """Seconds after which the vendor has deleted a batch's requests and answers. Default: None, it never does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFile:
    """The requests of one provider batch, as lines in a local file, exactly as they are sent."""

    path: Path
    token: str  # `<run token>-<shard number>`; each custom_id in the file is `<token>-<ordinal>`
    call: Call
    requests: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to send one creation, until `expires_at` (seconds since the epoch, this machine's clock)."""

    expires_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStatus:
    """One look at one batch."""

    state: BatchState
    total: int | None = None  # requests in the batch, where the provider tells
    finished: int | None = None  # of them no longer running, where the provider tells
    reason: str | None = None  # why it was rejected: codes and line numbers only, since it may travel
    detail: str = ""  # the vendor's words about that, without secrets: for logs and the failures table
    later: bool = False  # rejected for lack of quota alone: the same shard may be sent again later
    unmentioned: Outcome = Outcome.MISSING  # of an ended batch: what became of rows that its results omit
    twins: tuple[
        str, ...
    ] = ()  # running batches that surely bear the same shard token, where the look showed any


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Knowledge of batches that may exist although no record names them."""

    run_tokens: frozenset[str]  # one for each round
    since: float  # seconds since the epoch: none of them is older (skew already allowed for)
    requests: Mapping[str, int]  # shard token -> how many requests its batch holds
    known: frozenset[str] = frozenset()  # ids that some run has recorded: none of these is a lost one

    def is_for(self, token: str) -> bool:
        """Return whether a batch with this shard token belongs to the run."""
        return token.rpartition("-")[0] in self.run_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """A batch that a search met. `token` is None where it cannot be recognised before it has ended."""

    batch_id: str
    state: BatchState
    token: str | None  # the shard token that it surely has
    requests: int | None = None


class RateLimit(NamedTuple):
    """One of a vendor's limits, as an answer states it."""

    kind: str  # requests, or a kind of tokens
    limit: int
    remaining: int
    full_in: float  # seconds until all of the limit is there again


class Answered(NamedTuple):
    """An answer in real time, and the vendor's limits as the answer states them."""

    line: bytes  # a result line of a batch
    limits: Sequence[RateLimit] = ()


class Result(NamedTuple):
    """One line back from a provider, in our vocabulary. `text` is None unless something was answered."""

    custom_id: str
    outcome: (
        Outcome  # SUCCEEDED here means: a whole answer; whether it fits the output type is judged on landing
    )
    text: str | None = None
    usage: Usage = Usage()
    model: str | None = None
    finish_reason: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    retryable: bool = False  # of an error: the same request may succeed in another batch
    is_flex: bool = False  # the answer says that the vendor's half-price tier gave it


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultForm:
    """The JSONPaths of a vendor's response at which a query finds a whole answer.

    A query is sure of a response of this form alone. A worker judges every other one.
    """

    parts: str
    """A list of objects: an answer's text is in those that are not thoughts."""
    text: str
    thought: str
    """In a part: its text, and whether it is a thought."""
    end: str
    whole: str
    """The reason why the answer ended, and the reason of an answer that is whole."""
    model: str
    usage: str
    input_tokens: tuple[str, ...]
    cached_tokens: tuple[str, ...]
    output_tokens: tuple[str, ...]
    reasoning_tokens: tuple[str, ...]
    """The counts within the usage that are added up."""
    unclear: tuple[str, ...]
    """A response that has a value at one of these paths has another form."""
