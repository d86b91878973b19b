"""The throttle of requests in real time: it begins low, grows with each answer, and halves once for one refusal."""

import heapq
import math
from collections import Counter, deque

import pytest

from airflow_batch_llm.core.model import RateLimit
from airflow_batch_llm.core.realtime import FIRST, Throttle


def test_it_begins_low_grows_with_each_answer_and_never_above_the_limit() -> None:
    throttle = Throttle(most=6)
    assert throttle.room(0, now=0) == FIRST
    for _ in range(10):
        throttle.answered()
    assert (throttle.room(0, now=0), throttle.room(6, now=0), throttle.room(9, now=0)) == (6, 0, 0)
    assert Throttle(most=1).room(0, now=0) == 1


def test_a_burst_that_is_refused_together_halves_the_limit_once() -> None:
    throttle = Throttle(most=100)
    for _ in range(28):
        throttle.answered()
    for moment in (10.0, 10.1, 10.2):
        throttle.refused(sent_at=9.0, now=moment, retry_after=2.0)
    assert throttle.limit == 16
    assert (throttle.room(0, now=12.0), throttle.room(0, now=12.3)) == (0, 16)
    throttle.refused(sent_at=12.3, now=12.5, retry_after=2.0)
    assert throttle.limit == 8


def test_a_refusal_without_a_time_rests_longer_each_time_until_an_answer_comes() -> None:
    throttle = Throttle(most=100)
    rests, now = [], 0.0
    for _ in range(8):
        throttle.refused(sent_at=now, now=now, retry_after=None)
        rests.append(throttle.rest_until - now)
        now = throttle.rest_until
    assert rests == [1, 2, 4, 8, 16, 32, 60, 60]
    assert throttle.limit == 1
    throttle.answered()
    throttle.refused(sent_at=now, now=now, retry_after=None)
    assert throttle.rest_until - now == 1


@pytest.mark.parametrize("burst", [0.0, 300.0])
@pytest.mark.parametrize("latency", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("retry_after", [None, 0.2, 1.0])
def test_it_uses_the_limit_of_a_vendor_and_no_request_is_refused_more_than_three_times(
    burst: float, latency: float, retry_after: float | None
) -> None:
    """300 requests a minute for five minutes, with an allowance of the minute before or none."""
    vendor = _Vendor(level=burst, latency=latency, retry_after=retry_after)
    answers, refusals = vendor.ask(Throttle(most=100), seconds=300.0)
    assert answers >= 0.9 * (burst + 5.0 * 300.0)
    assert max(refusals.values(), default=0) <= 3
    assert refusals.total() <= 0.2 * answers


@pytest.mark.parametrize("burst", [0.0, 100.0, 300.0])
@pytest.mark.parametrize(
    ("latency", "states_late"), [(0.2, False), (1.0, False), (5.0, False), (0.2, True), (1.0, True)]
)
@pytest.mark.parametrize("kind", ["requests", "tokens"])
def test_where_answers_state_what_remains_hardly_a_request_is_refused(
    burst: float, latency: float, states_late: bool, kind: str
) -> None:
    """The limit is used all the same. The vendor states it when it admits a request, or late when it answers.

    How many tokens a request takes is not known before.
    """
    vendor = _Vendor(level=burst, latency=latency, retry_after=1.0, states=kind, states_late=states_late)
    answers, refusals = vendor.ask(Throttle(most=200), seconds=300.0)
    assert answers >= 0.9 * (burst + 5.0 * (300.0 - latency))
    assert refusals.total() <= FIRST  # those that are sent before anything is stated


def test_the_first_answers_do_not_show_what_a_vendor_allows() -> None:
    throttle = Throttle(most=100)
    throttle.sent(0.0)
    throttle.answered()
    throttle.refused(sent_at=1.0, now=2.0, retry_after=None)
    assert throttle.pace == math.inf
    for _ in range(20):
        throttle.answered()
    throttle.refused(sent_at=9.0, now=10.0, retry_after=None)
    assert throttle.pace == pytest.approx(0.9 * 21 / 10)


@pytest.mark.parametrize("states", [None, "requests", "tokens"])
def test_an_overload_now_and_then_says_nothing_of_the_pace(states: str | None) -> None:
    """Every fiftieth request meets one, in a minute that begins with nothing in store."""
    vendor = _Vendor(level=0.0, latency=1.0, retry_after=1.0, states=states, states_late=True, overloads=50)
    answers, refusals = vendor.ask(Throttle(most=100), seconds=60.0)
    assert answers >= 0.9 * 5.0 * 59.0
    assert max(refusals.values()) == 1


def test_a_limit_that_is_used_up_for_hours_is_waited_for_and_not_asked() -> None:
    throttle = Throttle(most=10)
    throttle.sent(0.0)
    throttle.answered()
    throttle.stated([RateLimit("requests", 200, 0, 86_400.0)], sent_at=0.0)
    assert throttle.room(0, now=10.0) == 0
    assert throttle.pause(10.0) == pytest.approx(432.0 - 10.0, abs=5.0)
    throttle.stated([RateLimit("requests", 200, 9, 86_400.0)], sent_at=-5.0)  # an older statement
    assert throttle.room(0, now=10.0) == 0


def test_a_limit_of_nothing_is_no_limit() -> None:
    throttle = Throttle(most=10)
    throttle.sent(0.0)
    throttle.answered()
    throttle.stated([RateLimit("tokens", 0, 0, 0.0)], sent_at=0.0)
    assert (throttle.room(0, now=1.0), throttle.pause(1.0)) == (FIRST + 1, 0.0)


class _Vendor:
    """A bucket that five requests a second leave, and a worker that asks as the throttle allows."""

    def __init__(
        self,
        *,
        level: float,
        latency: float,
        retry_after: float | None,
        states: str | None = None,
        states_late: bool = False,
        overloads: int | None = None,
    ) -> None:
        self.level, self.latency, self.retry_after = level, latency, retry_after
        self.states, self.states_late, self.overloads = states, states_late, overloads

    def _stated(self, level: float) -> list[RateLimit]:
        if self.states is None:
            return []
        each = 1 if self.states == "requests" else 700
        return [RateLimit(self.states, 300 * each, int(level * each), (300.0 - level) / 5.0)]

    def ask(self, throttle: Throttle, seconds: float) -> tuple[int, Counter[int]]:
        now, made, sent, answers = 0.0, 0, 0, 0
        refusals: Counter[int] = Counter()
        again: deque[int] = deque()
        flying: list[tuple[float, int, float, float, str]] = []
        while now < seconds:
            now += 0.05
            self.level = min(300.0, self.level + 0.05 * 5.0)
            while flying and flying[0][0] <= now:
                _, request, sent_at, level, fate = heapq.heappop(flying)
                if fate == "answered":
                    answers += 1
                    throttle.answered()
                    throttle.stated(self._stated(self.level if self.states_late else level), sent_at)
                else:
                    refusals[request] += 1
                    is_overload = fate == "overload"
                    retry_after = None if is_overload else self.retry_after
                    throttle.refused(sent_at, now, retry_after, is_overload=is_overload)
                    again.appendleft(request)
            for _ in range(throttle.room(len(flying), now)):
                request = again.popleft() if again else made
                made += request == made
                sent += 1
                fate = "answered" if self.level >= 1 else "refused"
                if self.overloads and sent % self.overloads == 0:
                    fate = "overload"
                self.level -= fate == "answered"
                throttle.sent(now)
                back = now + (self.latency if fate == "answered" else 0.05)
                heapq.heappush(flying, (back, request, now, self.level, fate))
        return answers, refusals
