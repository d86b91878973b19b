"""Runs that plan on one target at the same time: each row is bought by one of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from airflow_batch_llm.core.reservation import TICKET_LEASE_SECONDS
from airflow_batch_llm.errors import SourceError
from tests.stage.processes import Job
from tests.stage.world import Bench

ROWS = 3_000


@dataclass
class Interrupted:
    """A source that lets something happen once, when its rows have been read."""

    reads: Any
    meanwhile: Callable[[], Any]
    looks: int = 0

    def read(self, source: Any) -> Any:
        with self.reads.read(source) as reader:
            rows = reader.read_all()
        self.reads.release()
        self.looks += 1
        if self.looks == 2:  # the first look is at its columns
            self.meanwhile()
        return rows.to_reader()


def test_two_processes_that_plan_at_once_buy_each_row_once(openai: Bench) -> None:
    openai.world.make_tickets(ROWS)
    names = ("staging/t/r", "nightly/t/r")
    jobs = [Job(world=openai.world, name=name, evenly=True).started() for name in names]

    ends = [job.wait() for job in jobs]

    assert [end.error for end in ends] == ["", ""]
    assert openai.world.charged() == ROWS
    assert len(openai.world.answers()) == ROWS
    assert openai.world.unfinished() == []


def test_a_planner_that_was_taken_for_dead_buys_what_is_left(openai: Bench) -> None:
    openai.world.make_tickets(10)
    slow = openai.run("slow/t/r")

    def overtake() -> None:
        openai.advance("fast/t/r", max_rows=7)

    slow = openai.run("slow/t/r", parts={"source": Interrupted(slow.parts.source, overtake)})

    done = openai.complete(slow)
    openai.complete("fast/t/r", max_rows=7)

    assert done.report.why == {"in_flight": 7, "new": 3}
    assert openai.world.charged() == len(openai.world.answers()) == 10
    assert any("was not heard of in time" in line for line in openai.said)


def test_a_planner_that_failed_holds_up_nobody(openai: Bench) -> None:
    openai.world.make_tickets(10)
    openai.world.ask("INSERT INTO tickets SELECT * FROM tickets LIMIT 1")
    with pytest.raises(SourceError, match="not unique"):
        openai.advance("broken/t/r")
    openai.world.ask("CREATE OR REPLACE TABLE tickets AS SELECT DISTINCT * FROM tickets")
    before = openai.world.clock()

    openai.advance("next/t/r")

    assert openai.world.clock() - before < TICKET_LEASE_SECONDS / 2


def test_a_retry_does_not_wait_for_its_dead_predecessor(openai: Bench) -> None:
    openai.world.make_tickets(10)

    def die() -> None:
        raise KeyboardInterrupt

    run = openai.run()
    with pytest.raises(KeyboardInterrupt):
        openai.advance(openai.run(parts={"source": Interrupted(run.parts.source, die)}))
    before = openai.world.clock()

    openai.advance()

    assert openai.world.clock() - before < TICKET_LEASE_SECONDS / 2


def test_one_planner_costs_few_store_operations_whatever_has_been_planned_before(openai: Bench) -> None:
    openai.world.make_tickets(2)
    counts = []
    for night in range(4):
        openai.complete(f"night/t/{night}", only="all")
        workspace = openai.world.workspace()
        (target,) = workspace.names(".registers/tickets")
        counts.append(len(workspace.names(f".registers/tickets/{target}/{night + 1:06d}")))
        assert workspace.read(f".registers/tickets/{target}/settled.json") == str(night + 1).encode()

    assert counts == [2, 2, 2, 2]  # opened and sealed
