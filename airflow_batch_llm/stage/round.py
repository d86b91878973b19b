"""Move one round of a run forward: collect ended batches, land them, and send shards.

The order matters. Ended batches free places before new ones are sent. All batches at the provider land before the round
is published in one merge.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import orjson

from airflow_batch_llm.core.escalation import batches_until
from airflow_batch_llm.core.journal import (
    Ask,
    GiveUp,
    Land,
    Look,
    Move,
    Refuse,
    Standing,
    Submit,
    Wait,
    decide,
)
from airflow_batch_llm.core.model import BatchStatus
from airflow_batch_llm.core.printing import counted, share, verb
from airflow_batch_llm.core.selection import Reason
from airflow_batch_llm.core.waiting import LAST_LOOK_SECONDS
from airflow_batch_llm.errors import ProviderError, Unavailable
from airflow_batch_llm.providers.steps import no_longer_than
from airflow_batch_llm.stage.land.collecting import Collector
from airflow_batch_llm.stage.land.judging import WarehouseCollector
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.plan import Plan, PlannedShard
from airflow_batch_llm.stage.records.standings import RunMemory
from airflow_batch_llm.stage.send.asking import Asker
from airflow_batch_llm.stage.send.submitting import Prepared, Submitter
from airflow_batch_llm.stage.send.sweeping import Sweeper
from airflow_batch_llm.stage.telemetry import describe, span
from airflow_batch_llm.store import ahead, at_once
from airflow_batch_llm.warehouses.side_tables import publish_parts

#: Seconds after which a worker looks again if nothing else is known.
LOOK_AGAIN_SECONDS = 60.0

#: Shards that are uploaded, and whose intents are written, while another one is sent. A worker that is killed leaves so many
#: intents at most of which the next one waits for the lease.
_PREPARED_AT_ONCE = 4

_NOT_CANCELLED = "a batch that is given up could not be cancelled yet"


#: The moves for which a shard is staged next.
_LANDING = Land | Refuse | GiveUp


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRound:
    """The events that a round still waits for."""

    batch_ids: tuple[str, ...]
    since: float
    wake_at: float | None
    unsent: int
    staged: tuple[int, ...]  # the shards that have landed
    reasons: tuple[str, ...] = ()  # why shards wait that are neither sent nor to be sent now
    strays: tuple[str, ...] = ()  # recorded ones
    error: ProviderError | None = None
    """The error of the last look at the batches. None: it succeeded."""

    def described(self, plan: Plan, now: float) -> str:
        """Say for people how many batches have ended, and why shards wait."""
        shards = len(plan.shards)
        if self.error is not None:
            return (
                f"The provider cannot be reached, so {counted(len(self.batch_ids), 'batch')} may be running"
            )
        said = [f"{share(len(self.batch_ids), shards, 'batch')} {verb(shards, 'is', 'are')} running"]
        if self.staged:
            said.append(f"{len(self.staged):,} {verb(len(self.staged), 'has', 'have')} landed")
        if self.unsent:
            said.append(f"{counted(self.unsent, 'shard')} {verb(self.unsent, 'waits', 'wait')} for a place")
        if self.wake_at is not None:
            said.append(f"{len(self.reasons):,} to look at again in {max(0.0, self.wake_at - now):,.0f} s")
        return "; ".join((*said, *sorted(set(self.reasons))))


@dataclass(frozen=True, kw_only=True)
class Round:
    """The shards of one plan."""

    parts: Parts
    folder: RunFolder
    memory: RunMemory
    plan: Plan
    places: int  # how many batches run at once
    deadline: float
    scratch: Path
    concurrency: int = 1  # how many requests are asked at once in real time

    def advance(self) -> OpenRound | None:
        """Move the round as far as it goes now. Returns None if every shard is staged."""
        try:
            trouble, waits = self._note_ends()
        except Unavailable as error:
            return self._unseen(error)
        with self._hurrying():
            self._sweep()
            self._give_up_batches()
        self._land(self._moves())
        moves = self._moves() | self._submit() | self._ask() | waits
        self._land(moves)
        if trouble:  # of one batch, after the others have been served
            raise trouble[0]
        return self._open(moves)

    def drive(self) -> OpenRound | None:
        """Send what may be sent, and leave ended batches to the worker that collects them.

        Returns None if nothing runs or waits to be sent.
        """
        ended = set()
        try:
            seen = self._look()
        except Unavailable as error:
            return self._unseen(error)
        for batch_id, (shard, standing, status) in seen.items():
            if status.state.has_results:
                ended.add(batch_id)
            elif status.state.is_over:
                self._collector.note_end(shard, standing, status)
        with self._hurrying():
            self._give_up_batches(but=ended)
        moves = self._moves() | self._submit(but=ended) | self._ask()
        return self._open({n: move for n, move in moves.items() if not _is_of(move, ended)})

    def is_at_provider(self) -> bool:
        """Return whether a batch of the round is running, or may be."""
        if any(standing.intent is not None and standing.batch is None for _, standing in self._standings()):
            return True
        return any(not status.state.is_over for _, _, status in self._look().values())

    def _running(self) -> dict[str, tuple[PlannedShard, Standing]]:
        return {
            standing.batch.batch_id: (shard, standing)
            for shard, standing in self._standings()
            if standing.batch is not None and standing.ended is None and standing.staged is None
        }

    def _look(self) -> dict[str, tuple[PlannedShard, Standing, BatchStatus]]:
        """Look at the running batches. Strays that the look shows are recorded and cancelled at once."""
        running = self._running()
        if not running:
            return {}
        try:
            with self._hurrying():
                seen = self.parts.provider.check(tuple(running))
        except ProviderError:
            self.memory.fresh_standings(self.plan)
            if self._running().keys() == running.keys():
                raise
            return self._look()  # another worker has recorded ends, and died before it left what it knew
        if self._sweeper.take_twins(running, seen):
            running = self._running()
        return {batch_id: (*running[batch_id], seen[batch_id]) for batch_id in running.keys() & seen.keys()}

    def _hurrying(self) -> AbstractContextManager[None]:
        """Limit the patience with the provider by the run's deadline."""
        return no_longer_than(max(LAST_LOOK_SECONDS, self.deadline - self.parts.clock()))

    def _unseen(self, error: Unavailable) -> OpenRound | None:
        """Return what the round waits for while the provider cannot be reached. Sends nothing and decides nothing."""
        still = self._open(self._moves())
        return None if still is None else replace(still, error=error)

    def _note_ends(self) -> tuple[list[ProviderError], dict[int, Move]]:
        """Record the batches that have ended. One whose results cannot be fetched does not block the others.

        Returns the errors, and what shards wait for whose results are not complete yet.
        """
        over = [seen for seen in self._look().values() if seen[2].state.is_over]
        ends = list(zip(over, at_once(partial(_note_end, self._collector), over), strict=True))
        trouble = [end for _, end in ends if isinstance(end, ProviderError)]
        return trouble, {shard.number: end for (shard, _, _), end in ends if isinstance(end, Wait)}

    def _sweep(self) -> None:
        """Find unrecorded batches of these shards before they land, cancel them, and keep their answers."""
        if any(standing.loose for _, standing in self._landing()):
            self._sweeper.search()
        spare = {
            batch_id: (self.plan, shard) for shard, standing in self._landing() for batch_id in standing.spare
        }
        for stray in self._sweeper.settle(spare):
            if stray.state.has_results:
                self._keep_results(stray.batch_id)

    def _landing(self) -> list[tuple[PlannedShard, Standing]]:
        return [
            (shard, standing)
            for shard, standing in self._standings()
            if standing.ended is not None and standing.staged is None
        ]

    def _keep_results(self, batch_id: str) -> None:
        """Keep a stray's answers. No row depends on them."""
        try:
            self._collector.keep_results(batch_id)
        except ProviderError as error:
            self.parts.warn(f"The answers of the spare batch {batch_id} cannot be used: {error.in_full}")

    def _give_up_batches(self, but: Collection[str] = ()) -> None:
        """Cancel the batches whose open rows are to take another route before the time is over.

        The batches named in `but` have ended.
        """
        given_up = [
            batch_id for batch_id in self._hanging() if batch_id not in but and self._sweeper.cancel(batch_id)
        ]
        if given_up:
            self.folder.add_cancelled(given_up, self.parts.clock(), self.parts.by, late=True)
            self.parts.log(
                f"{counted(len(given_up), 'batch')} {verb(len(given_up), 'is', 'are')} cancelled, since the time is nearly"
                " over. What they have answered lands, and the other rows take another route."
            )

    def _hanging(self) -> list[str]:
        """Return the batches that are to be given up and are not cancelled yet. Returns none before the time for it."""
        if self.parts.clock() < batches_until(self.plan.rules, self.deadline):
            return []
        done = self.folder.cancelled()
        return [
            batch_id
            for batch_id, (shard, _) in self._running().items()
            if batch_id not in done
            and self.plan.course(shard, is_late=True).when_late(self.plan.route(shard).name)
        ]

    def _land(self, moves: dict[int, Move]) -> None:
        """Stage the shards that are ready, and enter their next moves in `moves`.

        Looks again at a shard that another worker has changed.
        """
        landing = [one for one in self._standings() if isinstance(moves[one[0].number], _LANDING)]
        self.memory.begin(shard.number for shard, _ in landing)
        with self._traced("land", [shard for shard, _ in landing]):
            while landing:
                self._collector.land(landing)
                landing = [(shard, self.memory.standing(shard.number)) for shard, _ in landing]
                moves |= {shard.number: self._move(shard, standing) for shard, standing in landing}
                landing = [one for one in landing if isinstance(moves[one[0].number], _LANDING)]

    def _submit(self, but: Collection[str] = ()) -> dict[int, Move]:
        """Bring shards to the provider while there are places. Returns their next moves.

        The batches named in `but` have ended and hold no place any more.
        """
        moves: dict[int, Move] = {}
        chosen = self._sendable(but)
        self.memory.begin(shard.number for shard in chosen)
        # Uploads and intents cost nothing, so they are made side by side. Batches are created one after another: a task
        # that is told to end creates no further one while it cancels those that it knows.
        with (
            self._traced("submit", chosen),
            self._submitter.sending(),
            closing(ahead(self._prepare, chosen, _PREPARED_AT_ONCE)) as prepared,
        ):
            for one in prepared:
                shard = one.shard
                with self._hurrying():
                    moved = moves[shard.number] = self._submitter.submit(one)
                if isinstance(moved, Wait) and moved.batch_id:
                    self.parts.log(
                        f"Shard {shard.number}: batch {moved.batch_id} with {counted(shard.requests, 'request')}."
                    )
        return moves

    @contextmanager
    def _traced(self, step: str, shards: Sequence[PlannedShard]) -> Iterator[None]:
        """Record a step of these shards in the trace, with their landed rows and their cost. Does nothing without shards."""
        if not shards:
            yield
            return
        with span(step, **self.plan.numbers(shards)) as current:
            yield
            numbers = [shard.number for shard in shards] if current.is_recording() else []
            if staged := [number for number in numbers if self.memory.standing(number).staged is not None]:
                describe(current, usd=self.memory.spent(staged))

    def _prepare(self, shard: PlannedShard) -> Prepared:
        with self._hurrying():
            return self._submitter.prepare(shard)

    def _sendable(self, but: Collection[str]) -> list[PlannedShard]:
        """Return the shards to send or to search for, as far as there are places."""
        standings = self._standings()
        active = sum(1 for _, standing in standings if _holds_place(standing)) - len(but)
        chosen = []
        for shard, standing in standings:
            if not isinstance(self._move(shard, standing), Submit | Look):
                continue
            if not _holds_place(standing):
                if active >= self.places:
                    continue
                active += 1
            chosen.append(shard)
        return chosen

    def _ask(self) -> dict[int, Move]:
        """Ask the shards that are asked in real time.

        Returns their next moves. A cancelled shard needs no place: its answers are kept, and nothing is sent.
        """
        shards = [
            shard for shard, standing in self._standings() if isinstance(self._move(shard, standing), Ask)
        ]
        if shards and not self.places:
            cancelled = self.folder.cancelled()
            shards = [shard for shard in shards if self.plan.asking_id(shard) in cancelled]
        if not shards:
            return {}
        self.memory.begin(shard.number for shard in shards)
        asker = Asker(submitter=self._submitter, concurrency=self.concurrency)
        with self._traced("submit", shards):
            asker.ask(shards)
        after = self._moves()
        return {shard.number: after[shard.number] for shard in shards}

    def _open(self, moves: dict[int, Move]) -> OpenRound | None:
        waits = [move for move in moves.values() if isinstance(move, Wait)]
        unsent = sum(isinstance(move, Submit | Ask | Look) for move in moves.values())
        if not (waits or unsent):
            return None
        standings = self._standings()
        began = [standing.batch.at for _, standing in standings if standing.batch is not None]
        if self.plan.rules:
            began += [record["at"] for record in self.folder.cancellations()]  # they end soon
        again = [(move.until, move.reason) for move in waits if move.until is not None]
        again += [(self.parts.clock() + LOOK_AGAIN_SECONDS, _NOT_CANCELLED) for _ in self._hanging()]
        return OpenRound(
            batch_ids=tuple(move.batch_id for move in waits if move.batch_id),
            since=max(began, default=0.0),
            wake_at=min((until for until, _ in again), default=None),
            unsent=unsent,
            staged=tuple(shard.number for shard, standing in standings if standing.staged is not None),
            reasons=tuple(reason for _, reason in again),
            strays=tuple(batch_id for _, standing in standings for batch_id in standing.spare),
        )

    def publish_early(self) -> None:
        """Merge the answers in real time while batches run, once for the round."""
        landing = [shard for shard in self.plan.shards if not shard.repeats]
        rest = {shard.number for shard in landing if shard not in self.plan.canary}
        asked = {shard.number for shard in self.plan.shards if self.plan.route(shard).way.in_real_time} & rest
        if not asked or asked == rest or self.folder.read_published_early(self.plan.round) is not None:
            return
        if asked <= {shard.number for shard, standing in self._standings() if standing.staged is not None}:
            numbers = sorted(asked)
            publish_parts(
                self.parts.target, self.plan.target, [self._collector.part(number) for number in numbers]
            )
            done = orjson.dumps({"at": self.parts.clock(), "shards": numbers})
            self.folder.create_published_early(self.plan.round, done)
            rows = sum(shard.rows for shard in self.plan.shards if shard.number in asked)
            self.parts.log(
                f"{counted(rows, 'row')} {verb(rows, 'was', 'were')} asked in real time: the answers are in"
                f" {self.plan.target.table}, while batches run."
            )

    def publish(self) -> None:
        """Merge the staged rows. A repetition after a crash leaves the same tables."""
        parts = [
            part
            for shard, standing in self._standings()
            if standing.staged is not None and not shard.repeats
            for part in self._collector.parts_of(shard.number)
        ]
        if self.plan.round == 1 and self.plan.unsendable_sha256 and not self._is_only_reused:
            self._collector.load_unsendable()
            parts.append(self._collector.part(0))
        publish_parts(self.parts.target, self.plan.target, parts)

    @property
    def _is_only_reused(self) -> bool:
        """Return whether all rows without their own request get a copy of an answer."""
        return bool(self.plan.reused) and Reason.UNSENDABLE not in self.plan.why

    def drop_loaded(self) -> None:
        """Drop the staged rows, once they are merged."""
        self._collector.drop_loaded()

    def _standings(self) -> list[tuple[PlannedShard, Standing]]:
        return self.memory.standings(self.plan)

    def _moves(self) -> dict[int, Move]:
        return {shard.number: self._move(shard, standing) for shard, standing in self._standings()}

    def _move(self, shard: PlannedShard, standing: Standing) -> Move:
        return decide(standing, self._submitter.terms(shard), self.parts.clock())

    @cached_property
    def _collector(self) -> Collector:
        return (WarehouseCollector if self.plan.in_warehouse else Collector)(
            parts=self.parts,
            folder=self.folder,
            memory=self.memory,
            plan=self.plan,
            scratch=self.scratch,
            deadline=self.deadline,
        )

    @cached_property
    def _sweeper(self) -> Sweeper:
        return Sweeper(parts=self.parts, folder=self.folder, journals=self.memory, plans=(self.plan,))

    @cached_property
    def _submitter(self) -> Submitter:
        return Submitter(
            parts=self.parts,
            folder=self.folder,
            memory=self.memory,
            plan=self.plan,
            scratch=self.scratch,
            deadline=self.deadline,
        )


def _is_of(move: Move, batch_ids: Collection[str]) -> bool:
    return isinstance(move, Wait) and move.batch_id in batch_ids


def _note_end(
    collector: Collector, seen: tuple[PlannedShard, Standing, BatchStatus]
) -> Wait | ProviderError | None:
    try:
        return collector.note_end(*seen)
    except ProviderError as error:
        return error


def _holds_place(standing: Standing) -> bool:
    """Return whether a batch of this shard is running at the provider, or may be."""
    at_work = standing.batch is not None or standing.intent is not None
    return at_work and standing.ended is None and standing.staged is None
