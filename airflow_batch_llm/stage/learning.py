"""Measure the requests of a run by spec, so that the next run's estimate rests on the measures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from airflow_batch_llm.core.caching import CachedRun, LastRuns
from airflow_batch_llm.core.estimate import BYTES_PER_TOKEN, Later, Measured
from airflow_batch_llm.core.model import Caching, Call, Outcome, Usage, Way
from airflow_batch_llm.core.price import PriceList
from airflow_batch_llm.core.report import Report
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.records.plan import Plan, PlannedRoute
from airflow_batch_llm.stage.records.registers import Registers
from airflow_batch_llm.stage.records.standings import ShardResult

#: The least prompts, and the least share of good answers, from which a run says enough about the next one.
_LEAST_PROMPTS, _LEAST_GOOD = 20, 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """Keeps the mean tokens of a request by spec, in the workspace."""

    parts: Parts

    def of(self, spec_hash: str) -> Measured | None:
        """Return the measures of the last runs with this spec, or None if they are too few."""
        measured = self._measured(spec_hash)
        return measured if measured is not None and measured.prompts >= _LEAST_PROMPTS else None

    def _measured(self, spec_hash: str) -> Measured | None:
        data = Registers(workspace=self.parts.workspace).read_measured(spec_hash)
        return None if data is None else Measured.from_json(data)

    def last_runs(self, spec_hash: str, way: Way) -> LastRuns:
        """Return the use of the vendor's cache that the last runs with this spec and way made, if they were large enough."""
        found = (self._cached(spec_hash, _how(way, choice)) for choice in (Caching.ON, Caching.AUTO))
        return LastRuns(*(run if run is not None and run.is_decisive else None for run in found))

    def cached(self, call: Call, spec_hash: str, way: Way) -> CachedRun | None:
        """Return the expected use of the cache by the requests of a call, or None if it is not known."""
        run = self._cached(spec_hash, _how(way, call.cache_system_prompt))
        return run if run is not None and run.is_telling else None

    def _cached(self, spec_hash: str, how: str) -> CachedRun | None:
        data = Registers(workspace=self.parts.workspace).read_cached(spec_hash, how)
        return None if data is None else CachedRun.from_json(data)

    def note(self, rounds: Sequence[Plan], landed: Sequence[Sequence[ShardResult]]) -> None:
        """Keep the means of the first round and the sums of later ones, by spec. A failure to keep them does not fail the run."""
        with self.parts.cleaning("measured tokens"):
            self.parts.spool.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=self.parts.spool) as scratch:
                registers, aside = Registers(workspace=self.parts.workspace), Path(scratch) / "measured.json"
                for spec_hash, measured in _means(rounds, landed).items():
                    kept = measured.after(self._measured(spec_hash))
                    registers.put_measured(spec_hash, kept.to_json(), aside)
                for route, run, is_used in _cached(rounds[0], landed[0]):
                    how = _how(route.way, route.call.cache_system_prompt)
                    earlier = self._cached(route.spec_hash, how)
                    if is_used or earlier is not None:
                        registers.put_cached(route.spec_hash, how, run.after(earlier).to_json(), aside)


def _how(way: Way, choice: bool | Caching) -> str:
    """Name the way to ask and the setting of the cache. `off` is separate, because not every vendor turns its cache off."""
    if choice == Caching.OFF:
        return f"{way}-off"
    return f"{way}-{'asked' if choice in (True, Caching.ON) else 'unasked'}"


def _cached(first: Plan, landed: Sequence[ShardResult]) -> Iterator[tuple[PlannedRoute, CachedRun, bool]]:
    """Yield each route with its requests' use of the cache, and whether the cache was used at all."""
    for number, route in enumerate(first.routes):
        shards = zip(first.shards, landed, strict=True)
        total = sum((result.report for shard, result in shards if shard.route == number), Report())
        if route.is_own and route.spec_hash and total.requests:
            run = CachedRun.of(total.cache, total.usage, total.requests, route.way)
            is_used = bool(total.cache.hits or total.usage.cache_write_tokens)
            if total.requests > run.first:  # the others could hit
                yield route, run, is_used or route.call.asks_to_cache


def _means(rounds: Sequence[Plan], landed: Sequence[Sequence[ShardResult]]) -> dict[str, Measured]:
    first, found = rounds[0], {}
    for route in first.routes:
        if not route.is_own or not route.spec_hash:
            continue
        shards = [
            (shard, result.report)
            for shard, result in zip(first.shards, landed[0], strict=True)
            if first.route(shard).spec_hash == route.spec_hash
            and not shard.repeats
            and result.report.requests
        ]
        total = sum((report for _, report in shards), Report())
        items = sum(shard.items for shard, _ in shards)
        mean = _mean(route, total, items)
        if mean is not None:
            own_tokens = mean.prompt_bytes / mean.items / BYTES_PER_TOKEN
            alone, packed = _later(route.name, own_tokens, rounds[1:], landed[1:])
            found[route.spec_hash] = replace(mean, alone=alone, packed=packed)
    return found


def _mean(route: PlannedRoute, total: Report, items: int) -> Measured | None:
    """Return the means of a route's requests, which held `items` prompts. Returns None if too few were good."""
    guess = route.estimate or {}
    priced = items - total.spent.unpriced
    good = total.outcomes.get(Outcome.SUCCEEDED, 0)
    if not guess.get("prompt_bytes") or priced < 1 or good < _LEAST_GOOD * total.rows:
        return None
    each, answer = items / total.requests, total.usage.output_tokens / total.requests
    others = total.requests - 1
    squares = max(0.0, total.output_squares - total.requests * answer * answer)
    variance = squares / others / each if others else None
    return Measured(
        requests=total.requests,
        prompt_bytes=guess["prompt_bytes"] / guess["requests"] * each,
        input_tokens=total.usage.input_tokens / priced * each,
        output_tokens=total.usage.output_tokens / priced * each,
        items=each,
        is_packed=route.rows_per_request > 1,
        output_variance=None if answer and not total.output_squares else variance,
    )


def _later(
    route: str, own_tokens: float, rounds: Sequence[Plan], landed: Sequence[Sequence[ShardResult]]
) -> tuple[Later, Later]:
    """Add up the later requests of the rows that began on a route: asked alone, and packed.

    `own_tokens` are those of a prompt itself, without the tokens that each request repeats.
    """
    found = {False: Later(), True: Later()}
    for plan, results in zip(rounds, landed, strict=True):
        for shard, result in zip(plan.shards, results, strict=True):
            if (*shard.before, plan.route(shard).name)[0] == route and result.report.requests:
                packed = shard.packed > 0
                prices = PriceList.of(
                    plan.vendor(plan.route(shard)),
                    plan.route(shard).call.model,
                    plan.limits.prices,
                    at=plan.planned_at,
                )
                one = _summed(result.report, shard.items, own_tokens, prices.by(plan.route(shard).way))
                found[packed] = found[packed].plus(one)
    return found[False], found[True]


def _summed(report: Report, prompts: int, own_tokens: float, prices: PriceList) -> Later:
    """Add up the later requests of one shard."""
    requests, usage = report.requests, report.usage
    bare = Usage(round(prompts / requests * own_tokens), output_tokens=round(usage.output_tokens / requests))
    return Later(
        requests=requests,
        prompts=prompts,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        dollars=report.spent.cost - report.spent.stray_cost,
        prompt_dollars=float(prices.cost(bare) or 0) * requests,
        hits=report.cache.hit_rate * requests,
        won=report.cache.won,
    )


def compared(first: Plan, report: Report) -> dict[str, Any]:
    """Return the error of the estimate, as shares of the real numbers, and the estimate's source.

    Empty if nothing was estimated or sent. A share above 0 means that less was used than expected.
    """
    if not report.estimate or not report.requests:
        return {}
    usage: Usage = report.usage
    actual = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "usd": report.spent.cost - report.spent.stray_cost,
    }
    guesses = [route.estimate or {} for route in first.routes if not route.canary]
    sources = {str(guess.get("source", "")) for guess in guesses if guess.get("requests")}
    return {
        **{name: _off(report.estimate.get(name), amount) for name, amount in actual.items()},
        "source": ", ".join(sorted(filter(None, sources))),
    }


def _off(expected: float | None, actual: float) -> float | None:
    return None if expected is None or not actual else round(expected / actual - 1, 4)
