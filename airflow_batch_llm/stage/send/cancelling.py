"""Cancel what a run still has at its provider. What the batches answered until then can still be landed.

Each cancellation is recorded in the run folder, so that it is asked for once and a resume can say what happened.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from airflow_batch_llm.core.model import BatchState, BatchStatus
from airflow_batch_llm.core.printing import counted, verb
from airflow_batch_llm.errors import ProviderError
from airflow_batch_llm.providers.base import Provider
from airflow_batch_llm.stage.records.folder import RunFolder, generations
from airflow_batch_llm.stage.records.standings import read_rounds, read_standings


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """The batches of a run that were running when it was cancelled."""

    now: Mapping[str, BatchStatus]
    """Batches that were cancelled now, with the status that was seen just before."""
    before: Mapping[str, BatchStatus]
    """Batches that an earlier call has cancelled and that have not ended yet."""
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


def cancel_run(folder: RunFolder, provider: Provider, clock: Callable[[], float] = time.time) -> Cancelled:
    """Cancel every batch of the run that is still running, in all of its generations.

    A batch that cannot be cancelled does not block the others. Raises the first such error, once all have been tried.
    """
    now: dict[str, BatchStatus] = {}
    before: dict[str, BatchStatus] = {}
    failed: list[ProviderError] = []
    unconfirmed = 0
    for generation in generations(folder.workspace, folder.run):
        batch_ids, unanswered = _open(generation)
        unconfirmed += unanswered
        asked = generation.cancelled()
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
            generation.add_cancelled(sorted(done), clock())
        now |= done
    if failed:
        raise failed[0]
    return Cancelled(now=now, before=before, unconfirmed=unconfirmed)


def cancelled_before(folder: RunFolder) -> str | None:
    """For people: how many batches of this generation were cancelled. Returns None if none was."""
    batches = len(folder.cancelled())
    if not batches:
        return None
    return (
        f"{counted(batches, 'batch')} of this run {verb(batches, 'was', 'were')} cancelled on request. What had been"
        " answered lands, and the other rows end as canceled. Clear the task after that to ask them again."
    )


def _open(folder: RunFolder) -> tuple[list[str], int]:
    """Return the recorded batches that may be running, and the number of shards whose creation has no reply."""
    batch_ids: list[str] = []
    unanswered = 0
    for plan in read_rounds(folder):
        for _, standing in read_standings(folder, plan):
            batch_ids.extend(standing.spare)
            if standing.batch is not None and standing.ended is None and standing.staged is None:
                batch_ids.append(standing.batch.batch_id)
            unanswered += standing.intent is not None and standing.batch is None
    return batch_ids, unanswered


def _running(provider: Provider, batch_ids: list[str]) -> dict[str, BatchStatus]:
    found = provider.check(tuple(batch_ids)) if batch_ids else {}
    return {batch_id: status for batch_id, status in found.items() if status.state is BatchState.RUNNING}
