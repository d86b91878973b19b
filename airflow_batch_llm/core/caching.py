"""Decide if a route's requests ask the vendor to cache the part that they share, and sum up the dollars that the cache has saved.

Writing to a cache costs more than input without one, and reading from it costs less. So asking pays above a share of
hits that follows from the prices. No vendor promises a share of hits in a batch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, assert_never

import orjson

from airflow_batch_llm.core.model import Caching, Usage, Way
from airflow_batch_llm.core.price import CacheFactors
from airflow_batch_llm.core.printing import counted

#: The share of hits that a first run is expected to have: in batches the middle of the 30 % to 98 % that Anthropic names.
_USUAL_HITS: Mapping[Way, float] = {Way.BATCH: 0.64, Way.FLEX: 0.9, Way.NOW: 0.9}

#: Requests that certainly find nothing in the cache: the first of a batch, and those with which a worker begins at once.
_FIRST: Mapping[Way, int] = {Way.BATCH: 1, Way.FLEX: 4, Way.NOW: 4}

#: Earlier runs count as this many requests at the most, so that a change shows after a few nights.
REMEMBERED = 1000

#: Fewer requests say little about the share of hits, and less about whether asking pays: much of it is chance.
_LEAST_TELLING, _LEAST_DECISIVE = 10, 50

#: A shared part whose tokens are guessed from its bytes may be longer by this share. A mark on a short one costs nothing.
_UNCERTAINTY = 0.3


class CacheTotals(NamedTuple):
    """Count the answers that the vendor billed, those that read from its cache, and the dollars that the cache saved."""

    answers: int = 0
    hits: int = 0
    won: float = 0.0
    """Below 0: writing to the cache has cost more than reading from it has saved."""

    def plus(self, other: "CacheTotals") -> "CacheTotals":
        """Return the sum of both."""
        return CacheTotals(self.answers + other.answers, self.hits + other.hits, self.won + other.won)

    @property
    def hit_rate(self) -> float:
        """Return the share of the answers that read from the cache."""
        return self.hits / self.answers if self.answers else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedRun:
    """The use of the vendor's cache by earlier runs, as the workspace keeps it for later ones."""

    hit_rate: float
    """The share of the requests that could hit: the first ones of a run cannot."""
    cached_tokens: float
    """Input tokens of such a request that were read from the cache, on average."""
    written_tokens: float
    """Input tokens of such a request that were written to the cache, on average."""
    won: float
    """Dollars of the last run, or of the last ones if it was too small to decide. Below 0: caching has lost money."""
    requests: float = 0.0
    """Requests that could hit. Default: not known, an earlier release has measured."""
    first: int = 1
    """The first requests of a run, which find nothing. Default: 1."""
    writes: bool | None = None
    """The vendor charges for writing. Default: not known, an earlier release has measured."""

    @property
    def is_telling(self) -> bool:
        """There were enough requests to expect the same of later ones."""
        return not self.requests or self.requests + self.first >= _LEAST_TELLING

    @property
    def is_decisive(self) -> bool:
        """There were enough requests to decide whether the vendor is asked to cache."""
        return not self.requests or self.requests + self.first >= _LEAST_DECISIVE

    @classmethod
    def of(cls, totals: CacheTotals, usage: Usage, requests: int, way: Way) -> "CachedRun":
        """Return the means of a run from the totals of its requests."""
        hits = totals.hit_rate * requests
        first = max(1, min(_FIRST[way], round(requests - hits)))
        could_hit = max(1, requests - first)
        read = usage.cached_tokens / hits if hits else 0.0
        # The first requests write what the others read, unless the vendor does not charge for writing.
        written = max(0.0, usage.cache_write_tokens - read * (requests - could_hit))
        return cls(
            hit_rate=min(1.0, hits / could_hit),
            cached_tokens=usage.cached_tokens / could_hit,
            written_tokens=written / could_hit,
            won=totals.won,
            requests=could_hit,
            first=first,
            writes=usage.cache_write_tokens > 0,
        )

    def after(self, earlier: "CachedRun | None") -> "CachedRun":
        """Return the means of this run and of those before it, which count as `REMEMBERED` requests at the most."""
        if earlier is None:
            return self
        weights = (self.requests, min(earlier.requests, REMEMBERED))

        def mean(mine: float, theirs: float) -> float:
            return (mine * weights[0] + theirs * weights[1]) / sum(weights)

        return replace(
            self,
            hit_rate=mean(self.hit_rate, earlier.hit_rate),
            cached_tokens=mean(self.cached_tokens, earlier.cached_tokens),
            written_tokens=mean(self.written_tokens, earlier.written_tokens),
            won=self.won + (0.0 if self.is_decisive else earlier.won),
            requests=sum(weights),
            writes=self.writes or earlier.writes,
        )

    def among(self, requests: int) -> "CachedRun":
        """Return the expected cost of each of `requests` requests. The first of them find nothing in the cache."""
        share = max(0, requests - self.first) / max(1, requests)
        writes = bool(self.written_tokens) if self.writes is None else self.writes
        missed = self.cached_tokens * (1 - share) if writes else 0.0
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


class LastRuns(NamedTuple):
    """The last runs with the same spec and way. None: no run used the vendor's cache in this way."""

    asked: CachedRun | None = None
    """The last run whose requests asked the vendor to cache."""
    unasked: CachedRun | None = None
    """The last run that left caching to the vendor."""


_NO_RUNS = LastRuns()


class CacheDecision(NamedTuple):
    """Hold what is sent about the cache, and for people the reason. `AUTO`: nothing is sent, so the vendor decides."""

    how: Caching
    why: str = ""
    warns: bool = False


def decide(
    choice: Caching, part: SharedPart, factors: CacheFactors | None, last: LastRuns = _NO_RUNS
) -> CacheDecision:
    """Decide whether a route asks the vendor to cache."""
    is_short = part.least is not None and part.tokens * (1 + _UNCERTAINTY) < part.least
    match choice:
        case Caching.OFF:
            return CacheDecision(Caching.OFF)
        case Caching.ON:
            short = f"cache_system_prompt='on': the shared part has about {part.tokens:,.0f} tokens, and the model caches"
            how = Caching.AUTO if part.least is None else Caching.ON
            return CacheDecision(how, f"{short} from {part.least:,} on." if is_short else "")
        case Caching.AUTO:
            if part.least is None or is_short or factors is None:
                return _stopped(last.unasked) or CacheDecision(Caching.AUTO)
            return _weighed(part, factors, last)
        case _:
            assert_never(choice)


def _weighed(part: SharedPart, factors: CacheFactors, last: LastRuns) -> CacheDecision:
    """Ask if the expected share of hits is above the share from which caching pays."""
    if stopped := _stopped(last.asked):
        return stopped
    usual = _USUAL_HITS[part.way] if last.asked is None else last.asked.hit_rate
    hits = usual * max(0, part.requests - _FIRST[part.way]) / max(1, part.requests)
    expected = "expected" if last.asked is None else "expected by the last runs"
    asks = hits > factors.break_even
    told = (
        f"cache_system_prompt='auto': the vendor {'is asked' if asks else 'is not asked'} to cache, with {hits:.0%} of hits"
        f" {expected} in {counted(part.requests, 'request')}: it pays above {factors.break_even:.0%}."
    )
    if asks:
        return CacheDecision(Caching.ON, told)
    return _stopped(last.unasked) or CacheDecision(Caching.AUTO, told)


def _stopped(run: CachedRun | None) -> CacheDecision | None:
    """Turn caching off if it has lost money."""
    if run is None or run.won >= 0:
        return None
    lost = f"it lost ${-run.won:,.4f} in the last run that did so, with {run.hit_rate:.1%} of hits"
    return CacheDecision(
        Caching.OFF,
        f"cache_system_prompt='auto': the vendor is not asked to cache, since {lost}.",
        warns=True,
    )


def told(route: str, totals: CacheTotals) -> str:
    """Say how many dollars the cache has saved or lost on a route."""
    result = f"won ${totals.won:,.4f}" if totals.won >= 0 else f"lost ${-totals.won:,.4f}"
    read = f"{totals.hit_rate:.1%} of {counted(totals.answers, 'answer')} read from the vendor's cache"
    return f"Caching by the route {route} {result}: {read}."


def reported(totals: CacheTotals, usage: Usage, *, asked: bool) -> dict[str, Any]:
    """Return the report's part about the cache."""
    return {
        "asked": asked,
        "hit_rate": round(totals.hit_rate, 4),
        "cached_tokens": usage.cached_tokens,
        "written_tokens": usage.cache_write_tokens,
        "won_usd": round(totals.won, 6),
    }
