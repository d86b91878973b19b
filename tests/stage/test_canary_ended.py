"""A run with a canary that a user cancels or clears, before the verdict and after it: no row is bought twice."""

from typing import Any

import pytest

from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.core.settings import Canary
from airflow_batch_llm.stage.inspection import inspect
from airflow_batch_llm.stage.land.finishing import Finished
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.run import Pause
from airflow_batch_llm.stage.send.sweeping import Cancelled, cancel_run
from tests.stage.world import Bench, let_go

ROWS, SIZE = 60, 20
IN_BATCH: dict[str, Any] = {"canary": Canary(rows=SIZE, way="batch"), "rows_per_batch": 20}
IN_TIME: dict[str, Any] = {"canary": SIZE, "rows_per_batch": 20, "max_active_batches": 1}


@pytest.fixture
def slow(openai: Bench) -> Bench:
    """Batches take an hour."""
    openai.world.make_tickets(ROWS)
    openai.world.simulator.turn(batch_seconds=3600)
    return openai


def cancel(bench: Bench) -> Cancelled:
    run = bench.run()
    try:
        return cancel_run(
            RunFolder(workspace=run.parts.workspace, run=run.name),
            run.parts.provider,
            run.parts.by,
            run.parts.clock,
        )
    finally:
        let_go(run)


def cleared(bench: Bench, **given: Any) -> Finished:
    """Clear the task, and let batches end at once."""
    bench.world.simulator.turn(batch_seconds=0)
    return bench.complete(bench.run(max_tries=1, **given))


def everything_is_there(bench: Bench) -> bool:
    """Return whether each row has an answer, was paid once, and no run is open."""
    return (len(bench.world.answers()), bench.world.failures(), bench.world.charged()) == (ROWS, {}, ROWS)


def test_a_clear_before_the_verdict_goes_on_with_the_same_canary(slow: Bench) -> None:
    assert isinstance(slow.advance(**IN_BATCH), Pause)
    done = cleared(slow, **IN_BATCH)
    assert (done.report.rows, done.report.why) == (0, {"answered": ROWS})  # it reads the source again
    assert everything_is_there(slow)
    assert slow.world.unfinished() == []


def test_a_clear_after_a_bad_canary_begins_with_a_new_one(slow: Bench) -> None:
    slow.complete(**{**IN_TIME, "max_tokens": 1})
    paid = slow.world.charged()
    done = cleared(slow, **IN_TIME)
    assert (paid, done.report.canary["ruling"], done.report.final) == (SIZE, "go", {Outcome.SUCCEEDED: ROWS})
    assert (len(slow.world.answers()), slow.world.charged()) == (ROWS, SIZE + ROWS)


@pytest.mark.parametrize("has_ended", [False, True])
def test_a_cancel_before_the_verdict_ends_the_run_and_the_rest_is_not_sent(
    slow: Bench, has_ended: bool
) -> None:
    pause = slow.advance(**IN_BATCH)
    assert isinstance(pause, Pause)
    if has_ended:
        slow.world.simulator.finish(pause.watch.batch_ids[0])
    cancelled = cancel(slow)
    assert (len(cancelled.now), len(cancel(slow).now)) == (0 if has_ended else 1, 0)

    report = slow.complete(**IN_BATCH).report

    if has_ended:  # its answers are good, and they land
        assert report.final == {Outcome.SUCCEEDED: SIZE, Outcome.CANCELED: ROWS - SIZE}
    else:
        assert (report.final, report.why["stopped"]) == ({Outcome.CANCELED: SIZE}, ROWS - SIZE)
    assert slow.world.charged() == (SIZE if has_ended else 0)
    assert len(slow.batches()) == 1
    told = "cancelled while none of its batches" if has_ended else "cancelled on request"
    assert any(told in line for line in slow.said)
    assert cleared(slow, **IN_BATCH).report.passed
    assert everything_is_there(slow)


def test_a_cancel_after_the_verdict_ends_the_run_also_for_shards_without_a_place(slow: Bench) -> None:
    pause = slow.advance(**IN_TIME)
    assert isinstance(pause, Pause)
    assert (len(pause.watch.batch_ids), slow.world.charged()) == (1, SIZE)
    assert len(cancel(slow).now) == 1
    seen = inspect(RunFolder(workspace=slow.world.workspace(), run="dag/task/run"), slow.world.clock())
    assert [shard.next for shard in seen.shards[2:]] == [
        "its rows are given up: nothing of it was sent, and the run sends nothing more"
    ]

    report = slow.complete(**IN_TIME).report

    assert report.final == {Outcome.SUCCEEDED: SIZE, Outcome.CANCELED: ROWS - SIZE}
    assert (len(slow.batches()), slow.world.charged()) == (1, SIZE)
    assert report.canary["ruling"] == "go"
    assert cleared(slow, **IN_TIME).report.passed
    assert everything_is_there(slow)


def test_a_cancelled_run_asks_no_failed_row_again(openai: Bench) -> None:
    bench = openai
    bench.world.make_tickets(ROWS)
    bench.world.simulator.turn(batch_seconds=3600, cancelled_share=1.0)
    bench.fault(kind="invalid", rows=[3])
    try:
        assert isinstance(bench.advance(), Pause)
        bench.world.sleep(600)
        cancel(bench)
        report = bench.complete(min_round_time=0).report
    finally:
        bench.world.simulator.turn(batch_seconds=0, cancelled_share=0.0)
    assert (report.final, report.rounds) == ({Outcome.SUCCEEDED: ROWS - 1, Outcome.INVALID: 1}, 1)
