"""What strays have cost: batches that were created besides the recorded one of their shard, and that no landing read.

A stray may end after its shard has landed, and be found after the report was stored. Its cost is recorded once, in the
run folder. The report adds up the records that it found and names them; it is not changed for the others.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

import orjson

from airflow_batch_llm.core.journal import Standing
from airflow_batch_llm.core.model import BatchState
from airflow_batch_llm.core.report import Report, Spent
from airflow_batch_llm.errors import ResultsGone
from airflow_batch_llm.stage.folder import RunFolder
from airflow_batch_llm.stage.gathering import Gatherer
from airflow_batch_llm.stage.landed import read_landed
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.plan import Plan, PlannedShard


@dataclass(frozen=True, slots=True, kw_only=True)
class Stray:
    """The record of one."""

    batch_id: str
    shard: int
    at: float
    cost: float | None  # dollars; None: its results are gone, so nobody can tell
    unpriced: int = 0  # answers of a model whose price is not known

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> "Stray":
        return cls(**orjson.loads(data))


@dataclass(frozen=True, slots=True, kw_only=True)
class StrayBatch:
    """One that has ended, as a sweep found it."""

    shard: PlannedShard
    batch_id: str
    state: BatchState


@dataclass(frozen=True, slots=True, kw_only=True)
class StrayCounter:
    """Records what the strays of one plan have cost."""

    parts: Parts
    folder: RunFolder
    plan: Plan

    def count(self, ended: Iterable[StrayBatch]) -> None:
        """Record the cost of each that neither a landing nor a record has counted."""
        for one in ended:
            if one.batch_id in _landed_with(self.folder, one.shard):
                continue
            if self.folder.read_stray(one.batch_id) is None:
                self._record(one)

    def _record(self, one: StrayBatch) -> None:
        stray = self._priced(one)
        self.folder.create_stray(one.batch_id, stray.to_json())
        cost = "an unknown amount: its results are gone" if stray.cost is None else f"${stray.cost:,.4f}"
        late = self.folder.read_report() is not None
        where = f" The report of {self.folder.path} was stored before; `inspect` shows it." if late else ""
        self.parts.warn(
            f"Shard {one.shard.number}: batch {one.batch_id}, created besides the recorded one, has cost {cost}.{where}"
        )

    def _priced(self, one: StrayBatch) -> Stray:
        stray = Stray(batch_id=one.batch_id, shard=one.shard.number, at=self.parts.clock(), cost=0.0)
        if one.state is BatchState.REJECTED:
            return stray
        try:
            lines = self.parts.provider.results(one.batch_id)
            judged = (
                Gatherer.of(self.parts.provider, self.plan)
                .gather(
                    [(one.batch_id, lines)], token=self.plan.token(one.shard), requests=one.shard.requests
                )
                .judged
            )
        except ResultsGone:
            return replace(stray, cost=None)
        return replace(stray, cost=judged.cost, unpriced=judged.unpriced)


def uncounted(
    folder: RunFolder, shards: Iterable[tuple[PlannedShard, Standing]]
) -> list[tuple[PlannedShard, str]]:
    """The strays of staged shards that their landing did not read."""
    return [
        (shard, batch_id)
        for shard, standing in shards
        if standing.spare and standing.staged is not None
        for batch_id in standing.spare
        if batch_id not in _landed_with(folder, shard)
    ]


def read_strays(folder: RunFolder, shards: Iterable[tuple[PlannedShard, Standing]]) -> list[Stray]:
    """The records so far."""
    found = (folder.read_stray(batch_id) for _, batch_id in uncounted(folder, shards))
    return [Stray.from_json(data) for data in found if data is not None]


def reported(strays: Sequence[Stray]) -> Report:
    """Their part of a run's report."""
    cost = sum(stray.cost or 0.0 for stray in strays)
    unpriced = sum(stray.unpriced for stray in strays)
    return Report(batches=len(strays), spent=Spent(cost=cost, stray_cost=cost, unpriced=unpriced))


def _landed_with(folder: RunFolder, shard: PlannedShard) -> Sequence[str]:
    return read_landed(folder, shard.number).batches
