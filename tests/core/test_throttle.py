"""The throttle of requests in real time: it begins low, grows with each answer, and halves once for one refusal."""

import heapq
from collections import Counter, deque

import pytest

from airflow_batch_llm.core.throttle import FIRST, Throttle


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


class _Vendor:
    """A bucket that five requests a second leave, and a worker that asks as the throttle allows."""

    def __init__(self, *, level: float, latency: float, retry_after: float | None) -> None:
        self.level, self.latency, self.retry_after = level, latency, retry_after

    def ask(self, throttle: Throttle, seconds: float) -> tuple[int, Counter[int]]:
        now, made, answers = 0.0, 0, 0
        refusals: Counter[int] = Counter()
        again: deque[int] = deque()
        flying: list[tuple[float, int, float, bool]] = []
        while now < seconds:
            now += 0.05
            self.level = min(300.0, self.level + 0.05 * 5.0)
            while flying and flying[0][0] <= now:
                _, request, sent_at, is_answered = heapq.heappop(flying)
                if is_answered:
                    answers += 1
                    throttle.answered()
                else:
                    refusals[request] += 1
                    throttle.refused(sent_at, now, self.retry_after)
                    again.appendleft(request)
            for _ in range(throttle.room(len(flying), now)):
                request = again.popleft() if again else made
                made += request == made
                is_answered = self.level >= 1
                self.level -= is_answered
                throttle.sent(now)
                back = now + (self.latency if is_answered else 0.05)
                heapq.heappush(flying, (back, request, now, is_answered))
        return answers, refusals
