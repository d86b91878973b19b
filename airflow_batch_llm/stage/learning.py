"""Learn from a run what the requests of its specs take, so that the next run's estimate rests on it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson

from airflow_batch_llm.core.estimate import Measured
from airflow_batch_llm.core.model import Outcome, Usage
from airflow_batch_llm.core.report import Report
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.records.plan import Plan, PlannedRoute
from airflow_batch_llm.stage.records.registers import Registers
from airflow_batch_llm.stage.records.standings import ShardResult

#: Fewer requests, or a smaller share of good answers, say little about the next run.
_LEAST_REQUESTS, _LEAST_GOOD = 20, 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """Keeps the mean tokens of a request by spec, in the workspace. Packed requests are left out."""

    parts: Parts

    def of(self, spec_hash: str) -> Measured | None:
        """Return what the last run with this spec has measured."""
        data = Registers(workspace=self.parts.workspace).read_measured(spec_hash)
        return None if data is None else Measured(**orjson.loads(data))

    def note(self, first: Plan, landed: Sequence[ShardResult]) -> None:
        """Keep the means of the first round, by spec. What cannot be kept is no failure of the run."""
        with self.parts.cleaning("measured tokens"):
            for spec_hash, measured in _means(first, landed).items():
                self.parts.spool.mkdir(parents=True, exist_ok=True)
                with TemporaryDirectory(dir=self.parts.spool) as scratch:
                    Registers(workspace=self.parts.workspace).put_measured(
                        spec_hash, orjson.dumps(asdict(measured)), Path(scratch) / "measured.json"
                    )


def _means(first: Plan, landed: Sequence[ShardResult]) -> dict[str, Measured]:
    found = {}
    for route in first.routes:
        if route.canary or not route.spec_hash:
            continue
        shards = [
            result.report
            for shard, result in zip(first.shards, landed, strict=True)
            if first.route(shard).spec_hash == route.spec_hash and not shard.packed
        ]
        mean = _mean(route, sum(shards, Report()))
        if mean is not None:
            found[route.spec_hash] = mean
    return found


def _mean(route: PlannedRoute, total: Report) -> Measured | None:
    guess = route.estimate or {}
    requests = total.requests - total.spent.unpriced
    good = total.outcomes.get(Outcome.SUCCEEDED, 0)
    if not guess.get("prompt_bytes") or requests < _LEAST_REQUESTS or good < _LEAST_GOOD * total.rows:
        return None
    return Measured(
        requests=requests,
        prompt_bytes=guess["prompt_bytes"] / guess["requests"],
        input_tokens=total.usage.input_tokens / requests,
        output_tokens=total.usage.output_tokens / requests,
    )


def compared(first: Plan, report: Report) -> dict[str, Any]:
    """Return how far the estimate was off, as shares of what the run has taken, and what it rested on.

    Empty: nothing was estimated, or nothing was sent. A share above 0 says that less was used than expected.
    """
    if not report.estimate or not report.requests:
        return {}
    usage: Usage = report.usage
    actual = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "usd": report.spent.cost - report.spent.stray_cost,
    }
    sources = {str((route.estimate or {}).get("source", "")) for route in first.routes if not route.canary}
    return {
        **{name: _off(report.estimate.get(name), amount) for name, amount in actual.items()},
        "source": ", ".join(sorted(filter(None, sources))),
    }


def _off(expected: float | None, actual: float) -> float | None:
    return None if expected is None or not actual else round(expected / actual - 1, 4)
