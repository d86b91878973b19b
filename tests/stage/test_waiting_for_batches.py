"""The time that a run waits, the batches that it has at once, and its deadline."""

import pytest

from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.errors import BatchLLMError, DeadlinePassed, Unavailable
from airflow_batch_llm.providers.steps import no_longer_than
from airflow_batch_llm.stage.run import Pause
from tests.stage.world import Bench


def test_no_more_batches_run_at_once_than_are_allowed(bench: Bench) -> None:
    bench.world.make_tickets(60)
    bench.world.simulator.turn(batch_seconds=300)
    most = []

    def look(_: Pause) -> None:
        most.append(len(bench.world.ledger()["running"]))

    bench.complete(rows_per_batch=10, max_active_batches=2, on_pause=look)

    assert max(most) == 2
    assert len(bench.batches()) == 6
    assert bench.world.charged() == 60


def test_the_report_tells_how_long_batches_waited_and_ran(openai: Bench) -> None:
    openai.world.make_tickets(20)
    openai.world.simulator.turn(batch_seconds=600)

    alone = openai.complete("alone", rows_per_batch=20, target="alone").report.durations
    behind = openai.complete(
        "behind", rows_per_batch=10, max_active_batches=1, target="behind"
    ).report.durations

    assert alone.queued < 60
    assert behind.queued >= 600
    assert min(alone.running, behind.running) >= 600
    assert behind.landing > 0


@pytest.mark.parametrize("answer", ["failed", "429"])
def test_a_shard_that_finds_no_quota_waits_while_others_go_on(openai: Bench, answer: str) -> None:
    openai.world.make_tickets(40)
    openai.world.simulator.turn(batch_seconds=900, enqueued_tokens=1500, enqueued_answer=answer)

    done = openai.complete(rows_per_batch=10)

    assert done.report.final == {Outcome.SUCCEEDED: 40}
    assert openai.world.charged() == 40
    assert openai.world.failures() == {}


def test_a_busy_provider_is_waited_for(bench: Bench) -> None:
    bench.world.make_tickets(30)
    bench.fault(kind="status", endpoint="create", status=429, times=3, retry_after=30.0)

    done = bench.complete(rows_per_batch=10)

    assert done.report.final == {Outcome.SUCCEEDED: 30}
    assert bench.world.charged() == 30


def test_polls_that_fail_are_waited_out(bench: Bench) -> None:
    bench.world.make_tickets(10)
    bench.world.simulator.turn(batch_seconds=600)
    bench.advance()
    bench.fault(kind="status", endpoint="retrieve", status=503, retry_after=0.1, times=4)

    for _ in range(10):
        try:
            done = bench.complete()
        except BatchLLMError as error:  # as Airflow does: what may succeed later is tried again
            if not error.retryable:
                raise
        else:
            break

    assert done.report.final == {Outcome.SUCCEEDED: 10}
    assert bench.world.charged() == 10


def test_at_the_deadline_batches_are_cancelled_and_what_was_answered_lands(bench: Bench) -> None:
    bench.world.make_tickets(20)
    bench.world.simulator.turn(cancelled_share=0.5)
    bench.fault(kind="hold", times=None)

    done = bench.complete(timeout=600)

    assert bench.world.ledger()["running"] == []
    assert done.report.rounds == 1
    assert done.report.final[Outcome.SUCCEEDED] == 10
    assert len(bench.world.answers()) == 10
    assert {attempts for _, attempts, _ in bench.world.failures().values()} == {0}


def test_at_the_deadline_batches_are_left_alone_where_the_user_wants_that(bench: Bench) -> None:
    bench.world.make_tickets(20)
    bench.fault(kind="hold", nth=2)

    with pytest.raises(DeadlinePassed, match="nothing will be sent twice"):
        bench.complete(rows_per_batch=10, timeout=600, cancel_on_timeout=False)

    assert len(bench.world.ledger()["running"]) == 1
    assert len(bench.world.answers()) == 10
    assert len(bench.world.unfinished()) == 1


def test_a_clear_after_the_deadline_waits_on_for_the_same_batches(bench: Bench) -> None:
    bench.world.make_tickets(20)
    bench.fault(kind="hold", nth=2)
    with pytest.raises(DeadlinePassed):
        bench.complete(rows_per_batch=10, timeout=600, cancel_on_timeout=False)
    (held,) = bench.world.ledger()["running"]
    bench.world.simulator.finish(held)

    done = bench.complete(rows_per_batch=10, max_tries=1)

    assert done.report.why == {"answered": 20}
    assert bench.world.charged() == 20
    assert len(bench.world.answers()) == 20


def test_the_deadline_is_wall_clock_over_retries(openai: Bench) -> None:
    openai.world.make_tickets(20)
    openai.fault(kind="hold", times=None)
    for _ in range(3):
        openai.advance(timeout=3600)
        openai.world.sleep(1300)

    with pytest.raises(DeadlinePassed):
        openai.advance(timeout=3600, cancel_on_timeout=False)


def test_what_was_never_sent_by_the_deadline_fails_and_is_sent_by_the_next_run(openai: Bench) -> None:
    openai.world.make_tickets(20)
    openai.fault(kind="hold")

    done = openai.complete("first", rows_per_batch=10, max_active_batches=1, timeout=600)
    after = openai.complete("second")

    assert done.report.final == {Outcome.CANCELED: 20}
    assert after.report.final == {Outcome.SUCCEEDED: 20}
    assert openai.world.failures() == {}


def test_no_round_begins_without_time_for_it(openai: Bench) -> None:
    openai.world.make_tickets(20)
    openai.fault(kind="errored", every=2)

    done = openai.complete(timeout=1800, min_round_time=3600)

    assert done.report.rounds == 1
    assert len(openai.world.answers()) == 10


def test_a_provider_that_is_silent_does_not_hold_a_look_beyond_its_limit(bench: Bench) -> None:
    bench.world.make_tickets(2)
    bench.world.simulator.turn(batch_seconds=3600)
    paused = bench.advance()
    assert isinstance(paused, Pause)
    for endpoint in ("retrieve", "list"):
        bench.fault(kind="delay", endpoint=endpoint, seconds=30.0, times=None)
    provider = bench.world.provider()

    with no_longer_than(0.0), pytest.raises(Unavailable):
        provider.check(paused.watch.batch_ids)
    provider.close()
