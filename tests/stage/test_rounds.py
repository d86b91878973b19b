"""Rows without a good answer: which are asked again, which are not, and what is left in the end."""

import pytest

from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.errors import QualityGateFailed
from airflow_batch_llm.stage.run import Pause
from tests.stage.world import Bench


def test_errored_rows_and_no_others_are_asked_again(bench: Bench) -> None:
    bench.world.make_tickets(100)
    bench.fault(kind="errored", every=10)

    done = bench.complete()

    assert done.report.attempts == {1: 100, 2: 10}
    assert done.report.final == {Outcome.SUCCEEDED: 100}
    assert bench.world.charged() == 100
    assert bench.world.failures() == {}


def test_what_an_expired_batch_has_answered_is_kept_and_the_rest_is_asked_again(bench: Bench) -> None:
    bench.world.make_tickets(100)
    bench.fault(kind="expire", share=0.5)

    done = bench.complete()

    assert done.report.attempts == {1: 100, 2: 50}
    assert bench.world.charged() == 100
    assert len(bench.world.answers()) == 100


def test_rows_that_an_expired_batch_did_not_come_to_are_not_to_blame(bench: Bench) -> None:
    bench.world.make_tickets(20)
    bench.fault(kind="expire", share=0.5)

    done = bench.complete(max_attempts=1)

    assert done.report.final == {Outcome.SUCCEEDED: 10, Outcome.EXPIRED: 10}
    assert bench.world.failures() == dict.fromkeys(range(10, 20), ("expired", 0, False))
    assert bench.complete("dag/task/next").report.attempts == {1: 10}
    assert bench.world.charged() == 20


def test_what_a_failed_job_has_answered_is_kept_and_the_rest_is_asked_again(vertex: Bench) -> None:
    vertex.world.make_tickets(20)
    vertex.fault(kind="fail", share=0.5)
    vertex.fault(kind="invalid", rows=[3])

    done = vertex.complete()

    assert done.report.attempts == {1: 20, 2: 11}
    assert done.report.final == {Outcome.SUCCEEDED: 20}
    assert done.report.replaced == {Outcome.INVALID: 1, Outcome.MISSING: 10}
    assert len(vertex.world.answers()) == 20
    assert vertex.world.charged() == 21


def test_rows_that_a_failed_job_did_not_come_to_are_not_to_blame(vertex: Bench) -> None:
    vertex.world.make_tickets(20)
    vertex.fault(kind="fail", share=0.5)

    done = vertex.complete(max_attempts=1)

    assert done.report.final == {Outcome.SUCCEEDED: 10, Outcome.MISSING: 10}
    assert vertex.world.failures() == dict.fromkeys(range(10, 20), ("missing", 0, False))
    assert vertex.complete("dag/task/next").report.attempts == {1: 10}
    assert vertex.world.charged() == 20


def test_rows_of_a_batch_that_somebody_cancels_are_left_to_the_next_run(bench: Bench) -> None:
    bench.world.make_tickets(20)
    bench.world.simulator.turn(batch_seconds=3600, cancelled_share=0.5)
    waiting = bench.advance()
    assert isinstance(waiting, Pause)
    bench.world.sleep(600)
    bench.world.provider().cancel(*waiting.watch.batch_ids)
    bench.world.sleep(900)
    bench.world.simulator.turn(batch_seconds=0)

    done = bench.complete()

    assert done.report.final == {Outcome.SUCCEEDED: 10, Outcome.CANCELED: 10}
    assert done.report.attempts == {1: 20}
    assert bench.world.failures() == dict.fromkeys(range(10, 20), ("canceled", 0, False))
    assert bench.complete("dag/task/next").report.attempts == {1: 10}
    assert bench.world.charged() == 20


def test_rows_that_a_finished_batch_leaves_out_are_not_to_blame(bench: Bench) -> None:
    bench.world.make_tickets(20)
    bench.fault(kind="missing", rows=[3, 7])

    bench.complete(max_attempts=1)

    assert bench.world.failures() == {3: ("missing", 0, False), 7: ("missing", 0, False)}


def test_truncated_answers_are_asked_again_with_a_higher_limit(bench: Bench) -> None:
    bench.world.make_tickets(20)
    bench.fault(kind="truncated", rows=[3, 7])

    done = bench.complete(max_tokens=100)

    assert done.report.attempts == {1: 20, 2: 2}
    assert done.report.final == {Outcome.SUCCEEDED: 20}


@pytest.mark.parametrize("kind", ["invalid", "missing", "bad_line", "foreign"])
def test_rows_without_a_usable_answer_are_asked_again(bench: Bench, kind: str) -> None:
    bench.world.make_tickets(20)
    bench.fault(kind=kind, rows=[3, 7])

    done = bench.complete()

    assert done.report.attempts == {1: 20, 2: 2}
    assert done.report.final == {Outcome.SUCCEEDED: 20}


@pytest.mark.parametrize("kept", [True, False])
def test_the_beginning_of_a_bad_answer_is_kept_only_where_the_user_wants_that(
    bench: Bench, kept: bool
) -> None:
    bench.world.make_tickets(20)
    bench.fault(kind="text", rows=[3], text="no JSON at all" + "." * 1000)

    bench.complete(max_attempts=1, keep_raw_excerpt=kept)

    ((outcome, excerpt),) = bench.world.ask("SELECT _llm_outcome, _llm_raw_excerpt FROM labels__failures")
    assert outcome == "invalid"
    if kept:
        assert excerpt.startswith("no JSON at all")
        assert len(excerpt) <= 200
    else:
        assert excerpt is None


def test_duplicates_of_a_failed_row_are_answered_by_one_more_request(bench: Bench) -> None:
    bench.world.make_tickets(30, 10)
    bench.fault(kind="errored", rows=[4])

    done = bench.complete()

    assert done.report.attempts == {1: 10, 2: 1}
    assert done.report.final == {Outcome.SUCCEEDED: 30}
    assert len(bench.world.answers()) == 30


def test_a_row_that_fails_in_every_round_is_dead_and_is_not_bought_again(openai: Bench) -> None:
    openai.world.make_tickets(20)
    openai.fault(kind="invalid", rows=[0], times=None)
    openai.world.ask("DELETE FROM tickets WHERE id > 0")

    first = openai.complete("first", max_attempts=2)
    charged = openai.world.charged()
    second = openai.complete("second", max_attempts=2)

    assert not first.report.passed
    assert openai.world.failures() == {0: ("invalid", 2, True)}
    assert (second.report.why, second.report.requests) == ({"dead": 1}, 0)
    assert openai.world.charged() == charged == 2


def test_dead_rows_are_tried_again_where_the_user_or_the_row_says_so(openai: Bench) -> None:
    openai.world.make_tickets(1)
    openai.fault(kind="refused", rows=[0])
    openai.complete("first")
    assert openai.world.failures() == {0: ("refused", 1, True)}

    kept = openai.complete("kept")
    tried = openai.complete("tried", retry_dead=True)

    assert kept.report.why == {"dead": 1}
    assert tried.report.why == {"retried": 1}
    assert tried.report.final == {Outcome.SUCCEEDED: 1}
    assert openai.world.failures() == {}


def test_a_changed_row_is_no_longer_dead(openai: Bench) -> None:
    openai.world.make_tickets(1)
    openai.fault(kind="refused", rows=[0])
    openai.complete("first")
    openai.world.ask("UPDATE tickets SET body = 'another'")

    assert openai.complete("second").report.final == {Outcome.SUCCEEDED: 1}


def test_attempts_add_up_over_runs_and_not_over_landings(openai: Bench) -> None:
    openai.world.make_tickets(2)
    openai.fault(kind="invalid", rows=[0], times=None)

    openai.complete("first", max_attempts=5, min_round_time=1e9)
    openai.complete("first", max_attempts=5, min_round_time=1e9)
    assert openai.world.failures() == {0: ("invalid", 1, False)}
    openai.complete("second", max_attempts=5, min_round_time=1e9)

    assert openai.world.failures() == {0: ("invalid", 2, False)}


def test_a_failure_does_not_touch_the_answer_that_a_row_had(openai: Bench) -> None:
    openai.world.make_tickets(20)
    openai.complete("first")
    before = openai.world.answers()
    openai.world.ask("UPDATE tickets SET body = 'another' WHERE id = 5")
    openai.fault(kind="refused", rows=[0])

    openai.complete("second")

    assert openai.world.answers() == before
    assert openai.world.failures() == {5: ("refused", 1, True)}


def test_the_gate_fails_a_run_below_its_ratio_and_keeps_the_verdict(bench: Bench) -> None:
    bench.world.make_tickets(100)
    bench.fault(kind="refused", every=10)

    first = bench.complete()
    again = bench.complete()

    assert (first.report.passed, again) == (False, first)
    with pytest.raises(QualityGateFailed, match=r"90 of 100 rows succeeded .* refused 10"):
        again.raise_for_verdict()
    assert len(bench.world.answers()) == 90
    assert bench.world.charged() == 100


def test_small_runs_pass_with_one_good_row_and_fail_with_none(openai: Bench) -> None:
    openai.world.make_tickets(4)
    openai.fault(kind="refused", rows=[0, 1, 2])
    assert openai.complete("some").report.passed

    openai.world.make_tickets(6)
    openai.fault(kind="refused", every=1)
    assert not openai.complete("none").report.passed


def test_an_empty_source_is_a_success(bench: Bench) -> None:
    bench.world.make_tickets(0)

    done = bench.complete()

    assert (done.report.passed, done.report.rows, bench.batches()) == (True, 0, [])


def test_a_batch_that_the_provider_turns_away_for_good_fails_its_rows_and_blames_none(openai: Bench) -> None:
    openai.world.make_tickets(20)
    openai.fault(kind="reject")

    done = openai.complete(rows_per_batch=10)

    assert done.report.final == {Outcome.SUCCEEDED: 10, Outcome.ERRORED: 10}
    assert set(openai.world.failures().values()) == {("errored", 0, False)}
    assert openai.complete("next").report.why == {"answered": 10, "new": 10}
    assert len(openai.world.answers()) == 20


def test_a_creation_that_is_refused_fails_its_rows_and_blames_none(bench: Bench) -> None:
    bench.world.make_tickets(20)
    bench.fault(kind="status", endpoint="create", status=400, code="invalid_request")

    done = bench.complete(rows_per_batch=10)

    assert done.report.final == {Outcome.SUCCEEDED: 10, Outcome.ERRORED: 10}
    assert set(bench.world.failures().values()) == {("errored", 0, False)}
