"""Hold the state that the control endpoint can change: the clock, the knobs, and the faults.

Knobs are one frozen value. A change replaces it whole, so a batch that is being executed sees one setting throughout.

Faults depend on counts and never on chance. A call fault strikes the n-th matching call and the next `times - 1`. A batch
or row fault is bound to the n-th batch created after it was set (and the next `times - 1`), so that a row that failed once
can succeed when sent again. A flex fault strikes the n-th request that asks for the flex tier in real time.
"""

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from airflow_batch_llm.simulator.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorSettings:
    """The options of the `simulate` command."""

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 0
    allow_remote: bool = False
    """Other machines may reach it. Default: loopback only, and the Host header must name this machine."""
    batch_seconds: float | None = None
    """None: what the data directory remembers, or the default."""
    api_key: str | None = field(default=None, repr=False)
    responder: str | None = None
    upstream: str | None = None
    upstream_key: str | None = field(default=None, repr=False)
    upstream_concurrency: int = 16
    storage_url: str | None = None
    bigquery_url: str | None = None


class Clock:
    """Virtual seconds since the epoch."""

    def __init__(self, offset: float = 0.0) -> None:
        self.offset = offset

    def now(self) -> float:
        return time.time() + self.offset

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError("the clock does not go back")
        self.offset += seconds


def rfc3339(moment: float | None) -> str | None:
    """Return the moment with microseconds and a Z, as Anthropic and Google write it."""
    if moment is None:
        return None
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def unix(moment: float | None) -> int | None:
    """Return the moment in whole seconds, as OpenAI writes it."""
    return None if moment is None else int(moment)


class Knobs(BaseModel):
    """Durations are virtual seconds, except the latencies, which are real."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_seconds: float = Field(default=2.0, ge=0)
    latency: float = Field(default=0.0, ge=0)
    """Real seconds that every call about the state of a batch or a list of batches takes."""
    answer_latency: float = Field(default=0.0, ge=0)
    """Real seconds that every real-time answer takes."""
    answer_latency_per_token: float = Field(default=0.0, ge=0)
    """Real seconds that each output token of a real-time answer takes on top."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """The limit of real-time requests per model, in virtual minutes; None for no limit."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """The limit of tokens per model.

    Anthropic counts input that no cache held, OpenAI the longer of the input and `max_tokens`, Vertex input and output.
    """
    output_tokens_per_minute: int | None = Field(default=None, ge=1)
    """Anthropic's limit of output tokens per model."""
    retry_after: bool = True
    """A refusal for a limit says when to come again, if the vendor says so. Default: True."""
    list_lag: float = Field(default=0.0, ge=0)
    """Virtual seconds for which a new batch is absent from the lists."""
    cancelled_share: float = Field(default=0.0, ge=0, le=1)
    """The share of a cancelled batch's rows that were executed, and charged, before it stopped."""
    enqueued_tokens: int | None = Field(default=None, ge=0)
    """OpenAI's limit of input tokens per model in unfinished batches; None for no limit."""
    enqueued_answer: Literal["failed", "429"] = "failed"
    """The effect of that limit: it fails the batch afterwards, or refuses it at once."""
    cached_tokens: int = Field(default=0, ge=0)
    """Input tokens of each row that count as read from a cache (at most all of them). 0: the caches decide."""
    cache_write_tokens: int = Field(default=0, ge=0)
    batch_cache_hits: float | None = Field(default=None, ge=0, le=1)
    """The share of a batch's rows that find their prefix in the cache if it is there. None: as the vendor usually does."""
    wrong_share: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)
    """Per model, the share of rows that it answers wrongly. Empty: every request has a made-up answer of its own."""
    truth_find: str | None = None
    """A regular expression; what it finds in a prompt decides what is right. None: the whole prompt."""
    reasoning_tokens: int = Field(default=0, ge=0)
    """Output tokens that each row spends on thinking, on top of its answer."""
    shard_rows: int = Field(default=50_000, ge=1)
    """The most rows that Vertex writes to one output file."""

    @field_validator("truth_find")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern


class CallFault(StrEnum):
    """The faults of a call."""

    DROP = "drop"  # the connection is closed without an answer
    STATUS = "status"  # an error answer
    DELAY = "delay"  # a pause; the answer comes after it
    BODY = "body"  # status 200 and `text` in place of the answer, as a gateway may give it
    BOMB = "bomb"  # status 200 and this many `bytes`, all alike, compressed to a thousandth
    CUT = "cut"  # the answer's body breaks off in the middle
    REPEAT = "repeat"  # the call is carried out twice, as by a gateway that repeats it; one answer comes back


class BatchFault(StrEnum):
    """The faults of a whole batch."""

    REJECT = "reject"  # OpenAI: status failed; Vertex: JOB_STATE_FAILED
    EXPIRE = "expire"  # `share` of the rows is executed, the rest expires
    FAIL = "fail"  # Vertex: `share` of the rows is executed and written, then JOB_STATE_FAILED
    PARTIAL = "partial"  # Vertex: JOB_STATE_PARTIALLY_SUCCEEDED
    QUEUE = "queue"  # its rows are not looked at before its window closes (OpenAI, Vertex)
    HOLD = "hold"  # it does not end by itself before its window closes
    SECONDS = "seconds"  # it takes `seconds` to end
    ORDERED = "ordered"  # results come in the order of the requests


class FlexFault(StrEnum):
    """The faults of the flex tier."""

    NO_CAPACITY = "no_capacity"  # 429, not charged
    DOWNGRADED = "downgraded"  # answered by the usual tier, at its price


class RowFault(StrEnum):
    """The faults of a row."""

    ERRORED = "errored"
    EXPIRED = "expired"
    CANCELED = "canceled"
    REFUSED = "refused"
    TRUNCATED = "truncated"
    EMPTY = "empty"
    FILTERED = "filtered"
    MISSING = "missing"  # executed and charged, but in no result file
    DUPLICATED = "duplicated"  # its result line comes twice
    BAD_LINE = "bad_line"  # its result line is not JSON
    SPOILED = "spoiled"  # in its result line, the first match of `find` becomes `text`
    FOREIGN = "foreign"  # its result has another custom_id
    ODD = "odd"  # its answer holds U+2028, U+0085 and an emoji
    SURROGATE = "surrogate"  # its answer holds an escaped lone surrogate
    INVALID = "invalid"  # its answer does not match the schema
    TEXT = "text"  # its answer is `text`
    ITEMS_MISSING = "items_missing"  # of a packed request, the answer has no entry for the `items`
    ITEMS_DOUBLED = "items_doubled"  # it has two entries for each of them
    ITEMS_SWAPPED = "items_swapped"  # they have each other's answers, and the list is in reverse
    ITEMS_EXTRA = "items_extra"  # it has entries for numbers that no item has
    ITEMS_INVALID = "items_invalid"  # their answers do not match the schema


class Fault(BaseModel):
    """One fault as it is posted to /control/faults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: CallFault | BatchFault | FlexFault | RowFault
    provider: str = "any"
    endpoint: str | None = None
    nth: int = Field(default=1, ge=1)
    times: int | None = Field(default=1, ge=1)
    """None: for ever."""
    effect: Literal["before", "after"] = "before"
    """The fault comes before the call takes effect, or after. For a repeat: the call that gets no answer."""
    status: int = 500
    code: str | None = None
    message: str | None = None
    retry_after: float | None = None
    headers: dict[str, str] = Field(default_factory=dict)
    seconds: float = Field(default=1.0, ge=0)
    bytes: int | None = Field(default=None, ge=0)
    lines: int | None = Field(default=None, ge=0)
    rows: list[int] | None = None
    """Positions in the batch, from 0."""
    every: int | None = Field(default=None, ge=1)
    """Every n-th row, from the first."""
    custom_id: str | None = None
    """A regular expression that the whole custom_id matches."""
    share: float = Field(default=0.0, ge=0, le=1)
    items: list[int] = Field(default_factory=list)
    """The numbers of a packed request's items, from 1."""
    text: str | None = None
    content_type: str = "application/json"
    find: str | None = None
    """A regular expression over the bytes of a result line."""

    @model_validator(mode="after")
    def _complete(self) -> "Fault":
        if isinstance(self.kind, CallFault) and self.endpoint is None:
            raise ValueError(f"a {self.kind} fault needs an endpoint")
        if isinstance(self.kind, RowFault) and (self.rows, self.every, self.custom_id) == (None, None, None):
            raise ValueError(f"a {self.kind} fault needs rows, every or custom_id")
        if self.kind is CallFault.BODY and self.text is None:
            raise ValueError("a body fault needs a text")
        if self.kind is CallFault.BOMB and self.bytes is None:
            raise ValueError("a bomb fault needs bytes")
        if self.kind is RowFault.SPOILED and (self.find is None or self.text is None):
            raise ValueError("a spoiled fault needs find and text")
        if self.kind is CallFault.CUT and (self.bytes is None) == (self.lines is None):
            raise ValueError("a cut fault needs either bytes or lines")
        return self


class FaultBook:
    """The faults that are set, and how often each was met."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, fault: Fault) -> int:
        return self._database.add_fault(fault.model_dump_json(exclude_defaults=True).encode())

    def clear(self) -> None:
        self._database.delete_faults()

    def for_call(self, provider: str, endpoint: str) -> Fault | None:
        """Return the first fault that strikes this call; all that match are counted."""
        return next(iter(self._met(provider, CallFault, endpoint)), None)

    def for_flex(self, provider: str) -> Fault | None:
        """Return the first fault that strikes this request to the flex tier; all that match are counted."""
        return next(iter(self._met(provider, FlexFault)), None)

    def for_batch(self, provider: str) -> list[Fault]:
        """Return the faults that a batch created now carries."""
        return self._met(provider, BatchFault | RowFault)

    def _met(
        self, provider: str, kinds: type[StrEnum] | UnionType, endpoint: str | None = None
    ) -> list[Fault]:
        struck = []
        for number, document, seen in self._database.faults():
            fault = Fault.model_validate_json(document)
            if fault.provider not in ("any", provider) or not isinstance(fault.kind, kinds):
                continue
            if endpoint and fault.endpoint not in ("any", endpoint):
                continue
            self._database.count_fault(number, seen + 1)
            if seen + 1 >= fault.nth and (fault.times is None or seen + 1 < fault.nth + fault.times):
                struck.append(fault)
        return struck


class RowFaults:
    """The row faults of one batch."""

    def __init__(self, documents: Iterable[dict[str, Any]]) -> None:
        faults = [Fault.model_validate(document) for document in documents]
        self._faults = [
            (fault, frozenset(fault.rows or ()), re.compile(fault.custom_id) if fault.custom_id else None)
            for fault in faults
            if isinstance(fault.kind, RowFault)
        ]

    def __bool__(self) -> bool:
        return bool(self._faults)

    def find(self, index: int, custom_id: str) -> Fault | None:
        for fault, rows, pattern in self._faults:
            if index in rows or (fault.every and index % fault.every == 0):
                return fault
            if pattern and pattern.fullmatch(custom_id):
                return fault
        return None


def batch_fault(documents: Iterable[dict[str, Any]], kind: BatchFault) -> Fault | None:
    """Return the first fault of this kind among those that a batch carries."""
    return next((Fault.model_validate(document) for document in documents if document["kind"] == kind), None)
