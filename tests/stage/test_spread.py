"""A run in parts: any part may be missing, run twice, or meet another, and each row is paid once."""

import pytest

from airflow_batch_llm.errors import Unavailable
from airflow_batch_llm.stage.finishing import Finished
from airflow_batch_llm.stage.run import Pause
from airflow_batch_llm.stage.spread import Portion, Spread
from tests.stage.world import Bench, let_go

ROWS, ROWS_PER_BATCH = 70, 10


def spread(bench: Bench, **changes: object) -> Spread:
    run = bench.run(rows_per_batch=ROWS_PER_BATCH, **changes)
    try:
        return Spread(generation=run.generation())
    finally:
        let_go(run)


def wait(bench: Bench, whole: Spread) -> None:
    """Drive until everything has ended at the provider."""
    while isinstance(pause := whole.drive(), Pause):
        bench.world.sleep(max(1.0, (pause.watch.wake_at or 0.0) - bench.world.clock()))


def finish(bench: Bench) -> Finished:
    return bench.complete(rows_per_batch=ROWS_PER_BATCH)


def test_portions_hold_each_shard_once_in_order_and_share_the_places(openai: Bench) -> None:
    openai.world.make_tickets(ROWS)

    whole = spread(openai, max_active_batches=5)

    assert whole.portions(3) == [
        Portion(first=1, last=2, places=1),
        Portion(first=3, last=4, places=2),
        Portion(first=5, last=7, places=2),
    ]
    assert [portion.places for portion in whole.portions(100)] == [1] * 5  # never more than places
    assert whole.portions(1) == [Portion(first=1, last=7, places=5)]


def test_where_there_is_nothing_to_send_there_are_no_portions(openai: Bench) -> None:
    openai.world.make_tickets(0)

    whole = spread(openai)

    assert whole.portions(8) == []
    assert whole.drive() is None
    assert finish(openai).report.passed


def test_the_parts_together_buy_and_land_each_row_once(bench: Bench) -> None:
    bench.world.make_tickets(ROWS)
    whole = spread(bench, max_active_batches=4)
    portions = whole.portions(3)

    for portion in portions:
        whole.submit(portion)
    assert len(bench.batches()) == 4  # the first window
    wait(bench, whole)
    for portion in portions:
        whole.collect(portion)
    assert bench.world.ask("SELECT count(*) FROM labels") == [(0,)]  # staged, and not yet merged
    finish(bench)

    assert len(bench.world.answers()) == bench.world.charged() == ROWS


@pytest.mark.parametrize("left_out", ["submit", "drive", "collect"])
def test_what_a_part_leaves_undone_the_next_ones_do(openai: Bench, left_out: str) -> None:
    openai.world.make_tickets(ROWS)
    whole = spread(openai)
    first, second = whole.portions(2)

    whole.submit(first)
    if left_out != "submit":
        whole.submit(second)
    if left_out != "drive":
        wait(openai, whole)
        whole.collect(first)
        if left_out != "collect":
            whole.collect(second)
    finish(openai)

    assert len(openai.world.answers()) == openai.world.charged() == ROWS


def test_a_part_that_runs_again_buys_and_stages_nothing_again(openai: Bench) -> None:
    openai.world.make_tickets(ROWS)
    whole = spread(openai)
    (portion,) = whole.portions(1)

    whole.submit(portion)
    whole.submit(portion)
    wait(openai, whole)
    whole.collect(portion)
    whole.collect(portion)
    finish(openai)
    whole.collect(portion)  # cleared after the finish

    assert len(openai.world.answers()) == openai.world.charged() == ROWS


def test_collecting_too_early_says_so_and_may_be_tried_again(openai: Bench) -> None:
    openai.world.make_tickets(ROWS)
    openai.world.simulator.turn(batch_seconds=600)
    whole = spread(openai)
    (portion,) = whole.portions(1)
    whole.submit(portion)

    with pytest.raises(Unavailable, match="Not all shards of this portion can be staged yet"):
        whole.collect(portion)

    wait(openai, whole)
    whole.collect(portion)
    finish(openai)
    assert len(openai.world.answers()) == openai.world.charged() == ROWS


def test_what_the_provider_turns_away_for_now_is_sent_again_by_the_drive(openai: Bench) -> None:
    openai.world.make_tickets(ROWS)
    whole = spread(openai)
    (portion,) = whole.portions(1)
    openai.fault(kind="status", status=429, endpoint="create", times=3)

    whole.submit(portion)
    assert len(openai.batches()) < 7
    wait(openai, whole)
    whole.collect(portion)
    finish(openai)

    assert len(openai.world.answers()) == openai.world.charged() == ROWS
