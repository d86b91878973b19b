"""Meter the requests of a model as the vendors do: by its limits, and by its cache.

A limit is a bucket that a minute fills. Buckets fill by the virtual clock, so moving it on fills them at once; they
start full, also after a restart. A request that lacks anything takes nothing. Amounts that are known only afterwards,
such as output tokens, may leave a bucket in debt.

A cached prefix is found by its text and its length, within a vendor's model, until its lifetime has passed by the
virtual clock. In a batch a request may miss what is there: a knob gives the share that does not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from threading import Lock
from typing import NamedTuple

from airflow_batch_llm.simulator.answers import Draw
from airflow_batch_llm.simulator.controls import Knobs
from airflow_batch_llm.simulator.request import AskedRequest, tokens

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


#: Characters of a token.
CHARS = 4

#: The share of hits in a batch where the knob does not say. Anthropic names 30 % to 98 %. Nobody names a share for OpenAI,
#: so it is assumed to be the same. None were seen on Vertex. That each request hits by itself is an assumption, too.
_USUAL_SHARE: Mapping[str, float] = {"anthropic": 0.64, "openai": 0.64}

#: Prefixes that are remembered before all are forgotten.
_MOST = 200_000


class CacheUse(NamedTuple):
    """Input tokens of a request that were read from a cache, and that were written to one."""

    read: int = 0
    written: int = 0


@dataclass(slots=True)
class PrefixCache:
    """The prefixes that vendors hold, with the moment when each is forgotten."""

    _until: dict[bytes, float] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)  # batches are executed in several threads

    def clear(self) -> None:
        """Forget all of them."""
        self._until.clear()

    def longest(self, scope: str, text: str, lengths: Sequence[int], now: float, seconds: float) -> int:
        """Return the longest of the lengths at which the text begins with a known prefix, or 0. All become known."""
        found, at, digest = 0, 0, blake2b(scope.encode(errors="replace"), digest_size=16)
        with self._lock:
            if len(self._until) > _MOST:
                self._until.clear()
            for length in lengths:
                digest.update(text[at:length].encode(errors="replace"))
                at, key = length, digest.copy().digest()
                if self._until.get(key, 0.0) > now:
                    found = length
                self._until[key] = now + seconds
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Billing:
    """The settings and caches that decide how the tokens of an answer are billed."""

    knobs: Knobs
    prefixes: PrefixCache
    now: float

    def fixed(self, total: int) -> CacheUse | None:
        """Return the use that knobs set for every request, within its total, or None if the caches decide."""
        knobs = self.knobs
        if not (knobs.cached_tokens or knobs.cache_write_tokens):
            return None
        read = min(knobs.cached_tokens, total)
        return CacheUse(read, min(knobs.cache_write_tokens, total - read))

    def read(
        self, request: AskedRequest, text: str, lengths: Sequence[int], seconds: float, key: str = ""
    ) -> int:
        """Return the tokens that the request reads from a cache of its model, of the prefixes of these lengths."""
        if not lengths:
            return 0
        scope = f"{request.provider}\0{request.model}\0{key}"
        found = self.prefixes.longest(scope, text, lengths, self.now, seconds)
        return tokens(found) if found and self._hits(request) else 0

    def _hits(self, request: AskedRequest) -> bool:
        if not request.custom_id:  # in real time
            return True
        share = self.knobs.batch_cache_hits
        if share is None:
            share = _USUAL_SHARE.get(request.provider, 0.0)
        return Draw(request.seed).share() < share
