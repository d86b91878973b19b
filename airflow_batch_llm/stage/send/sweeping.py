"""Find batches that have a run's token and are not the recorded ones, cancel them, and record their cost.

A gateway that repeats a POST leaves one, and so can a process that freezes between its last look and its creation for
longer than its lease. It is recorded as a spare of its shard and cancelled. A look that lists batches shows it while it
runs, where the provider tells whose it is. The worker searches before a shard lands if a stray of it may exist: the
shard then has the answers of both, and the recorded batch wins. It searches again when the run ends, and, if a stray
may still appear, when the next run is planned. The stray's cost is recorded then.
"""

import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol

import orjson

from airflow_batch_llm.core.journal import CLOCK_SKEW_SECONDS, Doer, Entry, RecordKind, Standing, stand
from airflow_batch_llm.core.model import BatchState, BatchStatus, Search
from airflow_batch_llm.core.packing import Layout
from airflow_batch_llm.core.printing import counted, verb
from airflow_batch_llm.core.report import Report, Spent
from airflow_batch_llm.errors import ProviderError, ResultsGone
from airflow_batch_llm.providers.base import Provider
from airflow_batch_llm.providers.routed import connections, vendors, vendors_id
from airflow_batch_llm.stage.land.gathering import ResultReader
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.plan.shard_files import left_out_of
from airflow_batch_llm.stage.records.folder import RunFolder, generations, safe_name
from airflow_batch_llm.stage.records.plan import ASKING, Plan, PlannedShard
from airflow_batch_llm.stage.records.registers import Registers
from airflow_batch_llm.stage.records.standings import (
    RunMemory,
    read_landed,
    read_rounds,
    read_standings,
)
from airflow_batch_llm.store import at_once


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """The batches of a run that were running when it was cancelled."""

    now: Mapping[str, BatchStatus]
    """Batches that were cancelled now, with the status that was seen just before."""
    before: Mapping[str, BatchStatus]
    """Batches that an earlier call has cancelled and that have not ended yet."""
    asked: int = 0
    """Shards whose requests were asked in real time. Their worker sends nothing more, and keeps what is answered."""
    unconfirmed: int = 0
    """Shards whose batch may exist, because the reply to its creation was lost. A resume of the run searches for it."""

    @property
    def requests(self) -> int:
        """All requests of the batches that the provider counts."""
        return sum(status.total or 0 for status in self._all)

    @property
    def answered(self) -> int:
        """The requests that were no longer running, as far as the provider says."""
        return sum(status.finished or 0 for status in self._all)

    @property
    def _all(self) -> tuple[BatchStatus, ...]:
        return (*self.now.values(), *self.before.values())


def cancel_run(
    folder: RunFolder, provider: Provider, by: Doer, clock: Callable[[], float] = time.time
) -> Cancelled:
    """Cancel every batch of the run that is still running, in all of its generations. The record says by whom.

    A generation that has not ended sends nothing more, also if none of its batches is running.
    A worker that asks in real time sees the record when it keeps answers, and sends nothing more.

    A batch that cannot be cancelled does not block the others. Raises the first such error, once all have been tried.
    """
    now: dict[str, BatchStatus] = {}
    before: dict[str, BatchStatus] = {}
    failed: list[ProviderError] = []
    unconfirmed = asked_now = 0
    for generation in generations(folder.workspace, folder.run):
        batch_ids, unanswered = _open(generation)
        unconfirmed += unanswered
        asked = generation.cancelled()
        if asking := _asked(generation) - asked:
            generation.add_cancelled(sorted(asking), clock(), by)
            asked_now += len(asking)
        running = _running(provider, batch_ids)
        before |= {batch_id: status for batch_id, status in running.items() if batch_id in asked}
        done: dict[str, BatchStatus] = {}
        for batch_id in running.keys() - asked:
            try:
                provider.cancel(batch_id)
            except ProviderError as error:
                failed.append(error)
            else:
                done[batch_id] = running[batch_id]
        if done:
            generation.add_cancelled(sorted(done), clock(), by)
        if generation.read_report() is None and not generation.is_cancelled():
            generation.add_cancelled([], clock(), by)
        now |= done
    if failed:
        raise failed[0]
    return Cancelled(now=now, before=before, asked=asked_now, unconfirmed=unconfirmed)


def cancelled_before(folder: RunFolder) -> str | None:
    """Say how many batches of this generation were cancelled on request. Returns None if no user asked for it."""
    on_request = [record["batches"] for record in folder.cancellations() if not record.get("late")]
    names = {name for batches in on_request for name in batches}
    asked = sum(name.startswith(ASKING) for name in names)
    if not on_request:
        return None
    batches = counted(len(names) - asked, "batch")
    told = batches if not asked else f"{batches} and {counted(asked, 'shard')} asked in real time"
    if not names:
        told = "This run was cancelled while none of its batches was running."
    else:
        told += f" of this run {verb(len(names), 'was', 'were')} cancelled on request."
    return (
        f"{told} What had been answered lands, and the other rows end as canceled."
        " Clear the task after that to ask them again."
    )


def _open(folder: RunFolder) -> tuple[list[str], int]:
    """Return the recorded batches that may be running, and the number of shards whose creation has no reply."""
    batch_ids: list[str] = []
    unanswered = 0
    for plan in read_rounds(folder):
        for _, standing in read_standings(folder, plan):
            batch_ids.extend(spare for spare in standing.spare if folder.read_deleted(spare) is None)
            if standing.batch is not None and standing.ended is None and standing.staged is None:
                batch_ids.append(standing.batch.batch_id)
            unanswered += standing.intent is not None and standing.batch is None
    return batch_ids, unanswered


def _asked(folder: RunFolder) -> frozenset[str]:
    """Return the names of the shards that are asked in real time and have not ended."""
    return frozenset(
        plan.asking_id(shard)
        for plan in read_rounds(folder)
        for shard, standing in read_standings(folder, plan)
        if plan.route(shard).way.in_real_time and standing.ended is None and standing.staged is None
    )


def _running(provider: Provider, batch_ids: list[str]) -> dict[str, BatchStatus]:
    """Return the running ones of these batches, and other running batches with their tokens."""
    found = provider.check(tuple(batch_ids)) if batch_ids else {}
    twins = {
        twin: BatchStatus(state=BatchState.RUNNING) for status in found.values() for twin in status.twins
    }
    return twins | {batch_id: status for batch_id, status in found.items() if not status.state.is_over}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stray:
    """The record of a stray."""

    batch_id: str
    shard: int
    at: float
    cost: float | None  # dollars; None: its results are gone, so its cost is unknown
    unpriced: int = 0  # answers of a model whose price is not known

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> "Stray":
        return cls(**orjson.loads(data))


@dataclass(frozen=True, slots=True, kw_only=True)
class StrayBatch:
    """A stray that has ended, as a sweep found it."""

    plan: Plan
    shard: PlannedShard
    batch_id: str
    state: BatchState


@dataclass(frozen=True, slots=True, kw_only=True)
class StrayCounter:
    """Records the cost of a run's strays."""

    parts: Parts
    folder: RunFolder

    def count(self, ended: Iterable[StrayBatch]) -> None:
        """Record the cost of each of these strays."""
        for one in ended:
            stray = self._priced(one)
            self.folder.create_stray(one.batch_id, stray.to_json())
            cost = "an unknown amount: its results are gone" if stray.cost is None else f"${stray.cost:,.4f}"
            said = f"Shard {stray.shard}: batch {one.batch_id}, created besides the recorded one, has cost {cost}."
            if self.folder.read_report() is None:  # which will tell
                self.parts.log(said)
            else:
                self.parts.warn(
                    f"{said} The report of {self.folder.path} was stored before; `inspect` shows it."
                )

    def _priced(self, one: StrayBatch) -> Stray:
        stray = Stray(batch_id=one.batch_id, shard=one.shard.number, at=self.parts.clock(), cost=0.0)
        if not one.state.has_results:
            return stray
        try:
            lines = self.parts.provider.results(one.batch_id)
            judged = (
                ResultReader.of(self.parts.provider, one.plan, one.plan.route(one.shard))
                .gather(
                    [(one.batch_id, lines)],
                    token=one.plan.token(one.shard),
                    layout=Layout.alone(one.shard.requests),
                )
                .judged
            )
        except ResultsGone:
            return replace(stray, cost=None)
        return replace(stray, cost=judged.cost, unpriced=judged.unpriced)


def uncounted(
    folder: RunFolder, shards: Iterable[tuple[PlannedShard, Standing]]
) -> list[tuple[PlannedShard, str]]:
    """Return the strays of staged shards that their landing did not read."""
    return [
        (shard, batch_id)
        for shard, standing in shards
        if standing.spare and standing.staged is not None
        for batch_id in standing.spare
        if batch_id not in _landed_with(folder, shard)
    ]


def read_strays(folder: RunFolder, shards: Iterable[tuple[PlannedShard, Standing]]) -> list[Stray]:
    """Return the records so far."""
    found = (folder.read_stray(batch_id) for _, batch_id in uncounted(folder, shards))
    return [Stray.from_json(data) for data in found if data is not None]


def reported(strays: Sequence[Stray]) -> Report:
    """The strays' part of a run's report."""
    cost = sum(stray.cost or 0.0 for stray in strays)
    unpriced = sum(stray.unpriced for stray in strays)
    return Report(batches=len(strays), spent=Spent(cost=cost, stray_cost=cost, unpriced=unpriced))


def _landed_with(folder: RunFolder, shard: PlannedShard) -> Sequence[str]:
    return read_landed(folder, shard.number).batches


class Journals(Protocol):
    """The access to a run's journals that a sweep needs."""

    def read(self, number: int) -> tuple[Entry, ...]:
        """Read a journal to its end."""

    def append(self, number: int, at: int, entry: Entry) -> bool:
        """Create the record with this number. Returns False if another record has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweeper:
    """Sweeps shards of one run, of one round or of several."""

    parts: Parts
    folder: RunFolder
    journals: Journals
    plans: Sequence[Plan]

    def search(self) -> bool:
        """List batches once, and record those of the run that are not recorded yet.

        Returns whether a running batch may be the run's, which only its end will show.
        """
        shards = self._by_token()
        known = Registers(workspace=self.parts.workspace).known(*vendors(self.parts.provider))
        search = Search(
            run_tokens=frozenset(plan.run_token for plan in self.plans),
            since=min(plan.planned_at for plan in self.plans) - CLOCK_SKEW_SECONDS,
            requests={
                token: shard.requests - len(left_out_of(self.folder, plan, shard))
                for token, (plan, shard) in shards.items()
            },
            known=known,
        )
        unsure = False
        for sighting in self.parts.provider.find(search):
            running = sighting.state is BatchState.RUNNING
            if (
                sighting.token in shards
                and safe_name(vendors_id(self.parts.provider, sighting.batch_id)[1]) not in known
            ):
                self._record(shards[sighting.token][1], sighting.batch_id, running=running)
            unsure |= sighting.token is None and running
        return unsure

    def take_twins(
        self, asked: Mapping[str, tuple[PlannedShard, Standing]], seen: Mapping[str, BatchStatus]
    ) -> bool:
        """Record and cancel the strays that a look has shown. Returns whether there was any."""
        twins = [(asked[batch_id][0], twin) for batch_id, status in seen.items() for twin in status.twins]
        for shard, twin in twins:
            self._record(shard, twin, running=True)
            if twin in stand(self.journals.read(shard.number)).spare:
                self.cancel(twin)
        return bool(twins)

    def settle(self, spare: Mapping[str, tuple[Plan, PlannedShard]]) -> list[StrayBatch]:
        """Cancel the running ones of these strays. Returns those that have ended."""
        ended = []
        for batch_id, status in (self.parts.provider.check(tuple(spare)) if spare else {}).items():
            if not status.state.is_over:
                self.cancel(batch_id)
            else:
                plan, shard = spare[batch_id]
                ended.append(StrayBatch(plan=plan, shard=shard, batch_id=batch_id, state=status.state))
        return ended

    def _by_token(self) -> dict[str, tuple[Plan, PlannedShard]]:
        return {plan.token(shard): (plan, shard) for plan in self.plans for shard in plan.shards}

    def _record(self, shard: PlannedShard, batch_id: str, *, running: bool) -> None:
        """Record a batch as spare. If the shard has no batch, it is not a spare, and the shard's next attempt adopts it."""
        entries = self.journals.read(shard.number)
        standing = stand(entries)
        if (standing.batch or standing.staged) is None or batch_id in {entry.batch_id for entry in entries}:
            return
        self.parts.log(
            f"Shard {shard.number}: batch {batch_id} was created besides the recorded one,"
            f" and {'is cancelled' if running else 'has ended: it is on the bill'}."
        )
        entry = Entry(
            kind=RecordKind.SUBMITTED,
            nonce=secrets.token_hex(6),
            at=self.parts.clock(),
            batch_id=batch_id,
            by=self.parts.by,
        )
        if self.journals.append(shard.number, standing.last + 1, entry):
            known = Registers(workspace=self.parts.workspace)
            known.add_known(*vendors_id(self.parts.provider, batch_id), self.folder.run_id)

    def cancel(self, batch_id: str) -> bool:
        """Cancel a batch, also a recorded one, because the process that recorded it may have died before.

        A provider may refuse a second cancel. Returns whether it accepted this one.
        """
        try:
            self.parts.provider.cancel(batch_id)
        except ProviderError as error:
            self.parts.warn(
                f"Batch {batch_id}, for which no run waits, could not be cancelled: {error.in_full}"
            )
            return False
        return True


def sweep_ended(
    parts: Parts, folder: RunFolder, rounds: Sequence[Plan] = (), memory: RunMemory | None = None
) -> bool:
    """Sweep a landed run by one search.

    Returns whether a batch of it may still appear, or end. Reads the rounds and their journals if the caller has not done
    so.
    """
    plans = tuple(rounds or read_rounds(folder))
    memory = memory or RunMemory.of(folder, plans[0])
    sweeper = Sweeper(parts=parts, folder=folder, journals=memory, plans=plans)
    may_show_up = sweeper.search()
    spare: dict[str, tuple[Plan, PlannedShard]] = {}
    for plan in plans:
        shards = memory.standings(plan)
        may_show_up |= is_loose(shards)
        for shard, batch_id in uncounted(folder, shards):
            if folder.read_stray(batch_id) is None and folder.read_deleted(batch_id) is None:
                spare[batch_id] = (plan, shard)
    ended = sweeper.settle(spare)
    StrayCounter(parts=parts, folder=folder).count(ended)
    return may_show_up or len(ended) < len(spare)


def discard_unused(parts: Parts, shards: Iterable[PlannedShard], memory: RunMemory) -> None:
    """Delete the uploads of which no batch of a shard was made: a worker was killed, or the vendor refused the creation.

    A worker that froze before its creation then creates nothing. The upload of a shard's own batch goes when that ends.
    """
    left: list[str] = []
    for shard in shards:
        batch = memory.standing(shard.number).batch
        own = "" if batch is None else batch.upload
        left += sorted({entry.upload for entry in memory.entries(shard.number)} - {"", own})

    def discard(upload: str) -> None:
        with parts.cleaning("an uploaded file"):
            parts.provider.discard(upload)

    at_once(discard, left)


def is_loose(shards: Iterable[tuple[PlannedShard, Standing]]) -> bool:
    """Return whether a creation had no definite end, so that its batch may still appear."""
    return any(standing.loose or standing.intent is not None for _, standing in shards)


def _is_reached(folder: RunFolder, provider: Provider) -> bool:
    """Return whether a provider reaches all connections of a run."""
    return all(plan.others.keys() <= connections(provider) for plan in read_rounds(folder))


def sweep_loose(parts: Parts) -> list[RunFolder]:
    """Sweep the ended runs of which a batch may still appear, until the provider would have ended it by itself.

    Returns these runs.
    """
    registers, provider = Registers(workspace=parts.workspace), parts.provider
    runs = [folder for folder in registers.loose_runs(provider.name) if _is_reached(folder, provider)]
    for folder in runs:
        loose = True
        try:
            loose = sweep_ended(parts, folder)
        except ProviderError as error:
            parts.warn(f"The run {folder.path} could not be swept: {error.in_full}")
        planned_at = next((plan.planned_at for plan in read_rounds(folder)), 0.0)
        if not loose or parts.clock() > planned_at + 2 * provider.limits.window_seconds:
            registers.drop_loose(provider.name, folder)
    return runs
