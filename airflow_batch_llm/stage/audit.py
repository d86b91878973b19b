"""Read from the records of a run folder who sent which batches to a provider, and how they ended.

An audit holds no row, prompt, answer or key. Records of earlier releases do not name their writer.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import orjson

from airflow_batch_llm.core.journal import Entry, RecordKind
from airflow_batch_llm.core.report import Report
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.plan import Plan, PlannedShard
from airflow_batch_llm.stage.records.standings import ShardResult, read_rounds

By = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedBatch:
    """One batch: its sender, its requests and its result. Times are seconds since the epoch."""

    round: int
    shard: int
    batch_id: str
    requests: int
    rows: int
    bytes: int
    requests_sha256: str
    """The hash of the request file, as it was planned and sent."""
    sent_at: float
    sent_by: By
    """The worker that recorded the batch. A spare batch is recorded by the worker that found it. Empty: not known."""
    is_spare: bool
    """It is a second batch of its shard, besides the recorded one."""
    ended_at: float | None
    ended_by: By
    """The worker that fetched the results. Empty: not known, or not fetched yet."""
    outcomes: Mapping[str, int]
    """Rows of the shard by outcome, once it has landed."""
    deleted_at: float | None
    """The time at which the vendor's copy was deleted. None: it was not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedRefusal:
    """A creation that the provider refused or that made no batch."""

    shard: int
    at: float
    by: By
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancellation:
    """A cancellation on request."""

    at: float
    by: By
    batches: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """One generation of a run."""

    path: str
    provider: str
    model: str
    host: str | None
    """The host that was asked, where it is not the vendor's own."""
    target: str
    spec_hash: str
    planned_at: float
    planned_by: By
    rows: int
    batches: tuple[AuditedBatch, ...]
    refusals: tuple[AuditedRefusal, ...]
    cancellations: tuple[Cancellation, ...]
    ended_at: float | None
    """The time at which the report was stored. None: the run is not finished."""
    passed: bool | None
    outcomes: Mapping[str, int]
    """Rows of the run by outcome, once it is finished."""
    cost_usd: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the audit as JSON for other programs."""
        return asdict(self)


def audit(folder: RunFolder) -> Audit:
    """Read one planned generation."""
    rounds = list(read_rounds(folder))
    first = rounds[0]
    journals = [(plan, shard, folder.journal(shard.number)) for plan in rounds for shard in plan.shards]
    stored = orjson.loads(folder.read_report() or b"null")
    report = None if stored is None else Report.from_json(stored["report"])
    return Audit(
        path=folder.path,
        provider=first.provider,
        model=first.model,
        host=_text(first.spec.get("host")),
        target=first.target.table,
        spec_hash=first.spec_hash,
        planned_at=first.planned_at,
        planned_by=dict(first.planned_by),
        rows=first.rows,
        batches=tuple(
            batch for plan, shard, journal in journals for batch in _batches(folder, plan, shard, journal)
        ),
        refusals=tuple(refusal for _, shard, journal in journals for refusal in _refusals(shard, journal)),
        cancellations=tuple(
            Cancellation(at=record["at"], by=record.get("by", {}), batches=tuple(record["batches"]))
            for record in folder.cancellations()
        ),
        ended_at=None if stored is None else stored["about"]["completed_at"],
        passed=None if report is None else report.passed,
        outcomes={} if report is None else {str(name): count for name, count in report.final.items()},
        cost_usd=None if report is None else report.spent.cost,
    )


def _batches(
    folder: RunFolder, plan: Plan, shard: PlannedShard, journal: tuple[Entry, ...]
) -> Iterator[AuditedBatch]:
    sent = [entry for entry in journal if entry.kind is RecordKind.SUBMITTED] + _asked(plan, shard, journal)
    ends = {
        entry.batch_id: entry
        for entry in journal
        if entry.kind is not RecordKind.SUBMITTED and entry.batch_id
    }
    landed = folder.read_landed(shard.number)
    outcomes = Counter() if landed is None else Counter(ShardResult.from_json(landed).report.outcomes)
    seen: set[str] = set()
    for entry in sent:
        if entry.batch_id in seen:
            continue
        end = ends.get(entry.batch_id)
        yield AuditedBatch(
            round=plan.round,
            shard=shard.number,
            batch_id=entry.batch_id,
            requests=shard.requests,
            rows=shard.rows,
            bytes=shard.bytes,
            requests_sha256=shard.requests_sha256,
            sent_at=entry.at,
            sent_by=_by(entry),
            is_spare=bool(seen),
            ended_at=None if end is None else end.at,
            ended_by={} if end is None else _by(end),
            outcomes={str(name): count for name, count in outcomes.items() if count and not seen},
            deleted_at=folder.read_deleted(entry.batch_id),
        )
        seen.add(entry.batch_id)


def _asked(plan: Plan, shard: PlannedShard, journal: tuple[Entry, ...]) -> list[Entry]:
    """Return the first record of asking in real time, under the name that the answers have."""
    first = next((entry for entry in journal if entry.kind is RecordKind.ASKING), None)
    if first is None:
        return []
    names = [entry.batch_id for entry in journal if entry.kind is RecordKind.ENDED]
    return [replace(first, batch_id=names[0] if names else f"now-{plan.token(shard)}")]


def _refusals(shard: PlannedShard, journal: tuple[Entry, ...]) -> Iterator[AuditedRefusal]:
    for entry in journal:
        if entry.kind in (RecordKind.RELEASED, RecordKind.REFUSED):
            yield AuditedRefusal(shard=shard.number, at=entry.at, by=_by(entry), reason=entry.reason)


def _by(entry: Entry) -> By:
    return {} if entry.by is None else entry.by.to_json()


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
