"""Decide what a worker may do with a shard that it asks in real time, and count what a crash can cost.

A turn is pure: it takes the time as an argument and returns records for the journal. It keeps one rule: each request that
was sent has a kept answer, or a record counts it, or it is among the `bound` requests that the lease names. So an attempt
that takes a lease over counts no more than that, and no request is paid twice without a count.
"""

from dataclasses import dataclass, replace

from airflow_batch_llm.core.journal import Entry, RecordKind, Standing

#: A worker may ask for this long after its last word. It renews the lease after a third of it.
LEASE_SECONDS = 30.0

#: A lost answer is counted in the journal after this long, together with others.
_COUNT_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One worker's turn at one shard, from its lease to its last record."""

    worker: str
    bound: int  # the requests in flight, or with answers that are not kept, at most
    last: int = 0  # the number of the last record of the journal
    records: int = 0  # that this worker has made
    lease_until: float = 0.0
    renew_at: float = 0.0
    open: int = 0  # requests that were sent and have no kept answer
    uncounted: int = 0  # of them, those whose answer was lost and that no record counts yet

    def room(self, now: float) -> int:
        """Return how many requests may be sent. None after the lease: somebody else may ask by then."""
        return self.bound - self.open if now < self.lease_until else 0

    def sent(self) -> "Turn":
        """Take note of a request that is sent."""
        return replace(self, open=self.open + 1)

    def kept(self, answers: int) -> "Turn":
        """Take note of answers that are kept."""
        return replace(self, open=self.open - answers)

    def refused(self) -> "Turn":
        """Take note of a request that was not answered, and so is not paid."""
        return replace(self, open=self.open - 1)

    def lost(self, now: float) -> "Turn":
        """Take note of a request whose answer was lost. It is asked again once a record has counted it."""
        renew_at = min(self.renew_at, now + _COUNT_SECONDS)
        return replace(self, uncounted=self.uncounted + 1, renew_at=renew_at)

    def lease(self, now: float, taken_over: int = 0) -> Entry:
        """Return the record that takes or renews the lease. `taken_over`: the count for a worker that died."""
        return Entry(
            kind=RecordKind.ASKING,
            nonce=f"{self.worker}.{self.records + 1}",
            at=now,
            intent=self.worker,
            expires_at=now + LEASE_SECONDS,
            at_risk=self.bound,
            twice=self.uncounted + taken_over,
        )

    def last_word(self, entry: Entry) -> Entry:
        """Return the record that ends the turn, completed with what this worker knows."""
        nonce = f"{self.worker}.{self.records + 1}"
        return replace(entry, nonce=nonce, intent=self.worker, twice=self.uncounted)

    def written(self, entry: Entry) -> "Turn":
        """Return the turn after this record. Answers that were lost since it was made are not in it."""
        counted = min(entry.twice, self.uncounted)
        return replace(
            self,
            last=self.last + 1,
            records=self.records + 1,
            lease_until=entry.expires_at,
            renew_at=entry.at + LEASE_SECONDS / 3,
            open=self.open - counted,
            uncounted=self.uncounted - counted,
        )


def taking(turn: Turn, standing: Standing, missing: int, now: float) -> tuple[Turn, Entry]:
    """Return the turn that follows this journal, and the record that begins it.

    `missing` requests have no kept answer. A worker that did not give its lease back is dead or frozen: each of them may
    have been paid by it, up to its bound.
    """
    at_risk = 0 if standing.asking is None else standing.asking.at_risk
    begun = replace(turn, last=standing.last)
    return begun, begun.lease(now, taken_over=min(missing, at_risk))
