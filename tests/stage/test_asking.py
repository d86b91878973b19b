"""Asking in real time: every row once, at the full price, and what a crash can cost is bounded and reported."""

import random
import signal
import time
from collections.abc import Iterator

import pytest

from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.errors import Refused
from airflow_batch_llm.stage.run import Pause
from airflow_batch_llm.stage.send.asking import SEGMENT_ANSWERS
from tests.stage.processes import Job
from tests.stage.world import Bench

ENDPOINTS = {"anthropic": "messages", "openai": "chat", "vertex": "generate"}

#: More rows than a worker asks between two segments.
ROWS = 400
CONCURRENCY = 20


def endpoint(bench: Bench) -> str:
    return ENDPOINTS[bench.world.provider_name]


def paid(bench: Bench) -> int:
    """The requests in real time that the vendor charges."""
    return int(bench.world.ledger()["ways"]["now"]["rows"])


def test_each_row_is_asked_once_at_the_full_price_and_no_batch_is_made(bench: Bench) -> None:
    bench.world.make_tickets(60, distinct=50)
    done = bench.complete(way="now")
    report = done.report
    assert (report.final, report.requests, report.batches) == ({Outcome.SUCCEEDED: 60}, 50, 0)
    assert (paid(bench), list(bench.batches()), report.maybe_twice) == (50, [], 0)
    assert report.spent.cost == report.spent.list_cost > 0
    assert len(bench.world.answers()) == 60
    assert (
        bench.complete("dag/task/next", way="now").report.rows == 0
    )  # an answer is an answer, however it was asked
    assert bench.complete("dag/task/after").report.rows == 0


def test_a_refusal_for_want_of_room_costs_nothing_and_the_row_is_asked_again(bench: Bench) -> None:
    bench.world.make_tickets(40)
    bench.fault(kind="status", endpoint=endpoint(bench), status=429, nth=5, times=3, retry_after=0)
    report = bench.complete(way="now").report
    assert (report.final, report.maybe_twice, paid(bench)) == ({Outcome.SUCCEEDED: 40}, 0, 40)


def test_an_answer_that_is_lost_on_its_way_is_asked_again_and_counted(bench: Bench) -> None:
    bench.world.make_tickets(40)
    bench.fault(kind="drop", endpoint=endpoint(bench), effect="after", nth=7, times=2)
    report = bench.complete(way="now").report
    assert (report.final, report.maybe_twice) == ({Outcome.SUCCEEDED: 40}, 2)


def test_a_row_that_the_vendor_refuses_is_its_own_failure(bench: Bench) -> None:
    bench.world.make_tickets(10)
    bench.fault(kind="status", endpoint=endpoint(bench), status=400, nth=3, times=1)
    report = bench.complete(way="now").report
    assert report.final == {Outcome.SUCCEEDED: 9, Outcome.ERRORED: 1}


def test_what_refuses_every_row_ends_the_attempt_and_keeps_the_answers(bench: Bench) -> None:
    bench.world.make_tickets(60)
    bench.fault(kind="status", endpoint=endpoint(bench), status=403, nth=30, times=None)
    with pytest.raises(Refused):
        bench.complete(way="now")
    bought = paid(bench)
    assert 0 < bought < 60
    bench.world.simulator.clear_faults()
    report = bench.complete(way="now").report
    assert (report.final, report.maybe_twice, paid(bench)) == ({Outcome.SUCCEEDED: 60}, 0, 60)


def test_a_limit_of_spending_ends_the_attempt_and_says_what_to_do(bench: Bench) -> None:
    """It comes as a 429 or a 400, like a lack of room or a bad row, but neither waiting nor the next row heals it."""
    caps = {
        "anthropic": {"status": 429, "code": "enforced_spend_limit_reached"},
        "openai": {"status": 429, "code": "insufficient_quota"},
        "vertex": {"status": 403},
    }
    bench.world.make_tickets(60)
    bench.fault(
        kind="status", endpoint=endpoint(bench), nth=30, times=None, **caps[bench.world.provider_name]
    )
    with pytest.raises(Refused, match=r"clear the task|Grant"):
        bench.complete(way="now")
    assert 0 < paid(bench) < 60
    bench.world.simulator.clear_faults()
    report = bench.complete(way="now").report
    assert (report.final, report.maybe_twice, paid(bench)) == ({Outcome.SUCCEEDED: 60}, 0, 60)


@pytest.mark.parametrize("name", ["anthropic", "openai"])
def test_what_the_answers_say_of_the_limits_is_obeyed(name: str, request: pytest.FixtureRequest) -> None:
    """Forty requests are allowed at once, and ten more in each second."""
    bench: Bench = request.getfixturevalue(name)
    bench.world.make_tickets(80)
    bench.world.simulator.turn(requests_per_minute=40)
    bench.complete("dag/task/first", way="now", max_rows=1)
    bench.world.simulator.turn(requests_per_minute=600)
    report = bench.complete(way="now").report
    assert report.final == {Outcome.SUCCEEDED: 79}
    assert bench.world.ledger()["answers"][ENDPOINTS[name]].get("429", 0) == 0


def test_a_second_worker_waits_while_the_first_one_asks(anthropic: Bench) -> None:
    bench = anthropic
    bench.world.make_tickets(ROWS)
    bench.fault(kind="delay", endpoint="messages", seconds=0.2, times=None)
    first = Job(world=bench.world, changes={"way": "now", "max_concurrency": CONCURRENCY}).started()
    deadline = time.monotonic() + 60
    while paid(bench) < CONCURRENCY:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    waiting = bench.advance(way="now")
    assert isinstance(waiting, Pause)
    assert "another worker asks" in waiting.waiting
    ended = first.wait()
    assert not ended.error, ended.error
    assert paid(bench) == ROWS


def test_a_killed_worker_loses_no_row_and_pays_no_more_twice_than_the_report_says(
    bench: Bench,
) -> None:
    """The worker dies at a random instant while it asks, twice."""
    bench.world.make_tickets(ROWS)
    changes = {"way": "now", "max_concurrency": CONCURRENCY}
    draw = random.Random(bench.world.provider_name)
    for until in sorted(draw.randrange(ROWS) for _ in range(2)):
        started = Job(world=bench.world, changes=changes).started()
        for _ in _moments(60):
            if paid(bench) >= until or started.process.exitcode is not None:
                break
        started.process.kill()
        started.process.join()
        assert started.process.exitcode in (0, -signal.SIGKILL)
    report = bench.complete(**changes).report
    assert (report.final, len(bench.world.answers())) == ({Outcome.SUCCEEDED: ROWS}, ROWS)
    twice = paid(bench) - ROWS
    assert 0 <= twice <= report.maybe_twice <= 2 * (CONCURRENCY + SEGMENT_ANSWERS)


def _moments(seconds: float) -> Iterator[None]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.02)
    raise AssertionError(f"it did not come so far within {seconds} s")


def test_what_is_not_asked_at_the_deadline_is_given_up_and_what_was_answered_lands(anthropic: Bench) -> None:
    bench = anthropic
    bench.world.make_tickets(ROWS)
    bench.fault(kind="delay", endpoint="messages", seconds=0.5, times=None)
    report = bench.complete(way="now", max_concurrency=8, timeout=3, min_success_ratio=0).report
    answered = report.final[Outcome.SUCCEEDED]
    assert 0 < answered < ROWS
    assert (report.final[Outcome.CANCELED], paid(bench)) == (ROWS - answered, answered)
