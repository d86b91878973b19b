"""Read a run folder: the state of each shard, its next step, and the cost so far.

It needs neither the provider nor the warehouse, and writes nothing.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import orjson

from airflow_batch_llm.core.canary import CanaryVerdict
from airflow_batch_llm.core.journal import (
    Adopt,
    Ask,
    Done,
    GiveUp,
    Land,
    Look,
    Move,
    Refuse,
    Standing,
    Submit,
    Terms,
    Wait,
    decide,
)
from airflow_batch_llm.core.model import Way
from airflow_batch_llm.core.printing import counted, share, verb
from airflow_batch_llm.core.report import Report
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.stage.land.finishing import cached, summed, told_caching, told_packing
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.plan import Plan, PlannedShard
from airflow_batch_llm.stage.records.standings import (
    ShardResult,
    read_all_landed,
    read_rounds,
    read_sendable,
    read_standings,
)
from airflow_batch_llm.stage.send.submitting import LEASE_SECONDS
from airflow_batch_llm.stage.send.sweeping import read_strays, uncounted
from airflow_batch_llm.store import Workspace
from airflow_batch_llm.store.workspace import is_plain_name

_SHOWN_KEYS = 5


class ShardState(StrEnum):
    """The state of a shard, in the order of its life."""

    PLANNED = "planned"  # nothing of it is at the provider
    INTENDED = "intended"  # a creation was announced and its answer is not recorded
    ASKING = "asking"  # a worker asks its requests in real time
    SUBMITTED = "submitted"  # its batch exists
    ENDED = "ended"  # its batch has ended and the raw results are kept
    REFUSED = "refused"  # the provider does not take it
    STAGED = "staged"  # its answers wait for the merge
    MERGED = "merged"  # its answers are in the target table


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedShard:
    """One shard of one round. Times are seconds since the epoch."""

    round: int
    number: int
    route: str
    """The name of the route that its requests take."""
    way: Way
    requests: int
    rows: int
    state: ShardState
    next: str
    batch_id: str | None
    batch_at: float | None
    ended_at: float | None  # when its batch was seen to have ended
    landed_at: float | None
    cost_usd: float | None  # None: not landed yet
    cancelled: bool  # the batch was cancelled on request; answers until then are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedRoute:
    """One route of a run: its plan in all rounds, and its results so far."""

    name: str
    model: str
    way: Way
    requests: int
    succeeded: int
    """Rows with a good answer, also if another route answers them again."""
    cost_usd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedFailure:
    """Rows without a good answer that have the same error code."""

    code: str
    rows: int
    keys: tuple[str, ...]
    """The keys of a few of these rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedStray:
    """A second batch of a shard, which was found after the shard had landed."""

    shard: int
    batch_id: str
    cost_usd: float | None  # None: not known, or not yet
    in_report: bool  # of a finished run: whether its report counts it


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """One generation of a run."""

    path: str
    provider: str
    model: str
    target: str
    deployment: str  # empty: there is only one
    database: str | None  # its URI; None: planned by an earlier release
    planned_at: float
    max_tries: int
    deadline: float | None
    why: dict[str, int]
    rows_per_request: int  # the most rows of one request
    canary: str  # the ruling on the canary; "waiting": there is none yet; empty: there is no canary
    estimated_usd: float | None
    estimate: dict[str, float | None]
    """Rows, requests, tokens and dollars that were expected before anything was sent. Empty: nothing was estimated."""
    spent_usd: float
    list_usd: float  # the same requests in real time
    requests: int  # of the shards that have landed, in all rounds
    usage: dict[str, int]
    caching: dict[str, dict[str, Any]]
    """The use of the vendor's cache by route, as the report has it. Empty: it was not used."""
    packing: dict[str, Any]
    """The packed requests and their rows, as the report has them. Empty: there were none."""
    outcomes: dict[str, int]
    """The rows that have landed, by their last outcome."""
    failures: tuple[InspectedFailure, ...]  # the most frequent first
    ended_at: float | None
    next: str
    routes: tuple[InspectedRoute, ...]  # empty: there is only the stage's own
    shards: tuple[InspectedShard, ...]
    strays: tuple[InspectedStray, ...]
    passed: bool | None  # None: unfinished
    verdict: str | None

    def to_json(self) -> dict[str, Any]:
        """For other programs."""
        return asdict(self)


def open_run_folder(uri: str) -> tuple[Workspace, str]:
    """Return the parent of a run's folder, and the run's name in it. The folder of a generation leads to its run."""
    parent, _, name = uri.rstrip("/").rpartition("/")
    if not is_plain_name(name) or parent.endswith("/"):
        raise InputError(f"{uri} is not the folder of a run. It reads like <workspace>/<dag>/<task>/<run>.")
    workspace = Workspace.open(parent or ("." if "/" not in uri else "/"), probe=False)
    if workspace.read(f"{name}/plan.json") is not None:
        return open_run_folder(parent)
    if workspace.read(f"{name}/g1/plan.json") is None:
        raise InputError(f"{uri} holds no planned run. Its folder has a 'g1' with a plan.json in it.")
    return workspace, name


def inspect(folder: RunFolder, now: float) -> Inspected:
    """Read one generation."""
    rounds = list(read_rounds(folder))
    first = rounds[0]
    stored = orjson.loads(folder.read_report() or b"null")
    report = Report.from_json(stored["report"]) if stored is not None else None
    landed = read_all_landed(folder, [shard.number for plan in rounds for shard in plan.shards])
    deadline = max((orjson.loads(data)["at"] for data in folder.deadlines()), default=None)
    is_closed = folder.is_cancelled() or (deadline is not None and now >= deadline)
    at = _At(now, is_closed, folder.cancelled(), read_sendable(folder, first).shards)
    standings = [(plan, read_standings(folder, plan)) for plan in rounds]
    shards = tuple(_shards(folder, standings, landed, at))
    strays = tuple(_strays(folder, [one for _, stands in standings for one in stands], stored))
    done = [[one for shard in plan.shards if (one := landed.get(shard.number))] for plan in rounds]
    told = report or summed(rounds, done)
    late = math.fsum(stray.cost_usd or 0.0 for stray in strays if not stray.in_report)
    return Inspected(
        path=folder.path,
        provider=first.provider,
        model=first.model,
        target=first.target.table,
        deployment=first.deployment,
        database=None if first.place is None else first.place.database,
        planned_at=first.planned_at,
        max_tries=first.max_tries,
        deadline=deadline,
        why=dict(first.why),
        canary=_ruling(folder, first),
        rows_per_request=max((route.rows_per_request for route in first.routes if route.is_own), default=1),
        estimated_usd=first.dollars,
        estimate=first.forecast(),
        spent_usd=told.spent.cost + late,
        **_counts(told, done),
        **_savings(told, rounds, landed),
        ended_at=stored["about"].get("completed_at") if stored is not None else None,
        next=_next(
            shards, again=sum(_again(landed.get(shard.number)) for shard in rounds[-1].shards), report=report
        ),
        routes=tuple(_routes(rounds, [one.report for one in landed.values()])),
        shards=shards,
        strays=strays,
        passed=report.passed if report is not None else None,
        verdict=report.verdict if report is not None else None,
    )


def _routes(rounds: Sequence[Plan], landed: Sequence[Report]) -> Iterator[InspectedRoute]:
    """Yield the routes of a run that has several, the stage's own first."""
    first = rounds[0]
    if not first.is_routed:
        return
    requests = Counter[str]()
    for plan in rounds:
        for shard in plan.shards:
            requests[plan.route(shard).name] += shard.requests
    for route in (route for route in first.routes if route.is_own):
        done = [report.routes[route.name] for report in landed if route.name in report.routes]
        yield InspectedRoute(
            name=route.name,
            model=route.call.model,
            way=route.way,
            requests=requests[route.name],
            succeeded=sum(one.succeeded for one in done),
            cost_usd=math.fsum(one.cost for one in done),
        )


def _ruling(folder: RunFolder, first: Plan) -> str:
    if not first.canary:
        return ""
    data = folder.read_canary()
    return "waiting" if data is None else CanaryVerdict.from_json(data).ruling.value


def _strays(
    folder: RunFolder, shards: list[tuple[PlannedShard, Standing]], stored: Mapping[str, Any] | None
) -> Iterator[InspectedStray]:
    records = {stray.batch_id: stray for stray in read_strays(folder, shards)}
    for shard, batch_id in uncounted(folder, shards):
        yield InspectedStray(
            shard=shard.number,
            batch_id=batch_id,
            cost_usd=records[batch_id].cost if batch_id in records else None,
            in_report=stored is not None and batch_id in stored["strays"],
        )


def _counts(told: Report, rounds: Sequence[Sequence[ShardResult]]) -> dict[str, Any]:
    """Return the fields of `Inspected` that count landed rows."""
    return {
        "list_usd": told.spent.list_cost,
        "requests": told.requests,
        "usage": told.usage._asdict(),
        "outcomes": {outcome.value: count for outcome, count in told.final.items()},
        "failures": tuple(_failures(told, rounds)),
    }


def _savings(told: Report, rounds: Sequence[Plan], landed: Mapping[int, ShardResult]) -> dict[str, Any]:
    """Return the fields of `Inspected` about the vendor's cache and packed requests."""
    shards = ((plan, shard) for plan in rounds for shard in plan.shards)
    reports = ((plan.route(shard), one.report) for plan, shard in shards if (one := landed.get(shard.number)))
    return {"caching": told_caching(cached(reports)), "packing": told_packing(rounds, told)}


def _failures(told: Report, rounds: Sequence[Sequence[ShardResult]]) -> Iterator[InspectedFailure]:
    """Yield the failures by code. Rows that wait for another try count in the last round only."""
    keys: dict[str, dict[str, None]] = {}
    for number, shards in enumerate(rounds, start=1):
        for one in shards:
            for by_code in (one.failed_keys, one.again_keys if number == len(rounds) else {}):
                for code, shown in by_code.items():
                    keys.setdefault(code, {}).update(dict.fromkeys(shown))
    for code, rows in sorted(told.codes.items(), key=lambda item: (-item[1], item[0])):
        if rows:
            yield InspectedFailure(code=code, rows=rows, keys=tuple(keys.get(code, ()))[:_SHOWN_KEYS])


def _again(landed: ShardResult | None) -> int:
    return len(landed.again) if landed is not None else 0


@dataclass(frozen=True, slots=True)
class _At:
    """Facts for all shards: the time of the look, whether the run still sends, and the batches cancelled on request."""

    now: float
    is_closed: bool
    cancelled: frozenset[str]
    sendable: tuple[PlannedShard, ...]
    """The shards of the first round that may be sent."""

    def next_of(self, plan: Plan, shard: PlannedShard, standing: Standing) -> str:
        """Describe the next step of a shard that is not merged."""
        if plan.round == 1 and shard not in self.sendable:
            return "it is sent if the canary is good enough"
        return _described(self.move(plan, shard, standing), standing, plan.route(shard).way)

    def move(self, plan: Plan, shard: PlannedShard, standing: Standing) -> Move:
        """Return the next step of a run. Only a search at the provider needs the lag."""
        terms = Terms(
            token=plan.token(shard),
            requests=shard.requests,
            lease_seconds=LEASE_SECONDS + shard.bytes / 1e6,
            list_lag_seconds=0.0,
            closed=self.is_closed,
            way=plan.route(shard).way,
        )
        return decide(standing, terms, self.now)


def _shards(
    folder: RunFolder,
    standings: Sequence[tuple[Plan, list[tuple[PlannedShard, Standing]]]],
    landed: Mapping[int, ShardResult],
    at: _At,
) -> Iterator[InspectedShard]:
    for plan, stands in standings:
        is_published = folder.read_published(plan.round) is not None
        for shard, standing in stands:
            merged = is_published and standing.staged is not None
            yield _shard(plan, (shard, standing), landed.get(shard.number), at, merged=merged)


def _shard(
    plan: Plan, stands: tuple[PlannedShard, Standing], landed: ShardResult | None, at: _At, *, merged: bool
) -> InspectedShard:
    shard, standing = stands
    batch = standing.batch
    return InspectedShard(
        round=plan.round,
        number=shard.number,
        route=plan.route(shard).name,
        way=plan.route(shard).way,
        requests=shard.requests,
        rows=shard.rows,
        state=ShardState.MERGED if merged else _state(standing),
        next="" if merged else at.next_of(plan, shard, standing),
        batch_id=batch.batch_id if batch is not None else None,
        batch_at=batch.at if batch is not None else None,
        ended_at=standing.ended.at if standing.ended is not None else None,
        landed_at=standing.staged.at if standing.staged is not None else None,
        cost_usd=landed.report.spent.cost if landed is not None and standing.staged is not None else None,
        cancelled=batch is not None and batch.batch_id in at.cancelled,
    )


def _state(standing: Standing) -> ShardState:
    if standing.staged is not None:
        return ShardState.STAGED
    if standing.ended is not None:
        return ShardState.ENDED
    if standing.batch is not None:
        return ShardState.SUBMITTED
    if standing.refused is not None:
        return ShardState.REFUSED
    if standing.asking is not None:
        return ShardState.ASKING
    return ShardState.INTENDED if standing.intent is not None else ShardState.PLANNED


def _described(move: Move, standing: Standing, way: Way) -> str:
    match move:
        case Submit():
            return "its batch is created, once there is a place for it"
        case Ask():
            return "its requests are asked in real time"
        case Look():
            lease = f", whose lease ends at {moment(standing.intent.expires_at)}" if standing.intent else ""
            return f"the provider is asked whether the batch of the unanswered creation exists{lease}"
        case Adopt(batch_id=batch_id):
            return f"batch {batch_id} is adopted"
        case Wait(batch_id=batch_id) if batch_id:
            return "its batch is looked at, until it has ended"
        case Wait(until=until, reason=reason):
            at = f" after {moment(until)}" if until is not None else ""
            then = "its requests are asked in real time" if way.in_real_time else "its batch is created"
            return f"{then}{at}: {reason}"
        case Land():
            return "its answers are staged"
        case Refuse(reason=reason):
            return f"its rows become failures: {reason}"
        case GiveUp():
            return "its rows are given up: nothing of it was sent, and the run sends nothing more"
        case Done():
            return "its answers are merged, with the others of the round"


def _next(shards: tuple[InspectedShard, ...], *, again: int, report: Report | None) -> str:
    if report is not None:
        return "Nothing: the run is finished. A retry returns its report and sends nothing."
    still = [shard for shard in shards if shard.state is not ShardState.MERGED]
    if not still and again:
        asked = f"{counted(again, 'request')} {verb(again, 'is', 'are')} asked again"
        return f"{asked} in a further round, if time and budget allow it; else the report."
    if not still:
        return "The report is written."
    if all(shard.state is ShardState.STAGED for shard in still):
        return "What is staged is merged into the target."
    return f"{share(len(still), len(shards), 'shard')} {verb(len(shards), 'goes', 'go')} on."


def moment(seconds: float) -> str:
    """Return a time in UTC, for people."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
