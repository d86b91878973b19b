"""One round of a run, moved forward: collect what has ended, land it, send what may be sent.

The order matters. Ended batches free places before new ones are sent, and everything that is at the provider is
landed before the round is published in one merge.
"""

from dataclasses import dataclass
from pathlib import Path

from airflow_batch_llm.core.journal import Done, Land, Move, Refuse, Standing, Wait, decide, stand
from airflow_batch_llm.core.model import BatchState
from airflow_batch_llm.stage.collecting import Collector
from airflow_batch_llm.stage.folder import RunFolder
from airflow_batch_llm.stage.plan import Plan, PlannedShard
from airflow_batch_llm.stage.settings import Pace, Parts
from airflow_batch_llm.stage.submitting import Submitter, terms
from airflow_batch_llm.stage.sweeping import Sweeper


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """What a round still waits for."""

    batch_ids: tuple[str, ...]
    since: float
    wake_at: float | None
    unsent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """The shards of one plan."""

    parts: Parts
    folder: RunFolder
    plan: Plan
    pace: Pace
    deadline: float
    scratch: Path

    def advance(self) -> Open | None:
        """Do all that can be done now. None: every shard is staged."""
        self._note_ends()
        self._sweep()
        self._land()
        self._submit()
        self._land()
        return self._open()

    def _note_ends(self) -> None:
        running = {
            standing.batch.batch_id: (shard, standing)
            for shard, standing in self._standings()
            if standing.batch is not None and standing.ended is None and standing.staged is None
        }
        if not running:
            return
        for batch_id, status in self.parts.provider.check(tuple(running)).items():
            if status.state is not BatchState.RUNNING:
                shard, standing = running[batch_id]
                self._collector.note_end(shard, standing, status)

    def _sweep(self) -> None:
        """Before a shard lands of which an unrecorded batch may exist: find it, cancel it, keep what it answered."""
        loose = [
            (shard, standing)
            for shard, standing in self._standings()
            if standing.loose and standing.ended is not None and standing.staged is None
        ]
        if not loose:
            return
        Sweeper(parts=self.parts, folder=self.folder, plan=self.plan).sweep(loose)
        spare = [batch_id for _, standing in self._standings() for batch_id in standing.spare]
        for batch_id, status in (self.parts.provider.check(spare) if spare else {}).items():
            if status.state is BatchState.ENDED:
                self._collector.keep_results(batch_id)

    def _land(self) -> None:
        for shard, standing in self._standings():
            if isinstance(self._move(shard, standing), Land | Refuse) or self._too_late(standing):
                self._collector.land(shard, standing)

    def _submit(self) -> None:
        if self._now() >= self.deadline:
            return
        standings = self._standings()
        active = sum(1 for _, standing in standings if _holds_place(standing))
        for shard, standing in standings:
            move = self._move(shard, standing)
            if isinstance(move, Wait | Done | Land | Refuse):
                continue
            if not _holds_place(standing):
                if active >= self.pace.max_active_batches:
                    continue
                active += 1
            moved = self._submitter.submit(shard)
            if isinstance(moved, Wait) and moved.batch_id:
                self.parts.say(
                    f"Shard {shard.number}: batch {moved.batch_id} with {shard.requests:,} requests."
                )

    def _open(self) -> Open | None:
        batch_ids, times, unsent = [], [], 0
        since = 0.0
        for shard, standing in self._standings():
            match self._move(shard, standing):
                case Done():
                    continue
                case Wait(batch_id=batch_id) if batch_id and standing.batch is not None:
                    batch_ids.append(batch_id)
                    since = max(since, standing.batch.at)
                case Wait(until=until) if until is not None:
                    times.append(until)
                case _:
                    unsent += 1
        if not (batch_ids or times or unsent):
            return None
        return Open(batch_ids=tuple(batch_ids), since=since, wake_at=min(times, default=None), unsent=unsent)

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

    def cancel(self) -> int:
        """Ask for an end of every running batch; returns how many."""
        running = [
            standing.batch.batch_id
            for _, standing in self._standings()
            if standing.batch is not None and standing.ended is None and standing.staged is None
        ]
        for batch_id in running:
            self.parts.provider.cancel(batch_id)
        return len(running)

    def _standings(self) -> list[tuple[PlannedShard, Standing]]:
        return [(shard, stand(self.folder.journal(shard.number))) for shard in self.plan.shards]

    def _move(self, shard: PlannedShard, standing: Standing) -> Move:
        return decide(standing, terms(self.plan, shard, self.parts.provider.limits), self._now())

    def _too_late(self, standing: Standing) -> bool:
        """Nothing of this shard is or may be at the provider, and the run's time is over."""
        idle = standing.batch is None and standing.intent is None and standing.staged is None
        return idle and self._now() >= self.deadline

    def _now(self) -> float:
        return self.parts.clock()

    @property
    def _collector(self) -> Collector:
        return Collector(parts=self.parts, folder=self.folder, plan=self.plan, scratch=self.scratch)

    @property
    def _submitter(self) -> Submitter:
        return Submitter(parts=self.parts, folder=self.folder, plan=self.plan, scratch=self.scratch)


def _holds_place(standing: Standing) -> bool:
    """Whether a batch of this shard is running at the provider, or may be."""
    at_work = standing.batch is not None or standing.intent is not None
    return at_work and standing.ended is None and standing.staged is None
