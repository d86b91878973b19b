import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from airflow_batch_llm.errors import Later, ProviderError, Refused, Unavailable
from airflow_batch_llm.providers.steps import (
    CALL_TIMEOUT,
    Calls,
    Delay,
    Each,
    Invoke,
    Patience,
    adrive,
    call_timeout,
    drive,
    no_longer_than,
    patiently,
)


def same(error: Exception) -> Exception:
    return error


class Script:
    """A client whose every call takes the next answer; an exception is raised."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.calls = 0

    def ask(self) -> object:
        self.calls += 1
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class AsyncScript(Script):
    async def ask(self) -> object:  # type: ignore[override]
        return Script.ask(self)


def both(flow: Callable[[], Calls[Any]], *answers: object) -> list[tuple[object, int]]:
    """Return the flow's result (or error) and the number of its calls, under each driver."""
    outcomes: list[tuple[object, int]] = []
    for client in (Script(*answers), AsyncScript(*answers)):
        try:
            if isinstance(client, AsyncScript):
                result: object = asyncio.run(adrive(flow(), client))
            else:
                result = drive(flow(), client)
        except ProviderError as error:
            result = error
        outcomes.append((result, client.calls))
    return outcomes


QUICK = Patience(attempts=3, first=0.0)


def test_a_call_that_fails_for_now_is_repeated_until_it_answers() -> None:
    flow = lambda: patiently(lambda client: client.ask(), same, QUICK)  # noqa: E731
    assert both(flow, Unavailable("busy"), Unavailable("busy"), "answer") == [("answer", 3), ("answer", 3)]


def test_patience_ends_and_the_last_error_is_raised() -> None:
    error = Unavailable("busy")
    flow = lambda: patiently(lambda client: client.ask(), same, QUICK)  # noqa: E731
    assert both(flow, error, error, error, "too late") == [(error, 3), (error, 3)]


def test_a_definite_no_is_not_repeated() -> None:
    error = Refused("no")
    flow = lambda: patiently(lambda client: client.ask(), same, QUICK)  # noqa: E731
    assert both(flow, error, "never asked") == [(error, 1), (error, 1)]


def test_a_mistake_of_our_own_is_raised_as_it_is() -> None:
    with pytest.raises(AttributeError):
        drive(patiently(lambda client: client.no_such_verb(), same, QUICK), Script())


@pytest.mark.parametrize(
    ("attempt", "error", "least", "most"),
    [
        (0, Unavailable(""), 0.5, 1.0),  # the first pause is short, and no two clients wait equally long
        (3, Unavailable(""), 4.0, 8.0),  # it doubles
        (8, Unavailable(""), 5.0, 10.0),  # up to the bound
        (0, Unavailable("", retry_after=7.0), 7.0, 7.0),  # the provider's own wish is honoured
        (0, Later("", retry_after=0.0), 0.0, 0.0),
    ],
)
def test_pauses_double_up_to_a_bound_and_honour_the_providers_wish(
    attempt: int, error: Exception, least: float, most: float
) -> None:
    pause = Patience(attempts=10, first=1.0, longest=10.0).pause(attempt, error)
    assert pause is not None
    assert least <= pause <= most


def test_a_wish_beyond_the_bound_ends_the_attempt_and_is_handed_on() -> None:
    error = Unavailable("come back tomorrow", retry_after=86_400.0)
    assert Patience(attempts=10, longest=60.0).pause(0, error) is None


def test_a_limit_ends_the_patience_of_each_flow_after_its_first_call() -> None:
    error = Unavailable("busy")
    client = Script(*[error] * 10)

    def both_sides() -> Calls[list[object]]:
        patience = Patience(attempts=5, first=0.01)
        return (yield Each([patiently(lambda client: client.ask(), same, patience) for _ in range(2)]))

    with no_longer_than(0.0):
        assert drive(both_sides(), client) == [error, error]
        assert call_timeout() < CALL_TIMEOUT

    assert client.calls == 2
    assert call_timeout() == CALL_TIMEOUT


def test_the_pause_itself_is_a_step_so_that_nothing_but_the_driver_sleeps() -> None:
    flow = patiently(lambda client: None, same, Patience(attempts=2))
    assert isinstance(next(flow), Invoke)
    assert flow.send(Unavailable("", retry_after=3.0)) == Delay(3.0)


def test_flows_side_by_side_keep_their_order_and_one_failure_ends_only_itself() -> None:
    def one(number: int) -> Calls[int]:
        if number == 1:
            raise Refused("one")
        yield Delay(0.0)
        return number

    def all_of_them() -> Calls[list[object]]:
        return (yield Each([one(number) for number in range(3)]))

    for replies in (drive(all_of_them(), None), asyncio.run(adrive(all_of_them(), None))):
        assert [replies[0], type(replies[1]), replies[2]] == [0, Refused, 2]


def test_no_more_flows_run_at_once_than_allowed() -> None:
    lock, running, peak = threading.Lock(), 0, 0

    def call(client: object) -> None:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        barrier.wait(5)
        with lock:
            running -= 1

    def flow() -> Calls[None]:
        reply = yield Invoke(call)
        if isinstance(reply, Exception):
            raise reply

    def all_of_them() -> Calls[list[object]]:
        return (yield Each([flow() for _ in range(6)], at_once=2))

    barrier = threading.Barrier(2)  # two at a time must meet; a third would leave one waiting alone
    assert drive(all_of_them(), None) == [None] * 6
    assert peak == 2
