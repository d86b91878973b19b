"""A source that several workers read: any of them may die, run twice or come late, and the plan is as that of one worker."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pytest

from airflow_batch_llm.core.settings import Route, Source
from airflow_batch_llm.errors import InputError, SourceError
from airflow_batch_llm.stage.land.finishing import Finished
from airflow_batch_llm.stage.run import Run
from airflow_batch_llm.warehouses.duckdb.warehouse import DuckDBWarehouse
from tests.stage.kill_matrix import points
from tests.stage.kills import Kill
from tests.stage.processes import Ended, Job
from tests.stage.world import Bench, let_go

ROWS, DISTINCT, PARTITIONS = 40, 30, 3
CHANGES = {"rows_per_batch": 10}


def opened(bench: Bench, **changes: Any) -> str:
    """Divide the source, and return the opening's nonce."""
    run = bench.run(**{**CHANGES, **changes})
    try:
        opening = run.open_source(PARTITIONS)
    finally:
        let_go(run)
    return opening.nonce if opening else ""


def read(bench: Bench, opening: str, *numbers: int, **changes: Any) -> None:
    for number in numbers or range(PARTITIONS):
        run = replace(bench.run(**{**CHANGES, **changes}), opening=opening)
        try:
            run.read_partition(number)
        finally:
            let_go(run)


def completed(bench: Bench, opening: str, **changes: Any) -> Finished:
    return bench.complete(replace(bench.run(**{**CHANGES, **changes}), opening=opening))


def left(bench: Bench) -> list[str]:
    """The files of openings and partitions in the workspace."""
    return sorted(path.name for path in (bench.world.folder / "workspace").rglob("*") if _is_read(path))


def _is_read(path: Path) -> bool:
    return path.name.startswith(("opening", "partition"))


def night(bench: Bench, *, is_divided: bool, **changes: Any) -> dict[str, Any]:
    """Return the facts of one run that must not depend on how its source is read."""
    given = {"name": "night/t/r", **changes}
    done = (
        completed(bench, _read(bench, **given), **given) if is_divided else bench.complete(bench.run(**given))
    )
    kept = "* EXCLUDE (_llm_processed_at, _llm_planned_at, _llm_batch_id, _llm_shard)"
    report = done.report
    return {
        "labels": bench.world.ask(f"SELECT {kept} FROM labels ORDER BY id"),
        "failures": bench.world.ask(
            "SELECT id, _llm_outcome, _llm_error_code FROM labels__failures ORDER BY id"
        ),
        "report": [report.why, report.final, report.spent, report.estimate],
        "charged": bench.world.charged(),
    }


def _read(bench: Bench, **changes: Any) -> str:
    opening = opened(bench, **changes)
    assert opening
    read(bench, opening, **changes)
    return opening


def test_the_plan_is_that_of_one_worker(openai: Bench) -> None:
    """Known, changed and repeated rows, one that cannot be sent, and a limit that is reached in a later partition."""
    seen = []
    for is_divided in (False, True):
        bench = Bench(replace(openai.world, folder=openai.world.folder / str(is_divided)))
        bench.world.folder.mkdir()
        bench.world.begin()
        bench.world.make_tickets(ROWS, DISTINCT)
        bench.complete("first/t/r", prompt="{{ body }}", max_rows=4)
        bench.world.ask("UPDATE tickets SET body = if(id = 7, '', 'other') WHERE id IN (1, 7, 21)")

        seen.append(night(bench, is_divided=is_divided, prompt="{{ body }}", max_rows=33))

    assert seen[0] == seen[1]
    why = {"answered": 3, "changed": 1, "new": 27, "postponed": 4, "unsendable": 1, "reused": 4}
    assert seen[0]["report"][0] == why


def open_source(run: Run) -> None:
    run.open_source(PARTITIONS)


def read_partition(opening: str, run: Run) -> None:
    replace(run, opening=opening).read_partition(1)


def plan(opening: str, run: Run) -> None:
    replace(run, opening=opening).generation()


@pytest.mark.parametrize(("part", "every"), [("open", 4), ("read", 1), ("plan", 7)])
def test_a_worker_killed_at_any_step_and_tried_again_costs_and_loses_nothing(
    openai: Bench, part: str, every: int
) -> None:
    verbs = disturbed(openai, part, "undisturbed").verbs

    for kill in list(points(verbs, every=False))[::-every]:
        step = f"after {kill.point} {verbs[kill.point - 1]}"
        assert disturbed(openai, part, step, kill).killed, step


def disturbed(bench: Bench, part: str, name: str, kill: Kill | None = None) -> Ended:
    """A whole run in a new world, where one task is begun by a worker that may be killed."""
    bench = Bench(replace(bench.world, folder=bench.world.folder / name.replace(" ", "-")))
    bench.world.folder.mkdir()
    bench.world.begin()
    bench.world.make_tickets(ROWS, DISTINCT)
    if part == "open":
        first = begun(bench, open_source, kill)
    opening = opened(bench)
    if part == "read":
        first = begun(bench, partial(read_partition, opening), kill)
    read(bench, opening)
    records = [name for name in left(bench) if name.endswith(".json") and name != "opening.json"]
    assert records == [f"partition-{number:04d}.json" for number in range(1, PARTITIONS + 1)]
    if part == "plan":
        first = begun(bench, partial(plan, opening), kill)
    run = replace(bench.run(**CHANGES), opening=opening)
    try:
        frozen = run.generation().first
    finally:
        let_go(run)
    assert (frozen.why, frozen.requests) == ({"new": ROWS}, DISTINCT), name
    assert not [line for line in bench.said if "alone" in line], name
    # An opening that no task was told of goes with the prompts of the run.
    assert set(left(bench)) <= ({"opening.json"} if part == "open" else set()), name
    return first


def begun(bench: Bench, part: Callable[[Run], None], kill: Kill | None) -> Ended:
    ended = Job(world=bench.world, changes=CHANGES, part=part, kill=kill).run()
    assert not ended.error, ended.error
    return ended


def test_two_tasks_that_read_one_partition_at_the_same_time_leave_one(openai: Bench) -> None:
    openai.world.make_tickets(ROWS, DISTINCT)
    opening = opened(openai)
    twice = [
        Job(world=openai.world, changes=CHANGES, part=partial(read_partition, opening)).started()
        for _ in range(2)
    ]
    assert [one.wait().error for one in twice] == ["", ""]
    before = left(openai)
    assert len(before) == 4  # the opening; a record and two files

    read(openai, opening)

    assert set(before) < set(left(openai))
    assert len(left(openai)) == 1 + 3 * PARTITIONS
    assert completed(openai, opening).report.why == {"new": ROWS}


def test_what_another_run_buys_and_lands_while_the_source_is_read_is_not_bought_again(openai: Bench) -> None:
    openai.world.make_tickets(ROWS)
    opening = opened(openai)
    read(openai, opening, 0, 1)
    openai.complete("other/t/r", max_rows=20)
    read(openai, opening, 2)

    done = completed(openai, opening)

    assert done.report.why == {"in_flight": 20, "new": 20}
    assert openai.world.charged() == len(openai.world.answers()) == ROWS


def test_what_is_in_flight_when_the_reading_begins_is_left_to_its_run(openai: Bench) -> None:
    openai.world.make_tickets(ROWS)
    openai.advance("other/t/r", max_rows=20)
    opening = opened(openai)
    openai.complete("other/t/r", max_rows=20)
    read(openai, opening, 1, 2)  # the first partition was read before

    read(openai, opening, 0)

    assert completed(openai, opening).report.why == {"answered": 20, "new": 20}
    assert openai.world.charged() == len(openai.world.answers()) == ROWS


def test_a_cleared_run_is_opened_again_and_an_unfinished_one_is_not(openai: Bench) -> None:
    openai.world.make_tickets(ROWS)
    first = opened(openai)
    read(openai, first)
    openai.advance(replace(openai.run(**CHANGES), opening=first))
    assert opened(openai) == ""  # what is planned goes on
    completed(openai, "")
    openai.world.ask("INSERT INTO tickets VALUES (99, 'subject', 'new')")

    second = opened(openai)
    read(openai, second)
    cleared = completed(openai, second, max_tries=1).report.why
    alone = completed(openai, second, max_tries=2).report.why  # only `plan` was cleared

    assert (cleared, alone) == ({"answered": ROWS, "new": 1}, {"answered": ROWS + 1})
    assert (
        openai.said.count(
            "What other tasks have read is for another plan, or gone. This worker alone reads the source."
        )
        == 1
    )
    assert openai.world.charged() == ROWS + 1


@pytest.mark.parametrize("what", ["changed", "gone", "landed"])
def test_a_plan_that_cannot_take_what_was_read_reads_the_source_itself(openai: Bench, what: str) -> None:
    openai.world.make_tickets(ROWS)
    changes: dict[str, Any] = {}
    opening = opened(openai)
    read(openai, opening)
    if what == "changed":
        changes = {"prompt": "Another question: {{ body }}"}
    if what == "gone":
        (path,) = (openai.world.folder / "workspace").rglob("partition-0002.*.rows.parquet")
        path.unlink()
    if what == "landed":
        openai.complete("other/t/r", max_rows=20, keep_days=0.0)

    done = completed(openai, opening, **changes)

    told = {"changed": "The stage has changed since", "gone": "Some of what other tasks have read is gone"}
    assert any(told.get(what, "has landed while the source was read") in line for line in openai.said)
    assert openai.world.charged() == len(openai.world.answers()) == ROWS
    assert sum(done.report.why.values()) == ROWS
    assert left(openai) == []


def test_a_target_that_was_changed_after_the_reading_is_made_ready_before_its_answers_are_bought(
    openai: Bench,
) -> None:
    openai.world.make_tickets(ROWS)
    opening = opened(openai)
    read(openai, opening)

    completed(openai, opening, target="elsewhere")

    assert openai.world.ask("SELECT count(*) FROM elsewhere") == [(ROWS,)]


def _weak(row: Mapping[str, object]) -> str | None:
    return None


def _strong(row: Mapping[str, object]) -> str | None:
    return "strong"


def test_a_partition_is_read_only_by_what_its_source_was_divided_by(openai: Bench) -> None:
    """The settings that decide on its rows may change in the Dag while its task waits for a slot."""
    openai.world.make_tickets(ROWS)
    given = {"routes": {"strong": Route(model_id="openai:gpt-5")}, "route": _weak}
    opening = opened(openai, **given)
    elsewhere = DuckDBWarehouse(openai.world.folder / "another.duckdb")
    with duckdb.connect(str(openai.world.folder / "another.duckdb")) as connection:
        connection.execute("CREATE TABLE tickets AS SELECT 1 AS id, 'another' AS subject, 'body' AS body")
    others: tuple[dict[str, Any], ...] = (
        {"route": _strong},
        {"parts": {"source": elsewhere}},
        {"failures_target": "others"},
        {"output_column": "word"},
    )
    for changes in others:
        read(openai, opening, 0, **{**given, **changes})
        assert openai.said.pop().startswith("The stage has changed since its source was divided."), changes
    read(openai, opening, 0, **given)
    assert openai.said == ["13 rows read: partition 1 of 3."]


def test_a_source_that_cannot_be_divided_and_a_key_that_is_twice_in_it_are_refused(openai: Bench) -> None:
    openai.world.make_tickets(ROWS)
    for changes, told in (
        ({"source": Source(sql="SELECT * FROM tickets")}, "The source is a query: make it a view"),
        ({"key": ("subject",), "target": "by_subject"}, r"The key is subject \(string\)"),
    ):
        with pytest.raises(InputError, match=f"plan_partitions=3 divides a source_table .*{told}"):
            opened(openai, **changes)
    openai.world.ask("INSERT INTO tickets SELECT * FROM tickets WHERE id = 3")
    opening = opened(openai)
    read(openai, opening)
    with pytest.raises(SourceError, match=r"not unique in the source: 3 stand .* clear the group from open"):
        completed(openai, opening)
    assert openai.batches() == []


def test_a_table_whose_greatest_key_is_infinite_is_one_partition(openai: Bench) -> None:
    openai.world.ask("CREATE TABLE tickets (id DATE, subject VARCHAR, body VARCHAR)")
    openai.world.ask("INSERT INTO tickets VALUES ('2026-02-28', 'a', 'b'), ('infinity', 'c', 'd')")
    opening = opened(openai)
    read(openai, opening, 0)

    assert completed(openai, opening).report.why == {"new": 2}


def test_an_opening_holds_what_the_log_does_not(openai: Bench) -> None:
    """Bounds are key values: they stand in the run folder, and no message holds them."""
    openai.world.make_tickets(ROWS)
    opening = opened(openai)
    read(openai, opening)

    (path,) = (openai.world.folder / "workspace").rglob("opening.json")
    assert [one["within"]["low"] for one in json.loads(path.read_bytes())["partitions"]] == [None, "13", "26"]
    assert openai.said == [
        "13 rows read: partition 1 of 3.",
        "13 rows read: partition 2 of 3.",
        "14 rows read: partition 3 of 3.",
    ]
