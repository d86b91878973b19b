"""How far batches are, for people: by the last look at each, since one that has ended is not looked at again."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from airflow_batch_llm.core.counted import share, verb
from airflow_batch_llm.core.model import BatchState, BatchStatus


@dataclass(frozen=True, slots=True)
class Headway:
    """Counts over all batches that were ever looked at."""

    _seen: dict[str, BatchStatus] = field(default_factory=dict)

    @classmethod
    def of(cls, batch_ids: Iterable[str]) -> "Headway":
        """Before the first look: they run, as far as is known."""
        return cls(_seen={batch_id: BatchStatus(state=BatchState.RUNNING) for batch_id in batch_ids})

    def add(self, statuses: Mapping[str, BatchStatus]) -> None:
        """Another look, at some of them."""
        self._seen.update(statuses)

    @property
    def requests(self) -> int:
        """All requests of the batches whose provider tells."""
        return sum(status.total or 0 for status in self._seen.values())

    @property
    def finished(self) -> int:
        """Those of them that are no longer running."""
        return sum(_finished(status) for status in self._seen.values())

    def until(self, now: float, seconds: float) -> str:
        """With the time of the next look."""
        again = datetime.fromtimestamp(now, UTC) + timedelta(seconds=seconds)
        return f"{self}; looked at again in {seconds:,.0f} s, at {again:%H:%M:%S} UTC."

    def __str__(self) -> str:
        if not self._seen:
            return "No batch is running"
        ended = sum(status.state is not BatchState.RUNNING for status in self._seen.values())
        said = f"{share(ended, len(self._seen), 'batch')} {verb(len(self._seen), 'has', 'have')} ended"
        if not self.requests:
            return said
        done = share(self.finished, self.requests, "request")
        return f"{said}, {done} {verb(self.requests, 'is', 'are')} done"


def _finished(status: BatchStatus) -> int:
    return (status.total if status.state is not BatchState.RUNNING else status.finished) or 0
