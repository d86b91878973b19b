"""Decide how many requests a worker asks at once in real time: begin low, grow with each answer, halve on a refusal.

Other programs share the vendor's limits, so no number is right from the start. The throttle is pure: it takes the time
as an argument, and counts the requests that the caller has in flight.
"""

from dataclasses import dataclass, field

#: The requests in flight at the beginning.
FIRST = 4

#: Seconds to rest after a refusal that names no time. They double with each refusal in a row.
_FIRST_REST, _LONGEST_REST = 1.0, 60.0


@dataclass(slots=True, kw_only=True)
class Throttle:
    """The limit of the requests in flight, shared by all that one worker asks of one model."""

    most: int
    """The limit that the user sets."""
    limit: int = field(default=FIRST, init=False)
    """The requests that may be in flight now."""
    rest_until: float = field(default=0.0, init=False)
    """Nothing is asked before this time."""
    _halved_at: float = field(default=0.0, init=False)
    _refusals: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.limit = min(FIRST, self.most)

    def room(self, in_flight: int, now: float) -> int:
        """Return how many more requests may be sent now."""
        return 0 if now < self.rest_until else max(0, self.limit - in_flight)

    def answered(self) -> None:
        """Take note of an answer."""
        self._refusals = 0
        self.limit = min(self.most, self.limit + 1)

    def refused(self, sent_at: float, now: float, retry_after: float | None) -> None:
        """Take note of a refusal for want of room: a limit of the vendor's, or an overload.

        The requests that were in flight together with a refused one are refused for the same reason, so all of them
        halve the limit once.
        """
        if sent_at >= self._halved_at:
            self.limit = max(1, self.limit // 2)
            self._halved_at = now
            self._refusals += 1
        rest = retry_after
        if rest is None:
            rest = min(_LONGEST_REST, _FIRST_REST * 2 ** max(0, self._refusals - 1))
        self.rest_until = max(self.rest_until, now + rest)
