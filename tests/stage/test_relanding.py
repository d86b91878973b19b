"""A finished run, landed once more from the lines that it keeps."""

from pathlib import Path
from typing import Any

import pytest

from airflow_batch_llm.core.settings import WriteMode
from airflow_batch_llm.errors import InputError, ResultsGone
from airflow_batch_llm.stage.land.finishing import land_again
from airflow_batch_llm.stage.records.folder import RunFolder
from tests.stage.world import Bench
from tests.vendors import OTHER_MODELS


def again(bench: Bench, run: str = "dag/task/run") -> int:
    """Land the run again, after the provider has lost everything."""
    parts = bench.world.parts()
    try:
        return land_again(parts, RunFolder(workspace=parts.workspace, run=run))
    finally:
        parts.target.close()
        parts.provider.close()


def tables(bench: Bench) -> list[Any]:
    """Return both tables without the time of the landing."""
    return [
        bench.world.ask(f"SELECT * EXCLUDE (_llm_processed_at) FROM {name} ORDER BY id")
        for name in ("labels", "labels__failures")
    ]


def kept(bench: Bench) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (bench.world.folder / "workspace").rglob("*")}


def test_tables_that_were_dropped_are_as_they_were(bench: Bench) -> None:
    bench.world.make_tickets(30, 25)
    bench.world.ask("UPDATE tickets SET subject = '', body = '' WHERE id = 29")
    bench.fault(kind="errored", rows=[3])
    bench.fault(kind="refused", rows=[7])
    bench.complete(rows_per_batch=10, prompt="{{ subject }}{{ body }}")
    before, folder = tables(bench), kept(bench)
    assert [len(rows) for rows in before] == [28, 2]
    bench.world.ask("DROP TABLE labels")
    bench.world.ask("DROP TABLE labels__failures")
    bench.world.simulator.reset()

    assert again(bench) == 28

    assert tables(bench) == before
    assert kept(bench) == folder
    assert bench.world.ledger()["calls"] == {}
    assert bench.world.ask("SELECT table_name FROM information_schema.tables ORDER BY 1") == [
        ("labels",),
        ("labels__failures",),
        ("tickets",),
    ]


def test_rows_that_took_several_routes_are_as_they_were(openai: Bench) -> None:
    """Some were merged before the round had ended, and some have an answer by two routes."""
    bench = openai
    bench.world.make_tickets(30)
    bench.world.ask(
        "CREATE OR REPLACE TABLE tickets AS SELECT *, CASE WHEN id < 5 THEN 'urgent' END AS how FROM tickets"
    )
    bench.fault(kind="invalid", rows=[3])
    bench.world.simulator.turn(batch_seconds=3600)
    bench.complete(
        routes={"urgent": {"way": "now"}, "strong": {"model_id": f"openai:{OTHER_MODELS['openai']}"}},
        route_column="how",
        escalate=[{"to": "strong", "on": ["invalid"]}],
        max_attempts=1,
    )
    bench.world.simulator.turn(batch_seconds=0)
    before = tables(bench)
    assert bench.world.ask("SELECT _llm_route, count(*) FROM labels GROUP BY 1 ORDER BY 1") == [
        ("default", 24),
        ("strong", 1),
        ("urgent", 5),
    ]
    bench.world.ask("DROP TABLE labels")

    again(bench)

    assert tables(bench) == before


def test_columns_that_were_dropped_come_back_and_appended_rows_stand_there_once(openai: Bench) -> None:
    openai.world.make_tickets(20)
    openai.complete(write_mode=WriteMode.APPEND)
    before = openai.world.answers()
    openai.world.ask("ALTER TABLE labels DROP COLUMN label")

    again(openai)

    assert openai.world.answers() == before


def test_what_a_later_run_has_answered_stays(openai: Bench) -> None:
    openai.world.make_tickets(20)
    openai.fault(kind="refused", rows=[3])
    openai.complete()
    openai.world.ask("UPDATE tickets SET body = 'another' WHERE id < 5")
    openai.complete("dag/task/next")
    before = tables(openai)

    again(openai)

    assert tables(openai) == before
    assert openai.world.failures() == {}


def test_an_unfinished_run_is_left_to_its_retry(openai: Bench) -> None:
    openai.world.make_tickets(20)
    openai.world.simulator.turn(batch_seconds=3600)
    openai.advance()

    with pytest.raises(InputError, match=r"dag/task/run/g1 is not finished\. A retry lands it"):
        again(openai)


def test_lines_that_are_no_longer_kept_cannot_be_landed(openai: Bench) -> None:
    openai.world.make_tickets(20)
    openai.complete(keep_days=0)
    before = openai.world.answers()

    with pytest.raises(ResultsGone, match="gone from the run folder"):
        again(openai)

    assert openai.world.answers() == before
