"""The simulator's time: the machine's clock plus an offset that only grows.

Every time stamp and every window (24 h, 72 h, 29 days) is taken from here, so that a test can pass a day in no time.
Latency and delays are real seconds and do not come from here.
"""

import time
from datetime import UTC, datetime


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
