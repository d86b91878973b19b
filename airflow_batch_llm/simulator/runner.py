"""The life of batches: each step is taken when the virtual clock says that it is due.

A step reads the batch's phase from the database and writes the next one when it is done, so a stopped simulator
goes on where it was.
"""

import asyncio
import logging
from collections.abc import Mapping

from airflow_batch_llm.simulator.database import Batch, BatchPhase, RowFate
from airflow_batch_llm.simulator.execution import execute
from airflow_batch_llm.simulator.vendor import Rejected, Vendor
from airflow_batch_llm.simulator.world import World

logger = logging.getLogger(__name__)
_AT_ONCE = 2  # batches whose rows are looked at or executed at the same time
_LONGEST_NAP = 3600.0
_BUSY_NAP = 0.05
_LOOK_SECONDS = 0.005


class Runner:
    """Moves batches on."""

    def __init__(self, world: World, vendors: Mapping[str, Vendor]) -> None:
        self._world = world
        self.vendors = vendors
        self._awake = asyncio.Event()
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._steps: dict[str, asyncio.Task[None]] = {}

    def poke(self) -> None:
        """Say that something may have become due."""
        self._awake.set()

    async def run(self) -> None:
        while True:
            self._awake.clear()
            for batch in self._world.database.due_batches(self._world.clock.now()):
                if batch.id not in self._steps:
                    self._begin(batch)
            await self._nap()

    async def idle(self) -> None:
        """Wait until no step is being taken."""
        while self._steps:
            await asyncio.gather(*self._steps.values(), return_exceptions=True)

    async def caught_up(self) -> None:
        """Wait until every step that is due has been taken."""
        while self._steps or self._world.database.due_batches(self._world.clock.now()):
            self.poke()
            await asyncio.sleep(_LOOK_SECONDS)

    async def _nap(self) -> None:
        timeout = _BUSY_NAP
        if not self._steps:  # a step that is being taken still counts as due, so its time says nothing
            wake = self._world.database.next_wake()
            timeout = (
                _LONGEST_NAP if wake is None else max(0.0, min(wake - self._world.clock.now(), _LONGEST_NAP))
            )
        try:
            await asyncio.wait_for(self._awake.wait(), timeout)
        except TimeoutError:
            return

    def _begin(self, batch: Batch) -> None:
        task = asyncio.create_task(self._step(batch.id))
        self._steps[batch.id] = task
        task.add_done_callback(lambda _: self._done(batch.id))

    def _done(self, batch_id: str) -> None:
        task = self._steps.pop(batch_id)
        if not task.cancelled() and (error := task.exception()):
            logger.error("a step of a batch failed", extra={"batch_id": batch_id}, exc_info=error)
            self._world.database.change_batch(
                batch_id, BatchPhase.REJECTED, None, simulator_error=repr(error)
            )
        self.poke()

    async def _step(self, batch_id: str) -> None:
        async with self._places:
            batch = self._world.database.batch(batch_id)
            if batch is None or batch.wake_at is None or batch.wake_at > self._world.clock.now():
                return
            if batch.phase is BatchPhase.ACCEPTED and batch.wake_at < batch.facts["expires_at"]:
                await self._prepare(batch)
            else:
                await self._finish(batch)

    async def _prepare(self, batch: Batch) -> None:
        verdict = await asyncio.to_thread(self.vendors[batch.provider].prepare, batch)
        fresh = self._world.database.batch(batch.id)
        if fresh is None or fresh.phase is not BatchPhase.ACCEPTED:
            return
        now = self._world.clock.now()
        if isinstance(verdict, Rejected):
            self._world.database.change_batch(
                batch.id, BatchPhase.REJECTED, None, ended_at=now, **verdict.facts
            )
            return
        facts = {**fresh.facts, **verdict.facts}
        wake = min(facts["ends_at"] or facts["expires_at"], facts["expires_at"])
        self._world.database.change_batch(batch.id, BatchPhase.RUNNING, wake, running_at=now, **verdict.facts)

    async def _finish(self, batch: Batch) -> None:
        vendor = self.vendors[batch.provider]
        database = self._world.database
        facts = {"ending": {"outcome": RowFate.EXPIRED, "share": 0.0}} if _window_closed(batch) else {}
        now = self._world.clock.now()
        batch = database.change_batch(
            batch.id, BatchPhase.FINISHING, batch.wake_at, finishing_at=now, **facts
        )
        tally = await asyncio.to_thread(execute, self._world, vendor, batch)
        results = await asyncio.to_thread(vendor.finish, batch, tally)
        common = {
            "ended_at": self._world.clock.now(),
            "total": tally.total or batch.facts.get("total", 0),
            "outcomes": tally.outcomes,
            "usage": tally.usage._asdict(),
        }
        if isinstance(results, Rejected):
            database.change_batch(batch.id, BatchPhase.REJECTED, None, **common, **results.facts)
        else:
            database.change_batch(batch.id, BatchPhase.ENDED, None, **common, **results)


def _window_closed(batch: Batch) -> bool:
    """Return whether the batch's window closed before its rows were due."""
    ends_at, expires_at = batch.facts["ends_at"], batch.facts["expires_at"]
    queued = batch.phase is BatchPhase.ACCEPTED
    return "ending" not in batch.facts and (queued or ends_at is None or ends_at > expires_at)
