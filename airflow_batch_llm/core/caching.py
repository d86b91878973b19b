"""Decide if a route's requests ask the vendor to cache the part that they share, and sum up what the cache has won.

To write to a cache costs more than input without one, and to read from it costs less. So asking pays above a share of
hits, which the prices give, and in a batch no vendor promises one.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import orjson

from airflow_batch_llm.core.checked import Caching
from airflow_batch_llm.core.model import Usage, Way
from airflow_batch_llm.core.price import CacheFactors
from airflow_batch_llm.core.printing import counted

#: The share of hits that a first run is expected to have: in batches the middle of the 30 % to 98 % that vendors name.
_USUAL_HITS: Mapping[Way, float] = {Way.BATCH: 0.64, Way.FLEX: 0.9, Way.NOW: 0.9}

#: Requests that certainly find nothing in the cache: the first of a batch, and those with which a worker begins at once.
_FIRST: Mapping[Way, int] = {Way.BATCH: 1, Way.FLEX: 4, Way.NOW: 4}

#: A shared part whose tokens are guessed from its bytes may be longer by this share. A mark on a short one costs nothing.
_UNCERTAINTY = 0.3


class CacheTotals(NamedTuple):
    """Count the answers that the vendor billed, those that read from its cache, and the dollars that the cache saved."""

    answers: int = 0
    hits: int = 0
    won: float = 0.0
    """Below 0: writing to the cache has cost more than reading from it has saved."""

    def plus(self, other: "CacheTotals") -> "CacheTotals":
        """Return both together."""
        return CacheTotals(self.answers + other.answers, self.hits + other.hits, self.won + other.won)

    @property
    def hit_rate(self) -> float:
        """Return the share of the answers that read from the cache."""
        return self.hits / self.answers if self.answers else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedRun:
    """The use that a run's requests made of the vendor's cache, as the workspace keeps it for later runs."""

    hit_rate: float
    cached_tokens: float
    """Input tokens of a request that were read from the cache, on average."""
    written_tokens: float
    """Input tokens of a request that were written to the cache, on average."""
    won: float
    """Dollars. Below 0: caching has lost money."""

    @classmethod
    def of(cls, totals: CacheTotals, usage: Usage, requests: int) -> "CachedRun":
        """From the totals of all requests."""
        return cls(
            hit_rate=totals.hit_rate,
            cached_tokens=usage.cached_tokens / requests,
            written_tokens=usage.cache_write_tokens / requests,
            won=totals.won,
        )

    def among(self, requests: int) -> "CachedRun":
        """Return what is expected of a run with so many requests, the first of which finds nothing in the cache."""
        share = 1 - 1 / max(1, requests)
        missed = self.cached_tokens * (1 - share) if self.written_tokens else 0.0
        return replace(
            self,
            hit_rate=self.hit_rate * share,
            cached_tokens=self.cached_tokens * share,
            written_tokens=self.written_tokens + missed,
        )

    def to_json(self) -> bytes:
        """For the workspace."""
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> "CachedRun":
        """From the workspace."""
        return cls(**orjson.loads(data))


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPart:
    """The part that all requests of a route share."""

    tokens: float
    """Guessed from its bytes."""
    least: int | None
    """The tokens from which the model caches it. None: the vendor cannot be asked."""
    requests: int
    way: Way


class CacheDecision(NamedTuple):
    """Whether the requests ask the vendor to cache their shared part, and why, for people."""

    asks: bool
    why: str = ""
    warns: bool = False


def decide(
    choice: Caching, part: SharedPart, factors: CacheFactors | None, before: CachedRun | None
) -> CacheDecision:
    """Decide for a route. `before` is the last run of the same spec that asked, in the same way."""
    if choice is Caching.OFF or part.least is None:
        return CacheDecision(False)
    is_short = part.tokens * (1 + _UNCERTAINTY) < part.least
    if choice is Caching.ON:
        short = f"The shared part has about {part.tokens:,.0f} tokens, and the model caches from {part.least:,} on."
        return CacheDecision(True, f"cache_system_prompt='on': {short}" if is_short else "")
    if is_short or factors is None:
        return CacheDecision(False)
    if before is not None and before.won < 0:
        lost = f"it lost ${-before.won:,.4f} in the last run that asked for it, with {before.hit_rate:.1%} of hits"
        return CacheDecision(
            False, f"cache_system_prompt='auto': the vendor is not asked to cache, since {lost}.", warns=True
        )
    usual = _USUAL_HITS[part.way] if before is None else before.hit_rate
    hits = usual * max(0, part.requests - _FIRST[part.way]) / max(1, part.requests)
    expected = "expected" if before is None else "expected by the last run"
    found = f"{hits:.0%} of hits {expected} in {counted(part.requests, 'request')}"
    asks = hits > factors.break_even
    follows = "is asked" if asks else "is not asked"
    return CacheDecision(
        asks,
        f"cache_system_prompt='auto': the vendor {follows} to cache, with {found}: it pays above"
        f" {factors.break_even:.0%}.",
    )


def told(route: str, totals: CacheTotals) -> str:
    """Say what the cache has won or lost by a route."""
    result = f"won ${totals.won:,.4f}" if totals.won >= 0 else f"lost ${-totals.won:,.4f}"
    read = f"{totals.hit_rate:.1%} of {counted(totals.answers, 'answer')} read from the vendor's cache"
    return f"Caching by the route {route} {result}: {read}."


def reported(totals: CacheTotals, usage: Usage, *, asked: bool) -> dict[str, Any]:
    """Return what a report says of the cache."""
    return {
        "asked": asked,
        "hit_rate": round(totals.hit_rate, 4),
        "cached_tokens": usage.cached_tokens,
        "written_tokens": usage.cache_write_tokens,
        "won_usd": round(totals.won, 6),
    }
