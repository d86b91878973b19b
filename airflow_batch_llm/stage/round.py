"""One round of a run, moved forward: collect what has ended, land it, send what may be sent.

The order matters. Ended batches free places before new ones are sent, and everything that is at the provider is
landed before the round is published in one merge.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from airflow_batch_llm.core.journal import (
    Done,
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
from airflow_batch_llm.errors import ProviderError
from airflow_batch_llm.stage.land.collecting import Collector
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.plan import Plan, PlannedShard
from airflow_batch_llm.stage.records.standings import read_standings
from airflow_batch_llm.stage.send.submitting import Submitter
from airflow_batch_llm.stage.send.sweeping import Sweeper


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """The events that a round still waits for."""

    batch_ids: tuple[str, ...]
    since: float
    wake_at: float | None
    unsent: int
    staged: tuple[int, ...]  # the shards that have landed
    reasons: tuple[str, ...] = ()  # why shards wait that are neither sent nor to be sent now

    def described(self, plan: Plan, now: float) -> str:
        """For people: how many of how many, and why the others wait."""
        shards = len(plan.shards)
        said = [f"{share(len(self.batch_ids), shards, 'batch')} {verb(shards, 'is', 'are')} running"]
        if self.staged:
            said.append(f"{len(self.staged):,} {verb(len(self.staged), 'has', 'have')} landed")
        if self.unsent:
            said.append(f"{counted(self.unsent, 'shard')} {verb(self.unsent, 'waits', 'wait')} for a place")
        if self.wake_at is not None:
            said.append(f"{len(self.reasons):,} to look at again in {max(0.0, self.wake_at - now):,.0f} s")
        return "; ".join((*said, *sorted(set(self.reasons))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """The shards of one plan."""

    parts: Parts
    folder: RunFolder
    plan: Plan
    places: int  # how many batches run at once
    deadline: float
    scratch: Path

    def advance(self) -> Open | None:
        """Do all that can be done now. None: every shard is staged."""
        trouble, waits = self._note_ends()
        self._sweep()
        self._land(self._moves())
        moves = self._moves() | self._submit() | waits
        self._land(moves)
        if trouble:  # of one batch, after the others have been served
            raise trouble[0]
        return self._open(moves)

    def drive(self) -> Open | None:
        """Send what may be sent, and leave ended batches to the worker that collects them.

        Returns None if nothing runs or waits to be sent.
        """
        running = self._running()
        ended = set()
        for batch_id, status in self._check(running).items():
            shard, standing = running[batch_id]
            if status.state.has_results:
                ended.add(batch_id)
            elif status.state.is_over:
                self._collector.note_end(shard, standing, status)
        moves = self._moves() | self._submit(but=ended)
        return self._open({n: move for n, move in moves.items() if not _is_of(move, ended)})

    def is_at_provider(self) -> bool:
        """Return whether a batch of the round is running, or may be."""
        if any(standing.intent is not None and standing.batch is None for _, standing in self._standings()):
            return True
        return any(not status.state.is_over for status in self._check(self._running()).values())

    def _running(self) -> dict[str, tuple[PlannedShard, Standing]]:
        return {
            standing.batch.batch_id: (shard, standing)
            for shard, standing in self._standings()
            if standing.batch is not None and standing.ended is None and standing.staged is None
        }

    def _check(self, batches: Collection[str]) -> Mapping[str, BatchStatus]:
        return self.parts.provider.check(tuple(batches)) if batches else {}

    def _note_ends(self) -> tuple[list[ProviderError], dict[int, Move]]:
        """Record the batches that have ended. One whose results cannot be fetched does not block the others.

        Returns the errors, and what shards wait for whose results are not complete yet.
        """
        running = self._running()
        trouble: list[ProviderError] = []
        waits: dict[int, Move] = {}
        for batch_id, status in self._check(running).items():
            if status.state.is_over:
                shard, standing = running[batch_id]
                try:
                    wait = self._collector.note_end(shard, standing, status)
                except ProviderError as error:
                    trouble.append(error)
                else:
                    if wait is not None:
                        waits[shard.number] = wait
        return trouble, waits

    def _sweep(self) -> None:
        """Before a shard lands of which an unrecorded batch may exist: find it, cancel it, keep what it answered."""
        loose = [
            (shard, standing)
            for shard, standing in self._standings()
            if standing.loose and standing.ended is not None and standing.staged is None
        ]
        if not loose:
            return
        for stray in Sweeper(parts=self.parts, folder=self.folder, plan=self.plan).sweep(loose):
            if stray.state.has_results:
                self._collector.keep_results(stray.batch_id)

    def _land(self, moves: dict[int, Move]) -> None:
        collector = self._collector
        for shard, standing in self._standings():
            if standing.staged is None and isinstance(moves[shard.number], Land | Refuse | GiveUp):
                collector.land(shard, standing)
                moves[shard.number] = Done()

    def _submit(self, but: Collection[str] = ()) -> dict[int, Move]:
        """Bring shards to the provider while there are places; returns where that left them.

        The batches named in `but` have ended and hold no place any more.
        """
        moves: dict[int, Move] = {}
        standings = self._standings()
        active = sum(1 for _, standing in standings if _holds_place(standing)) - len(but)
        for shard, standing in standings:
            if not isinstance(self._move(shard, standing), Submit | Look):
                continue
            if not _holds_place(standing):
                if active >= self.places:
                    continue
                active += 1
            moved = moves[shard.number] = self._submitter.submit(shard)
            if isinstance(moved, Wait) and moved.batch_id:
                self.parts.say(
                    f"Shard {shard.number}: batch {moved.batch_id} with {counted(shard.requests, 'request')}."
                )
        return moves

    def _open(self, moves: dict[int, Move]) -> Open | None:
        waits = [move for move in moves.values() if isinstance(move, Wait)]
        unsent = sum(isinstance(move, Submit | Look) for move in moves.values())
        if not (waits or unsent):
            return None
        standings = self._standings()
        began = [standing.batch.at for _, standing in standings if standing.batch is not None]
        return Open(
            batch_ids=tuple(move.batch_id for move in waits if move.batch_id),
            since=max(began, default=0.0),
            wake_at=min((move.until for move in waits if move.until is not None), default=None),
            unsent=unsent,
            staged=tuple(shard.number for shard, standing in standings if standing.staged is not None),
            reasons=tuple(move.reason for move in waits if move.until is not None),
        )

    def publish(self) -> None:
        """Merge what is staged. Repeated after a crash, it leaves the same tables."""
        parts = [
            self._collector.part(shard.number)
            for shard, standing in self._standings()
            if standing.staged is not None
        ]
        if self.plan.round == 1 and self.plan.unsendable_sha256:
            self._collector.stage_unsendable()
            parts.append(self._collector.part(0))
        self.parts.target.publish(self.plan.target, parts)

    def unstage(self) -> None:
        """Drop what was staged, once it is merged for good."""
        numbers = [0, *(shard.number for shard in self.plan.shards)]
        self.parts.target.unstage(self.plan.target, [self._collector.part(number) for number in numbers])

    def _standings(self) -> list[tuple[PlannedShard, Standing]]:
        return read_standings(self.folder, self.plan)

    def _moves(self) -> dict[int, Move]:
        return {shard.number: self._move(shard, standing) for shard, standing in self._standings()}

    def _move(self, shard: PlannedShard, standing: Standing) -> Move:
        return decide(standing, self._submitter.terms(shard), self.parts.clock())

    @property
    def _collector(self) -> Collector:
        return Collector(parts=self.parts, folder=self.folder, plan=self.plan, scratch=self.scratch)

    @property
    def _submitter(self) -> Submitter:
        return Submitter(
            parts=self.parts,
            folder=self.folder,
            plan=self.plan,
            scratch=self.scratch,
            deadline=self.deadline,
        )


def _is_of(move: Move, batch_ids: Collection[str]) -> bool:
    return isinstance(move, Wait) and move.batch_id in batch_ids


def _holds_place(standing: Standing) -> bool:
    """Return whether a batch of this shard is running at the provider, or may be."""
    at_work = standing.batch is not None or standing.intent is not None
    return at_work and standing.ended is None and standing.staged is None
