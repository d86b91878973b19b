"""The ledger: what each run has spent, written by itself or by the next one."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from airflow_batch_llm.core.journal import Doer
from airflow_batch_llm.core.model import Way
from airflow_batch_llm.core.settings import Route
from airflow_batch_llm.errors import DeadlinePassed, WarehouseUnreachable
from airflow_batch_llm.stage.parts import UsageTable
from airflow_batch_llm.stage.run import Pause
from airflow_batch_llm.warehouses.base import Warehouse
from airflow_batch_llm.warehouses.duckdb.warehouse import DuckDBWarehouse
from tests.stage.world import Bench, World

LEDGER = "llm_usage"


def usage(world: World) -> UsageTable:
    """The ledger in the world's database, by an adapter of its own."""
    return UsageTable(name=LEDGER, book="book", opened=lambda: closing(DuckDBWarehouse(world.database)))


@contextmanager
def _unreachable() -> Iterator[Warehouse]:
    raise WarehouseUnreachable("The ledger's database is down.")
    yield


def rows(world: World, columns: str) -> list[tuple[Any, ...]]:
    """The rows of the ledger."""
    return world.ask(f"SELECT {columns} FROM {LEDGER} ORDER BY run_id, round, route")


def billed(world: World) -> float:
    """Return what the simulator charges, whatever the way."""
    return sum(world.billed(way) for way in (Way.BATCH, Way.NOW))


def test_a_run_is_written_by_round_and_route_with_who_asked(openai: Bench) -> None:
    openai.world.make_tickets(8)
    openai.world.ask("ALTER TABLE tickets ADD COLUMN how VARCHAR")
    openai.world.ask("UPDATE tickets SET how = 'urgent' WHERE id < 2")
    openai.fault(kind="errored", rows=[3])
    by = Doer(dag_id="dag", task_id="task", run_id="monday", map_index=3, try_number=2, team="support")
    parts = {"usage": usage(openai.world), "by": by}
    asked: dict[str, Any] = {"routes": {"urgent": Route(way="now")}, "route_column": "how"}

    report = openai.complete(parts=parts, **asked).report
    openai.complete(parts=parts, **asked)  # a retry reads the report, and writes nothing

    found = rows(openai.world, "round, route, way, requests, rows_succeeded, rows_errored")
    assert found == [
        (1, "default", "batch", 6, 5, 1),
        (1, "urgent", "now", 2, 2, 0),
        (2, "default", "batch", 1, 1, 0),
    ]
    who = rows(
        openai.world, "DISTINCT dag_id, task_id, dag_run_id, map_index, try_number, team, provider, target"
    )
    assert who == [("dag", "task", "monday", 3, 2, "support", "openai", "labels")]
    ((usd, saved, open_rounds, negative),) = openai.world.ask(
        f"SELECT sum(usd), sum(saved_usd), count(*) FILTER (ended_at IS NULL), count(*) FILTER (ended_at < started_at) "
        f"FROM {LEDGER}"
    )
    assert (usd, saved) == pytest.approx((billed(openai.world), report.spent.saved), abs=1e-9)
    assert (open_rounds, negative) == (0, 0)
    names = openai.world.workspace().names
    assert [
        entry for book in names(".registers/ledgers") for entry in names(f".registers/ledgers/{book}")
    ] == []


def test_what_cannot_be_written_is_written_by_the_next_run(openai: Bench) -> None:
    openai.world.make_tickets(3)
    down = UsageTable(name=LEDGER, book="book", opened=_unreachable)

    assert openai.complete("monday", parts={"usage": down}).report.passed

    assert [text for text in openai.said if "could not be written to llm_usage" in text and "is down" in text]
    openai.world.sleep(60)
    openai.complete("tuesday", parts={"usage": usage(openai.world)})  # it has nothing to send
    assert rows(openai.world, "run_id, requests") == [("monday/g1", 3)]


def test_a_run_that_nobody_finishes_is_written_by_the_next_one_after_its_time(openai: Bench) -> None:
    openai.world.make_tickets(4)
    openai.world.simulator.turn(batch_seconds=3600)
    parts = {"usage": usage(openai.world)}
    first = openai.advance("other", parts=parts, target="others", rows_per_batch=2)
    assert isinstance(first, Pause)
    openai.world.sleep(3700)
    run = openai.run("other", parts=parts, target="others", rows_per_batch=2)
    generation = run.generation()
    generation.collect()  # the worker dies after its answers are staged
    run.parts.target.close()

    openai.world.sleep(30 * 3600)
    openai.complete("tuesday", parts=parts)

    ((requests, usd, ended),) = rows(openai.world, "requests, usd, ended_at")[:1]
    assert (requests, ended) == (4, None)
    assert usd > 0


def test_a_run_whose_time_is_over_is_written_as_far_as_it_has_come(openai: Bench, tmp_path: Path) -> None:
    openai.world.make_tickets(4)
    openai.world.simulator.turn(batch_seconds=10)
    parts = {"usage": usage(openai.world)}
    openai.advance(
        "monday", parts=parts, rows_per_batch=2, max_active_batches=1, timeout=60, cancel_on_timeout=False
    )
    openai.world.sleep(20)
    openai.world.simulator.turn(batch_seconds=5000)
    late = {"rows_per_batch": 2, "max_active_batches": 1, "timeout": 60, "cancel_on_timeout": False}
    openai.advance("monday", parts=parts, **late)
    openai.world.sleep(100)

    with pytest.raises(DeadlinePassed):
        openai.advance("monday", parts=parts, **late)

    assert rows(openai.world, "requests, rows_succeeded, ended_at") == [(2, 2, None)]
    openai.world.sleep(6000)
    openai.complete("monday", parts=parts, **late)
    ((requests, succeeded, ended),) = rows(openai.world, "requests, rows_succeeded, ended_at")
    assert (requests, succeeded) == (4, 4)
    assert ended is not None
