"""The settings that the control endpoint can change while the simulator runs.

Knobs are one frozen value: a change replaces it whole, so a batch that is being executed sees one setting throughout.
"""

import re
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorSettings:
    """The options of the `simulate` command."""

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 0
    allow_remote: bool = False
    """Whether other machines may reach it. Default: loopback only, and the Host header must name this machine."""
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
    """The moment with microseconds and a Z, as Anthropic and Google write it."""
    if moment is None:
        return None
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def unix(moment: float | None) -> int | None:
    """The moment in whole seconds, as OpenAI writes it."""
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
    """Whether a refusal for a limit says when to come again, where the vendor says so."""
    list_lag: float = Field(default=0.0, ge=0)
    """How long a new batch is absent from the lists."""
    cancelled_share: float = Field(default=0.0, ge=0, le=1)
    """The share of a cancelled batch's rows that were executed, and charged, before it stopped."""
    enqueued_tokens: int | None = Field(default=None, ge=0)
    """OpenAI's limit of input tokens per model in unfinished batches; None for no limit."""
    enqueued_answer: Literal["failed", "429"] = "failed"
    """Whether that limit fails the batch afterwards or refuses it at once."""
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
    """How many rows Vertex writes to one output file."""

    @field_validator("truth_find")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern
