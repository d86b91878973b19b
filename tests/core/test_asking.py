"""Asking in real time in every order in which workers can meet, crash, freeze and lose answers."""

import pytest

from airflow_batch_llm.core.realtime import Turn
from tests.core import asking_model
from tests.core.asking_model import Rules, Worker, explore, faults
from tests.core.explore import ASKING_SMALL, visit_asking


@pytest.mark.parametrize("name", ASKING_SMALL)
def test_no_order_of_events_loses_a_row_or_pays_more_twice_than_is_counted(name: str) -> None:
    assert visit_asking(name, ASKING_SMALL[name]) > 1_000


def test_a_frozen_worker_does_pay_twice_and_is_counted() -> None:
    assert any(max(world.paid) > 1 for world in explore(Rules(requests=1, crashes=0)))


def test_the_exploration_notices_a_worker_that_asks_after_its_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Turn, "room", lambda turn, _: turn.bound - turn.open)
    _notices("more is paid twice", Rules(workers=2, crashes=0))


def test_the_exploration_notices_an_answer_that_is_lost_and_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Turn, "lost", lambda turn, _: turn.refused())
    _notices("more is paid twice", Rules(requests=1, workers=1, losses=1, partings=1))


def test_the_exploration_notices_results_that_a_frozen_worker_writes_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def shared(_: Worker) -> str:
        return "now"

    monkeypatch.setattr(asking_model, "results_name", shared)
    _notices("a row is lost", Rules(requests=1, crashes=0))


def _notices(fault: str, rules: Rules) -> None:
    assert any(fault in found for world in explore(rules) for found in faults(world, rules))
