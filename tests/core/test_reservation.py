"""Two planners, three, dead and late ones: whatever the order of their steps, a row is bought once."""

import pytest

from airflow_batch_llm.core.reservation import TicketEntry, TicketKind, ticket_of
from tests.core.reservation_model import HELPING, NOTING, SEALING, WAITING, Rules, explore

WORLDS = {
    "two runs": Rules(runs=("a", "b")),
    "two runs, one dies": Rules(runs=("a", "b"), crashes=1),
    "two attempts at one run, one dies": Rules(runs=("a", "a"), crashes=1),
    "others read the source of one run": Rules(runs=("a", "b"), readers=frozenset("a")),
    "others read the source of both, one planner dies": Rules(
        runs=("a", "b"), readers=frozenset("ab"), crashes=1
    ),
}


@pytest.mark.parametrize("name", WORLDS)
def test_no_order_of_steps_lets_two_planners_buy_one_row(name: str) -> None:
    rules = WORLDS[name]

    for world in explore(rules):
        assert world.bought <= 1, world
        over = len(world.planners) == len(rules.runs) and not any(world.planners)
        if over and not world.crashes:
            assert world.bought == 1, world


@pytest.mark.parametrize("readers", ["", "ab"])
@pytest.mark.parametrize("without", [WAITING, SEALING, HELPING, NOTING])
def test_the_model_notices_a_planner_that_leaves_a_step_out(without: str, readers: str) -> None:
    rules = Rules(runs=("a", "b"), without=without, readers=frozenset(readers))

    assert any(world.bought > 1 for world in explore(rules))


def test_what_comes_after_the_end_of_a_ticket_changes_nothing() -> None:
    opened, sealed, over = (TicketEntry(kind=kind, nonce="n", run="r") for kind in
                            (TicketKind.OPENED, TicketKind.SEALED, TicketKind.OVER))  # fmt: skip

    assert not ticket_of([opened, sealed, over]).is_over
    assert ticket_of([opened, over, sealed]).sealed is None


def test_a_record_is_read_as_it_was_written() -> None:
    entry = TicketEntry(kind=TicketKind.SEALED, nonce="n", run="r/g1", expires_at=1.5, draft="d")

    assert TicketEntry.from_json(entry.to_json()) == entry
