"""Ask in real time: what a worker may do with a shard, how many requests it asks at once, and how fast.

A turn is pure: it takes the time as an argument and returns records for the journal. It keeps one rule: each request that
was sent has a kept answer, or a record counts it, or it is among the `bound` requests that the lease names. So an attempt
that takes a lease over counts no more than that, and no request is paid twice without a count.

Three limits of the throttle act together. The requests in flight begin low, grow with each answer and halve on a refusal.
The first refusal by a limit also sets a pace in requests a second: a little less than what was answered, growing slowly
with each answer. Where answers state what remains of the vendor's limits, no more is sent than that allows. Other programs
share the vendor's limits, so no number is right from the start. The throttle counts the requests that the caller has in
flight.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from airflow_batch_llm.core.journal import Entry, RecordKind, Standing
from airflow_batch_llm.core.model import RateLimit

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
        """Return how many requests may be sent. Returns 0 after the lease, when another worker may send them."""
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


#: The requests in flight at the beginning.
FIRST = 4

#: Seconds to rest after a refusal, at least. Where it names no time they double with each refusal in a row.
_FIRST_REST, _LONGEST_REST = 1.0, 60.0

#: A refusal sets the pace to this share of the rate of answers, if there were this many answers, and else of the pace.
_STEP_BACK, _ENOUGH = 0.9, 10

#: Each answer raises the pace by this share. The share doubles with this many answers without a refusal, up to the last one.
_GROWTH, _DOUBLED_BY, _MOST_GROWTH = 0.005, 50, 0.1

#: A pace that was not used is made up for within this many seconds.
_MADE_UP = 1.0


#: Limits are refilled within this many seconds, or slower where their time of reset says so.
_REFILLED = 60.0

#: As much of a limit is left unused as comes back within this many seconds.
_SPARED = 3.0

#: The weight of a request's share of a limit falls by this factor with each later request.
_FORGOTTEN = 0.9


@dataclass(slots=True)
class _Allowance:
    """Holds the rest of one of the vendor's limits, by its last statement."""

    stated: RateLimit
    at: float
    """The time at which the request was sent whose answer has the statement."""
    cost: float = 0.0
    """The amount that one request takes, as far as it is known. 0: not known yet."""
    _taken: float = 0.0
    _requests: float = 0.0

    def __post_init__(self) -> None:
        if self.stated.kind == "requests":
            self.cost = 1.0

    @property
    def _refill(self) -> float:
        """Return what comes back in a second."""
        limit, missing = self.stated.limit, self.stated.limit - self.stated.remaining
        soonest = limit / _REFILLED
        return min(soonest, missing / self.stated.full_in) if self.stated.full_in else soonest

    def _left(self, now: float) -> float:
        return min(self.stated.limit, self.stated.remaining + self._refill * (now - self.at))

    def _free(self, now: float) -> float:
        """Return what may be used of it. Requests overtake each other on their way, so a little is left."""
        return self._left(now) - _SPARED * self._refill

    def room(self, now: float, sent: int) -> float:
        """Return how many requests it allows, given the number that was sent since the statement."""
        return math.inf if not self.cost else self._free(now) // self.cost - sent

    def pause(self, now: float, sent: int) -> float:
        """Return the seconds until it allows one more."""
        lack = (sent + 1) * self.cost - self._free(now)
        if not self.cost or lack <= 0:
            return 0.0
        return lack / self._refill if self._refill else math.inf

    def state(self, stated: RateLimit, at: float, sent: int) -> None:
        """Take note of a later statement, given the number of requests that were sent before it."""
        taken = self._left(at) - stated.remaining
        self.stated, self.at = stated, at
        if stated.kind == "requests" or stated.remaining >= stated.limit:
            return
        kept = _FORGOTTEN**sent
        self._taken = kept * self._taken + max(0.0, taken)
        self._requests = kept * self._requests + sent
        if self._requests:
            self.cost = self._taken / self._requests


@dataclass(slots=True, kw_only=True)
class Throttle:
    """The limit of the requests in flight, shared by all that one worker asks of one model."""

    most: int
    """The limit that the user sets."""
    limit: int = field(default=FIRST, init=False)
    """The requests that may be in flight now."""
    rest_until: float = field(default=0.0, init=False)
    """Nothing is asked before this time."""
    pace: float = field(default=math.inf, init=False)
    """The requests that may be sent in a second."""
    _due: float = field(default=0.0, init=False)  # when the next request may be sent
    _since: float | None = field(default=None, init=False)
    """The begin of the time in which answers are counted."""
    _answers: int = field(default=0, init=False)
    _halved_at: float = field(default=0.0, init=False)
    _refusals: int = field(default=0, init=False)
    _allowances: dict[str, _Allowance] = field(default_factory=dict, init=False)
    _stated_at: float = field(default=-math.inf, init=False)
    _sent_at: deque[float] = field(init=False)  # the times of the requests since the last statement

    def __post_init__(self) -> None:
        self.limit = min(FIRST, self.most)
        self._sent_at = deque(maxlen=2 * self.most)

    def room(self, in_flight: int, now: float) -> int:
        """Return how many more requests may be sent now."""
        if now < self.rest_until or now < self._due:
            return 0
        sent = len(self._sent_at)
        allowed = min((each.room(now, sent) for each in self._allowances.values()), default=math.inf)
        room = int(max(0, min(self.limit - in_flight, allowed)))
        if self.pace == math.inf:
            return room
        return min(room, 1 + int(min(now - self._due, _MADE_UP) * self.pace))

    def pause(self, now: float) -> float:
        """Return the seconds until the vendor's limits allow a request."""
        sent = len(self._sent_at)
        pauses = [each.pause(now, sent) for each in self._allowances.values()]
        return max(0.0, self.rest_until - now, *pauses)

    def sent(self, now: float) -> None:
        """Take note of a request that is sent."""
        if self._since is None:
            self._since = now
        self._due = max(self._due, now - _MADE_UP) + 1 / self.pace
        self._sent_at.append(now)

    def stated(self, limits: Iterable[RateLimit], sent_at: float) -> None:
        """Take note of an answer's statement of the vendor's limits. Its request was sent at `sent_at`."""
        limits = [limit for limit in limits if limit.limit > 0]  # some servers write 0 for no limit
        if not limits or sent_at < self._stated_at:
            return
        self._stated_at, before = sent_at, len(self._sent_at)
        while self._sent_at and self._sent_at[0] <= sent_at:
            self._sent_at.popleft()
        for limit in limits:
            known = self._allowances.get(limit.kind)
            if known is None:
                self._allowances[limit.kind] = _Allowance(limit, sent_at)
            else:
                known.state(limit, sent_at, before - len(self._sent_at))

    def answered(self) -> None:
        """Take note of an answer."""
        self._refusals = 0
        self._answers += 1
        self.limit = min(self.most, self.limit + 1)
        self.pace *= 1 + min(_MOST_GROWTH, _GROWTH * 2 ** min(9.0, self._answers / _DOUBLED_BY))

    def refused(
        self, sent_at: float, now: float, retry_after: float | None, *, is_overload: bool = False
    ) -> None:
        """Take note of a refusal for want of room: a limit of the vendor's, or an overload, which says nothing of a pace.

        The requests that were in flight together with a refused one are refused for the same reason, so all of them
        step back once.
        """
        if sent_at >= self._halved_at:
            self.limit = max(1, self.limit // 2)
            self._halved_at = now
            self._refusals += 1
            if not is_overload:
                self._step_back(now)
        # The vendor names the time for one request, and as many as the limit come.
        rest = max(_FIRST_REST, retry_after or 0.0)
        if retry_after is None:
            rest = min(_LONGEST_REST, _FIRST_REST * 2 ** max(0, self._refusals - 1))
        self.rest_until = max(self.rest_until, now + rest)

    def _step_back(self, now: float) -> None:
        """Set the pace by the answers since it was last set. A few answers do not show the allowed pace."""
        if self._answers < _ENOUGH or self._since is None or now <= self._since:
            self.pace *= _STEP_BACK
            return
        self.pace = _STEP_BACK * min(self.pace, self._answers / (now - self._since))
        self._since, self._answers = now, 0
