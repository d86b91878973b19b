"""Finding what should not be there: batches that bear a run's token and are not the recorded ones.

A process that freezes between its last look and its creation, and for longer than its lease, can leave one. It is
recorded as a spare of its shard and cancelled. One sweeps before a shard lands, which then has the answers of both (the
recorded batch wins), when the run ends, and when the next one is planned: then what it cost is recorded.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from airflow_batch_llm.core.journal import CLOCK_SKEW_SECONDS, Entry, Kind, Standing, stand
from airflow_batch_llm.core.model import BatchState, Search, Sighting
from airflow_batch_llm.errors import ProviderError, Refused
from airflow_batch_llm.stage.folder import RunFolder
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.plan import Plan, PlannedShard
from airflow_batch_llm.stage.registers import Registers
from airflow_batch_llm.stage.standings import read_rounds, read_standings
from airflow_batch_llm.stage.strays import StrayBatch, StrayCounter


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweeper:
    """Sweeps the shards of one plan."""

    parts: Parts
    folder: RunFolder
    plan: Plan

    def sweep(self, shards: Sequence[tuple[PlannedShard, Standing]]) -> list[StrayBatch]:
        """Record the unrecorded batches of these shards, and cancel all that are spare. Returns those that have ended."""
        self._record(shards)
        spare = {
            batch_id: shard
            for shard, _ in shards
            for batch_id in stand(self.folder.journal(shard.number)).spare
        }
        ended = []
        for batch_id, status in (self.parts.provider.check(tuple(spare)) if spare else {}).items():
            if status.state is BatchState.RUNNING:
                self._cancel(batch_id)
            else:
                ended.append(StrayBatch(shard=spare[batch_id], batch_id=batch_id, state=status.state))
        return ended

    def _record(self, shards: Sequence[tuple[PlannedShard, Standing]]) -> None:
        by_token = {self.plan.token(shard): (shard, standing) for shard, standing in shards}
        search = Search(
            run_token=self.plan.run_token,
            since=self.plan.planned_at - CLOCK_SKEW_SECONDS,
            requests={token: shard.requests for token, (shard, _) in by_token.items()},
            known=Registers(workspace=self.parts.workspace).known(self.parts.provider.name),
        )
        for sighting in self.parts.provider.find(search):
            shard, standing = by_token.get(sighting.token or "", (None, None))
            if shard is None or standing is None or sighting.batch_id in _recorded(standing):
                continue
            self._take(shard, sighting)

    def _take(self, shard: PlannedShard, sighting: Sighting) -> None:
        running = sighting.state is BatchState.RUNNING
        self.parts.warn(
            f"Shard {shard.number}: batch {sighting.batch_id} was created besides the recorded one,"
            f" and {'is cancelled' if running else 'has ended: it is on the bill'}."
        )
        entry = Entry(
            kind=Kind.SUBMITTED, nonce=secrets.token_hex(6), at=self.parts.clock(), batch_id=sighting.batch_id
        )
        if self.folder.append(shard.number, len(self.folder.journal(shard.number)) + 1, entry):
            known = Registers(workspace=self.parts.workspace)
            known.add_known(self.parts.provider.name, sighting.batch_id, self.folder.run_id)

    def _cancel(self, batch_id: str) -> None:
        """Also what is recorded: whoever recorded it may have died before. A provider may refuse to hear that twice."""
        try:
            self.parts.provider.cancel(batch_id)
        except Refused as error:
            self.parts.warn(
                f"Batch {batch_id}, which nobody waits for, could not be cancelled: {error.in_full}"
            )


def sweep_ended(parts: Parts, folder: RunFolder) -> bool:
    """Sweep a run that has landed. Whether a creation of it had no definite end, so that one may yet show up."""
    loose = False
    for plan in read_rounds(folder):
        shards = [(shard, one) for shard, one in read_standings(folder, plan) if one.loose or one.intent]
        if shards:
            loose = True
            ended = Sweeper(parts=parts, folder=folder, plan=plan).sweep(shards)
            StrayCounter(parts=parts, folder=folder, plan=plan).count(ended)
    return loose


def sweep_loose(parts: Parts) -> None:
    """Sweep the ended runs of which something may show up, until the provider would have ended it by itself."""
    registers, provider = Registers(workspace=parts.workspace), parts.provider
    for folder in registers.loose_runs(provider.name):
        try:
            sweep_ended(parts, folder)
        except ProviderError as error:
            parts.warn(f"The run {folder.path} could not be swept: {error.in_full}")
        planned_at = next((plan.planned_at for plan in read_rounds(folder)), 0.0)
        if parts.clock() > planned_at + 2 * provider.limits.window_seconds:
            registers.drop_loose(provider.name, folder)


def _recorded(standing: Standing) -> set[str]:
    recorded = {standing.batch.batch_id} if standing.batch is not None else set()
    return recorded | set(standing.spare)
