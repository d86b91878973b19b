"""What the control endpoint can turn while the simulator runs.

Knobs are one frozen value: a change replaces it whole, so a batch that is being executed sees one setting throughout.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Knobs(BaseModel):
    """Durations are virtual seconds, except `latency`, which is real."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_seconds: float = Field(default=2.0, ge=0)
    latency: float = Field(default=0.0, ge=0)
    """Real seconds that every call about the state of a batch or a list of batches takes."""
    list_lag: float = Field(default=0.0, ge=0)
    """How long a new batch is absent from the lists."""
    cancelled_share: float = Field(default=0.0, ge=0, le=1)
    """The share of a cancelled batch's rows that were executed, and charged, before it stopped."""
    enqueued_tokens: int | None = Field(default=None, ge=0)
    """OpenAI's limit of input tokens per model in unfinished batches; None for no limit."""
    enqueued_answer: Literal["failed", "429"] = "failed"
    """Whether that limit fails the batch afterwards or refuses it at once."""
    cached_tokens: int = Field(default=0, ge=0)
    """Input tokens of each row that count as read from a cache (at most all of them)."""
    cache_write_tokens: int = Field(default=0, ge=0)
    reasoning_tokens: int = Field(default=0, ge=0)
    """Output tokens that each row spends on thinking, on top of its answer."""
    shard_rows: int = Field(default=50_000, ge=1)
    """How many rows Vertex writes to one output file."""
