"""Sum up a run in a record that is small enough for XCom, and judge whether its result is good enough.

Reports of shards and rounds add up to the run's. Every planned row is counted once, with its last outcome: a
round that asks again names the outcomes it replaces.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, NamedTuple, TypeVar, assert_never

from airflow_batch_llm.core.caching import CacheTotals
from airflow_batch_llm.core.drift import add_mixes
from airflow_batch_llm.core.model import Outcome, Usage
from airflow_batch_llm.core.printing import counted, share
from airflow_batch_llm.core.selection import PLANNED, Reason

MANIFEST_VERSION = 1

K = TypeVar("K")

#: The keys and the error codes that a verdict shows at the most.
_SAMPLES, _CODES = 5, 3
_EXAMPLES = "; for example the keys "


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """Seconds. Batches run side by side, so the longest counts. Landings run one after another, so they add up."""

    queued: float = 0.0  # until the batch existed: for want of a place, of quota or of an answer
    running: float = 0.0  # until it had ended
    landing: float = 0.0

    def __add__(self, other: "Durations") -> "Durations":
        return Durations(
            queued=max(self.queued, other.queued),
            running=max(self.running, other.running),
            landing=self.landing + other.landing,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Dollars. `unpriced` answers are not in them: the model's price is unknown, or the line does not have its tokens."""

    cost: float = 0.0
    list_cost: float = 0.0  # the same requests in real time
    stray_cost: float = 0.0  # of `cost`: batches that were bought twice by accident
    unpriced: int = 0

    @property
    def saved(self) -> float:
        return self.list_cost - self.cost

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(
            cost=self.cost + other.cost,
            list_cost=self.list_cost + other.list_cost,
            stray_cost=self.stray_cost + other.stray_cost,
            unpriced=self.unpriced + other.unpriced,
        )


class RouteTotals(NamedTuple):
    """Count what one route did: requests sent, rows with a good answer, and dollars."""

    requests: int = 0
    succeeded: int = 0
    cost: float = 0.0
    list_cost: float = 0.0

    def plus(self, other: "RouteTotals") -> "RouteTotals":
        """Return both together."""
        return RouteTotals(
            requests=self.requests + other.requests,
            succeeded=self.succeeded + other.succeeded,
            cost=self.cost + other.cost,
            list_cost=self.list_cost + other.list_cost,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Counts of a shard, a round or a whole run. The verdict is the run's, and does not add up."""

    outcomes: Mapping[Outcome, int] = field(default_factory=dict)  # of rows, in each round they were in
    replaced: Mapping[Outcome, int] = field(default_factory=dict)  # of rows that a later round asked again
    why: Mapping[str, int] = field(default_factory=dict)  # rows by the reason that they were sent or not
    codes: Mapping[str, int] = field(default_factory=dict)
    """Rows without a good answer, by error code: the vendor's, or one of the package such as `prompt_failed`.

    A row counts once.
    """
    estimate: Mapping[str, float | None] = field(default_factory=dict)
    """The estimate before anything was sent: rows, requests, tokens and dollars. Does not add up. Default: none."""
    estimate_off: Mapping[str, Any] = field(default_factory=dict)
    """The error of the estimate, by tokens and dollars, and its source. Does not add up. Default: nothing was sent."""
    attempts: Mapping[int, int] = field(default_factory=dict)  # requests sent, by round
    strange: Mapping[str, int] = field(default_factory=dict)  # result lines that no row needed, by kind
    batches: int = 0
    maybe_twice: int = 0
    """Requests in real time that may have been paid twice: a worker died, or an answer was lost on its way."""
    reviewed: int = 0
    """Answers of people that the run merged from the review table. Does not add up."""
    usage: Usage = field(default_factory=Usage)
    output_squares: float = 0.0
    """The squares of the output tokens of each request, added up. Default: none, or an earlier release has landed it."""
    spent: Spent = Spent()
    routes: Mapping[str, RouteTotals] = field(default_factory=dict)
    """The results of each route, by its name. Default: the stage has one."""
    canary: Mapping[str, Any] = field(default_factory=dict)
    """The canary: its rows, tokens and dollars, its verdict, and the estimate after it. Does not add up. Default: none."""
    labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Good answers by label, for each column of labels or booleans. Default: there are no such columns."""
    drift: Mapping[str, float] = field(default_factory=dict)
    """The population stability index of each such column against the last runs. Does not add up. Default: not known."""
    packing: Mapping[str, Any] = field(default_factory=dict)
    """Packed requests, their rows, requests that asked a row again alone, and the pilot. Does not add up. Default: none."""
    cache: CacheTotals = field(default_factory=CacheTotals)
    """Answers that read from the vendor's cache, and the dollars that it saved."""
    caching: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By route: the share of hits, tokens and dollars of the vendor's cache. Does not add up. Default: it was not used."""
    durations: Durations = Durations()
    passed: bool = True
    verdict: str = ""
    words: str = ""
    """The vendor's words about batches that it did not take, without secrets. For logs: never in XCom. Default: none."""

    @property
    def final(self) -> dict[Outcome, int]:
        """The rows by their last outcome."""
        last = Counter(self.outcomes)
        last.subtract(self.replaced)
        return {outcome: last[outcome] for outcome in Outcome if last[outcome]}

    @property
    def rows(self) -> int:
        """The planned rows."""
        return sum(self.final.values())

    @property
    def requests(self) -> int:
        """The requests sent, in all rounds."""
        return sum(self.attempts.values())

    @property
    def rounds(self) -> int:
        return max(self.attempts, default=0)

    def __add__(self, other: "Report") -> "Report":
        return Report(
            outcomes=_sum(self.outcomes, other.outcomes),
            replaced=_sum(self.replaced, other.replaced),
            why=_sum(self.why, other.why),
            codes=_sum(self.codes, other.codes),
            attempts=_sum(self.attempts, other.attempts),
            strange=_sum(self.strange, other.strange),
            batches=self.batches + other.batches,
            maybe_twice=self.maybe_twice + other.maybe_twice,
            usage=self.usage + other.usage,
            output_squares=self.output_squares + other.output_squares,
            spent=self.spent + other.spent,
            routes=_sum_routes(self.routes, other.routes),
            labels=add_mixes((self.labels, other.labels)),
            cache=self.cache.plus(other.cache),
            durations=self.durations + other.durations,
        )

    def judged(self, verdict: "Verdict") -> "Report":
        """Return the report with the gate's verdict, as it is stored."""
        return replace(self, passed=verdict.passed, verdict=verdict.reason, words=verdict.words)

    def to_json(self) -> dict[str, Any]:
        """For the run folder."""
        stored = asdict(self) | {"usage": self.usage._asdict(), "cache": self.cache._asdict()}
        for name in ("why", "codes", "strange"):
            stored[name] = dict(getattr(self, name))  # `asdict` takes a Counter's items for its elements
        stored["attempts"] = {str(number): count for number, count in self.attempts.items()}
        stored["routes"] = {name: one._asdict() for name, one in self.routes.items()}
        for name in ("outcomes", "replaced"):
            stored[name] = {outcome.value: count for outcome, count in getattr(self, name).items()}
        return stored

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Report":
        """From the run folder."""
        return cls(
            **{
                **stored,
                "outcomes": {Outcome(name): count for name, count in stored["outcomes"].items()},
                "replaced": {Outcome(name): count for name, count in stored["replaced"].items()},
                "attempts": {int(number): count for number, count in stored["attempts"].items()},
                "usage": Usage(**stored["usage"]),
                "spent": Spent(**stored["spent"]),
                "routes": {name: RouteTotals(**one) for name, one in stored.get("routes", {}).items()},
                "cache": CacheTotals(**stored.get("cache", {})),
                "durations": Durations(**stored["durations"]),
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """The subject of a report. Times are seconds since the epoch."""

    run_id: str
    run_token: str
    provider: str
    model: str
    key: tuple[str, ...]
    target: str
    batch_ids: tuple[str, ...] = ()
    llm_conn_id: str | None = None
    structured: bool = False
    result_uri: str | None = None  # of the run folder
    submitted_at: float | None = None
    completed_at: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement on a run, with its reasons. The words hold no value of a row but its key."""

    passed: bool
    reason: str
    words: str = ""  # a vendor's


def gate(
    report: Report, min_success_ratio: float, from_rows: int = 100, samples: Sequence[str] = ()
) -> Verdict:
    """Judge a run by its planned rows, over all rounds. `samples` are keys of rows without a good answer.

    A run without one success fails, however small, also if no row could be sent. The ratio counts from `from_rows` on. A
    run with nothing to send is a success.
    """
    rows, good = report.rows, report.final.get(Outcome.SUCCEEDED, 0)
    if not rows:
        return Verdict(passed=True, reason="There was nothing to send.")
    succeeded = f"{share(good, rows, 'row')} succeeded ({good / rows:.1%})"
    others = ", ".join(
        f"{outcome} {count:,}" for outcome, count in report.final.items() if outcome is not Outcome.SUCCEEDED
    )
    codes = sorted(report.codes.items(), key=lambda item: -item[1])[:_CODES]
    bad = f": {others}" if others else ""
    if codes and others:
        bad += f" ({', '.join(f'{code} {count:,}' for code, count in codes)})"
    if samples and others:
        bad += f"{_EXAMPLES}{', '.join(samples[:_SAMPLES])}"
    if report.why.get(Reason.UNSENDABLE) == rows:
        return Verdict(passed=False, reason=f"None of {counted(rows, 'row')} could be sent{bad}.")
    if not good:
        return Verdict(passed=False, reason=f"None of {counted(rows, 'row')} succeeded{bad}.")
    if rows >= from_rows and good < Fraction(str(min_success_ratio)) * rows:
        below = f"below min_success_ratio={min_success_ratio:g}"
        return Verdict(passed=False, reason=f"{succeeded}, {below}{bad}.")
    return Verdict(passed=True, reason=f"{succeeded}{bad}.")


def miscount(report: Report) -> str | None:
    """Say how a run's counts contradict each other. Returns None if each planned row has one outcome in the manifest."""
    counts = _manifest_counts(report.final)
    if not report.why:  # a plan of an earlier release
        return None
    planned = sum(count for reason, count in report.why.items() if reason in PLANNED)
    if sum(counts.values()) == planned and min(counts.values()) >= 0:
        return None
    return f"{counted(planned, 'row')} were planned, and the outcomes are {counts}."


def without_keys(reason: str, samples: Iterable[str], instead: str) -> str:
    """Return a verdict's reason with another word in the place of these keys."""
    judged, marker, examples = reason.partition(_EXAMPLES)
    for sample in sorted(samples, key=len, reverse=True):
        examples = re.sub(rf"(^|, ){re.escape(sample)}(?=, |\.)", lambda found: found[1] + instead, examples)
    return f"{judged}{marker}{examples}"


def to_xcom(report: Report, about: Provenance) -> dict[str, Any]:
    """Return a small dict: the keys of the manifest of Airflow's own batch operator, and further ones of the package."""
    final = report.final
    return {
        "schema_version": MANIFEST_VERSION,
        "batch_id": about.batch_ids[0] if about.batch_ids else None,
        "adapter": about.provider,
        "llm_conn_id": about.llm_conn_id,
        "model_id": f"{about.provider}:{about.model}",
        "output_type_ref": None,
        "structured": about.structured,
        "result_uri": about.result_uri,
        "request_count": report.rows,
        "counts": _manifest_counts(final),
        "duplicate_result_count": report.strange.get("duplicate_lines", 0),
        "out_of_range_result_count": report.strange.get("foreign_lines", 0),
        "ordered": False,
        "rejoin_key": list(about.key),
        "custom_id_prefix": about.run_token,
        "terminal_reason": "completed" if set(final) <= {Outcome.SUCCEEDED} else "partial",
        "submitted_at": _iso(about.submitted_at),
        "completed_at": _iso(about.completed_at),
        "run_id": about.run_id,
        "input": None,
        "output_table": about.target,
        "batches": list(about.batch_ids),
        "outcomes": {outcome.value: count for outcome, count in final.items()},
        "why": dict(report.why),
        "codes": dict(report.codes),
        "estimate": dict(report.estimate),
        "estimate_off": dict(report.estimate_off),
        "requests": report.requests,
        "rounds": report.rounds,
        "maybe_twice": report.maybe_twice,
        "reviewed": report.reviewed,
        "usage": report.usage._asdict(),
        "cost": _dollars(report.spent),
        **_how_asked(report),
        "labels": {column: dict(labels) for column, labels in report.labels.items()},
        "drift": {column: round(index, 4) for column, index in report.drift.items()},
        "durations": {name: round(seconds, 1) for name, seconds in asdict(report.durations).items()},
        "passed": report.passed,
        "verdict": report.verdict,
    }


def _how_asked(report: Report) -> dict[str, Any]:
    return {
        "routes": {name: _route(one) for name, one in report.routes.items()},
        "canary": dict(report.canary),
        "packing": dict(report.packing),
        "caching": {name: dict(one) for name, one in report.caching.items()},
    }


def _manifest_counts(final: Mapping[Outcome, int]) -> dict[str, int]:
    """Return the counts by the six outcomes that the manifest has."""
    counts = dict.fromkeys(map(_manifest_word, Outcome), 0)
    for outcome, count in final.items():
        counts[_manifest_word(outcome)] += count
    return counts


def _manifest_word(outcome: Outcome) -> str:
    match outcome:
        case Outcome.SUCCEEDED:
            return "succeeded"
        case Outcome.ERRORED:
            return "errored"
        case Outcome.INVALID | Outcome.TRUNCATED | Outcome.REFUSED:
            return "invalid_output"
        case Outcome.EXPIRED:
            return "expired"
        case Outcome.CANCELED:
            return "cancelled"
        case Outcome.MISSING:
            return "missing"
        case _:
            assert_never(outcome)


def _dollars(spent: Spent) -> dict[str, float]:
    return {
        "usd": round(spent.cost, 6),
        "list_usd": round(spent.list_cost, 6),
        "saved_usd": round(spent.saved, 6),
        "stray_usd": round(spent.stray_cost, 6),
        "unpriced": spent.unpriced,
    }


def _route(one: RouteTotals) -> dict[str, float]:
    dollars = {"usd": round(one.cost, 6), "list_usd": round(one.list_cost, 6)}
    return {"requests": one.requests, "succeeded": one.succeeded, **dollars}


def _sum_routes(one: Mapping[str, RouteTotals], other: Mapping[str, RouteTotals]) -> dict[str, RouteTotals]:
    nothing = RouteTotals()
    return {name: one.get(name, nothing).plus(other.get(name, nothing)) for name in {**one, **other}}


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()


def _sum(one: Mapping[K, int], other: Mapping[K, int]) -> dict[K, int]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in {**one, **other}}
