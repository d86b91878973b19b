"""The records that the simulator keeps: batches, files and charges.

A batch's phase is the simulator's own word; each vendor translates it into its states when it answers.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple


class Phase(StrEnum):
    """Where a batch stands."""

    ACCEPTED = "accepted"  # created, its rows not yet looked at
    RUNNING = "running"  # its rows wait for the end of the batch
    CANCELING = "canceling"  # asked to stop, not yet stopped
    FINISHING = "finishing"  # its rows are being executed
    ENDED = "ended"  # results can be read
    REJECTED = "rejected"  # refused after creation; no row was executed


LIVE = frozenset({Phase.ACCEPTED, Phase.RUNNING, Phase.CANCELING, Phase.FINISHING})


class Outcome(StrEnum):
    """What became of a row, for the ledger."""

    SUCCEEDED = "succeeded"
    ERRORED = "errored"
    EXPIRED = "expired"
    CANCELED = "canceled"


class Provider(StrEnum):
    """Whose protocol is spoken."""

    ANTHROPIC = "anthropic"
    OPENAI = "openai"
    VERTEX = "vertex"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One batch. `facts` is what only its vendor understands; `wake_at` is when its next step is due."""

    seq: int
    id: str
    provider: Provider
    phase: Phase
    created_at: float
    wake_at: float | None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One OpenAI file. Its bytes lie in the data directory under its id."""

    id: str
    purpose: str
    filename: str
    bytes: int
    created_at: float
    expires_at: float | None


class Usage(NamedTuple):
    """Tokens of one row. `input` includes the cached and the cache-written ones, `output` the reasoning ones."""

    input: int = 0
    cached: int = 0
    cache_write: int = 0
    output: int = 0
    reasoning: int = 0


class Charge(NamedTuple):
    """One executed row as the ledger keeps it. A tuple, because a million of them are made."""

    line: int
    custom_id: str
    content: bytes
    outcome: str
    charged: int
    model: str
    input: int
    cached: int
    cache_write: int
    output: int
    reasoning: int
