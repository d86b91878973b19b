"""Finding what should not be there: batches that bear a run's token and are not the recorded ones.

A process that freezes between its last look and its creation, and for longer than its lease, can leave one. It is
cancelled, recorded as a spare of its shard, and what it answered is kept; the recorded batch wins.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from airflow_batch_llm.core.journal import CLOCK_SKEW_SECONDS, Entry, Kind, Standing
from airflow_batch_llm.core.model import BatchState, Search, Sighting
from airflow_batch_llm.stage.folder import RunFolder
from airflow_batch_llm.stage.plan import Plan, PlannedShard
from airflow_batch_llm.stage.registers import Registers
from airflow_batch_llm.stage.settings import Parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweeper:
    """Sweeps the shards of one plan."""

    parts: Parts
    folder: RunFolder
    plan: Plan

    def sweep(self, shards: Sequence[tuple[PlannedShard, Standing]]) -> int:
        """Record and cancel the unrecorded batches of these shards; returns how many there were."""
        by_token = {self.plan.token(shard): (shard, standing) for shard, standing in shards}
        search = Search(
            run_token=self.plan.run_token,
            since=self.plan.planned_at - CLOCK_SKEW_SECONDS,
            requests={token: shard.requests for token, (shard, _) in by_token.items()},
            known=Registers(workspace=self.parts.workspace).known(self.parts.provider.name),
        )
        strays = 0
        for sighting in self.parts.provider.find(search):
            shard, standing = by_token.get(sighting.token or "", (None, None))
            if shard is None or standing is None or sighting.batch_id in _recorded(standing):
                continue
            strays += 1
            self._take(shard, sighting)
        return strays

    def _take(self, shard: PlannedShard, sighting: Sighting) -> None:
        if sighting.state is BatchState.RUNNING:
            self.parts.provider.cancel(sighting.batch_id)
        self.parts.say(
            f"Shard {shard.number}: batch {sighting.batch_id} was created besides the recorded one and is cancelled."
        )
        entry = Entry(
            kind=Kind.SUBMITTED, nonce=secrets.token_hex(6), at=self.parts.clock(), batch_id=sighting.batch_id
        )
        self.folder.append(shard.number, len(self.folder.journal(shard.number)) + 1, entry)


def _recorded(standing: Standing) -> set[str]:
    recorded = {standing.batch.batch_id} if standing.batch is not None else set()
    return recorded | set(standing.spare)
