"""The throttle of requests in real time: it begins low, grows with each answer, and halves once for one refusal."""

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
