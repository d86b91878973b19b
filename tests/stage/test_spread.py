"""A run in parts: any part may be missing, run twice, be killed, or meet another, and each row is paid once."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.core.settings import Escalation, Route
from airflow_batch_llm.errors import Unavailable
from airflow_batch_llm.stage.land.finishing import Finished
from airflow_batch_llm.stage.run import Pause, Portion, Run, Spread
from tests.stage.kill_matrix import points
from tests.stage.kills import Kill
from tests.stage.processes import Ended, Job
from tests.stage.world import Bench, let_go

ROWS, ROWS_PER_BATCH = 70, 10

#: The work of one of two workers, in a separate process.
Part = Callable[[int, Run], None]


def spread(bench: Bench, **changes: object) -> Spread:
    run = bench.run(rows_per_batch=ROWS_PER_BATCH, **changes)
    try:
        return Spread(generation=run.generation())
    finally:
        let_go(run)


def wait(bench: Bench, whole: Spread) -> None:
    """Drive until everything has ended at the provider."""
    while isinstance(pause := whole.drive(), Pause):
        bench.world.sleep(max(30.0, (pause.watch.wake_at or 0.0) - bench.world.clock()))


def finish(bench: Bench) -> Finished:
    return bench.complete(rows_per_batch=ROWS_PER_BATCH)


def submit(number: int, run: Run) -> None:
    whole = Spread(generation=run.generation())
    whole.submit(whole.portions(2)[number])


def collect(number: int, run: Run) -> None:
    whole = Spread(generation=run.generation())
    whole.collect(whole.portions(2)[number])


def job(bench: Bench, part: Part, number: int, kill: Kill | None = None) -> Job:
    changes = {"rows_per_batch": ROWS_PER_BATCH}
    return Job(world=bench.world, changes=changes, part=partial(part, number), kill=kill)


def both(bench: Bench, part: Part, workers: tuple[int, ...] = (0, 1)) -> None:
    """The part of each worker, all at the same time."""
    started = [job(bench, part, number).started() for number in workers]
    ended = [one.wait() for one in started]
    assert [one.error for one in ended] == [""] * len(workers)


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


def test_the_drive_gives_up_what_hangs_when_the_time_is_nearly_over(openai: Bench) -> None:
    bench = openai
    bench.world.make_tickets(ROWS)
    bench.fault(kind="hold", nth=2)
    bench.fault(kind="status", endpoint="cancel", status=409)
    given: dict[str, Any] = {
        "routes": {"urgent": Route(way="now")},
        "escalate": [Escalation(to="urgent", left=3600.0)],
        "timeout": 4 * 3600.0,
    }
    whole = spread(bench, **given)
    ends = whole.generation.deadline()
    for portion in whole.portions(2):
        whole.submit(portion)
    wait(bench, whole)
    assert ends - 3600.0 <= bench.world.clock() < ends - 1800.0
    for portion in whole.portions(2):
        whole.collect(portion)
    report = bench.complete(rows_per_batch=ROWS_PER_BATCH, **given).report
    assert report.final == {Outcome.SUCCEEDED: ROWS}
    assert {name: one.succeeded for name, one in report.routes.items()} == {"default": 60, "urgent": 10}
    assert (len(bench.world.answers()), bench.world.charged()) == (ROWS, ROWS)


def test_tasks_that_are_alive_at_the_same_time_buy_and_stage_each_row_once(openai: Bench) -> None:
    openai.world.make_tickets(ROWS)
    whole = spread(openai)

    for part in (submit, collect):
        both(openai, part, (0, 0, 1, 1))
        wait(openai, whole)
    finish(openai)

    assert len(openai.batches()) == 7
    assert len(openai.world.answers()) == openai.world.charged() == ROWS


@pytest.mark.parametrize("part", [submit, collect])
def test_a_worker_killed_at_any_step_and_tried_again_costs_and_loses_nothing(
    openai: Bench, part: Part
) -> None:
    verbs = disturbed(openai, part, "undisturbed").verbs

    for kill in points(verbs, every=False):
        step = f"after {kill.point} {verbs[kill.point - 1]}"
        assert disturbed(openai, part, step, kill).killed, step


def disturbed(bench: Bench, part: Part, name: str, kill: Kill | None = None) -> Ended:
    """All parts in a new world, where one of them is begun by a worker that may be killed. The bill must be right."""
    rows = 40
    bench = Bench(replace(bench.world, folder=bench.world.folder / name))
    bench.world.folder.mkdir()
    bench.world.begin()
    bench.world.make_tickets(rows)
    whole = spread(bench)
    for each in (submit, collect):
        if each is part:
            first = job(bench, each, 0, kill).run()
        both(bench, each)
        wait(bench, whole)
    finish(bench)
    assert len(bench.batches()) == 4, name
    assert len(bench.world.answers()) == bench.world.charged() == rows, name
    return first
