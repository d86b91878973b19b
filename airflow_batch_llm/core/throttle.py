"""Decide how many requests a worker asks at once in real time, and how fast: grow with each answer, step back on a refusal.

Two limits act together. The requests in flight begin low, grow with each answer and halve on a refusal. The first refusal
also sets a pace in requests a second: a little less than what was answered, growing slowly with each answer.

Other programs share the vendor's limits, so no number is right from the start. The throttle is pure: it takes the time
as an argument, and counts the requests that the caller has in flight.
"""

import math
from dataclasses import dataclass, field

#: The requests in flight at the beginning.
FIRST = 4

#: Seconds to rest after a refusal, at least. Where it names no time they double with each refusal in a row.
_FIRST_REST, _LONGEST_REST = 1.0, 60.0

#: A refusal sets the pace to this share of what was answered.
_STEP_BACK = 0.9

#: Each answer raises the pace by this share. The share doubles with so many answers without a refusal, up to the last one.
_GROWTH, _DOUBLED_BY, _MOST_GROWTH = 0.005, 50, 0.1

#: A pace that was not used is made up for within this many seconds.
_MADE_UP = 1.0


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
    _since: float | None = field(
        default=None, init=False
    )  # the begin of the time in which answers are counted
    _answers: int = field(default=0, init=False)
    _halved_at: float = field(default=0.0, init=False)
    _refusals: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.limit = min(FIRST, self.most)

    def room(self, in_flight: int, now: float) -> int:
        """Return how many more requests may be sent now."""
        if now < self.rest_until or now < self._due:
            return 0
        room = max(0, self.limit - in_flight)
        if self.pace == math.inf:
            return room
        return min(room, 1 + int(min(now - self._due, _MADE_UP) * self.pace))

    def sent(self, now: float) -> None:
        """Take note of a request that is sent."""
        if self._since is None:
            self._since = now
        self._due = max(self._due, now - _MADE_UP) + 1 / self.pace

    def answered(self) -> None:
        """Take note of an answer."""
        self._refusals = 0
        self._answers += 1
        self.limit = min(self.most, self.limit + 1)
        self.pace *= 1 + min(_MOST_GROWTH, _GROWTH * 2 ** min(9.0, self._answers / _DOUBLED_BY))

    def refused(self, sent_at: float, now: float, retry_after: float | None) -> None:
        """Take note of a refusal for want of room: a limit of the vendor's, or an overload.

        The requests that were in flight together with a refused one are refused for the same reason, so all of them
        step back once.
        """
        if sent_at >= self._halved_at:
            self.limit = max(1, self.limit // 2)
            self._halved_at = now
            self._refusals += 1
            self._step_back(now)
        # The vendor names the time for one request, and as many as the limit come.
        rest = max(_FIRST_REST, retry_after or 0.0)
        if retry_after is None:
            rest = min(_LONGEST_REST, _FIRST_REST * 2 ** max(0, self._refusals - 1))
        self.rest_until = max(self.rest_until, now + rest)

    def _step_back(self, now: float) -> None:
        """Set the pace by what was answered since the last refusal."""
        if self._answers and self._since is not None and now > self._since:
            self.pace = _STEP_BACK * min(self.pace, self._answers / (now - self._since))
        self._since, self._answers = now, 0
