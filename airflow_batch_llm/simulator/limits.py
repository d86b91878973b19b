"""Limit the real-time requests of a model as the vendors do: each limit is a bucket that a minute fills.

Buckets fill by the virtual clock, so moving it on fills them at once; they start full, also after a restart. A request
that lacks anything takes nothing. What is known only afterwards, as output tokens are, may leave a bucket in debt.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

_MINUTE = 60.0


class LimitStanding(NamedTuple):
    """One limit, as the headers of an answer tell it."""

    kind: str
    limit: int
    remaining: int
    full_in: float
    """Seconds until the bucket is full again."""


class Lack(NamedTuple):
    """The limit that keeps a request out, and the seconds until it lets the request in."""

    standing: LimitStanding
    seconds: float


@dataclass(slots=True)
class _Bucket:
    level: float
    at: float


class RateLimits:
    """The buckets of every vendor and model. For one thread."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, str, str], _Bucket] = {}

    def clear(self) -> None:
        self._buckets.clear()

    def of(self, provider: str, model: str, per_minute: Mapping[str, int], now: float) -> "ModelLimits":
        """The buckets of one model as they stand now, for these limits."""
        buckets = {}
        for kind, limit in per_minute.items():
            bucket = self._buckets.setdefault((provider, model, kind), _Bucket(limit, now))
            bucket.level = min(limit, bucket.level + (now - bucket.at) * limit / _MINUTE)
            bucket.at = now
            buckets[kind] = bucket
        return ModelLimits(per_minute, buckets)


class ModelLimits:
    """The buckets of one model at one moment."""

    def __init__(self, per_minute: Mapping[str, int], buckets: Mapping[str, _Bucket]) -> None:
        self._per_minute = per_minute
        self._buckets = buckets

    def admit(self, needs: Mapping[str, int]) -> Lack | None:
        """Take what a request needs, or return why not. A need of 0 wants a bucket that is not empty."""
        for kind, need in needs.items():
            if kind in self._buckets and self._buckets[kind].level < max(need, 1):
                return Lack(self._standing(kind), self._seconds(kind, max(need, 1)))
        self.spend(needs)
        return None

    def spend(self, amounts: Mapping[str, int]) -> None:
        for kind, amount in amounts.items():
            if kind in self._buckets:
                self._buckets[kind].level -= amount

    def standings(self) -> list[LimitStanding]:
        return [self._standing(kind) for kind in self._per_minute]

    def _standing(self, kind: str) -> LimitStanding:
        limit, level = self._per_minute[kind], self._buckets[kind].level
        return LimitStanding(kind, limit, max(0, int(level)), self._seconds(kind, limit))

    def _seconds(self, kind: str, level: float) -> float:
        """Return the seconds until the bucket holds this much. A request waits at most for a full bucket."""
        limit = self._per_minute[kind]
        return max(0.0, (min(level, limit) - self._buckets[kind].level) * _MINUTE / limit)
