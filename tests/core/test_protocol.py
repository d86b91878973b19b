"""The submission protocol in every order in which attempts can meet, crash, freeze and lose answers."""

from dataclasses import replace

import pytest

from airflow_batch_llm.core.journal import stand
from airflow_batch_llm.stage.send.sweeping import Sweeper
from tests.core import endings, protocol_model
from tests.core.endings import faults
from tests.core.explore import SMALL, visit
from tests.core.protocol_model import Rules, explore

#: A world whose sweep ends early has fewer states than the others.
FEWER_STATES = {"pauses beyond the lease, swept meanwhile": 25_000}


@pytest.mark.parametrize("name", SMALL)
def test_no_order_of_events_buys_or_loses_a_shard_twice(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        print()
        states = visit(name, SMALL[name])

    assert states > FEWER_STATES.get(name, 30_000)


def test_pauses_beyond_the_lease_do_leave_a_second_batch_for_the_sweep() -> None:
    rules = SMALL["pauses beyond the lease"]

    assert any(len(world.batches) == 2 for world in explore(rules))


def test_the_exploration_notices_a_lease_that_is_given_up_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    hasty = replace(protocol_model.TERMS, list_lag_seconds=-120.0)
    monkeypatch.setattr(protocol_model, "TERMS", hasty)
    monkeypatch.setattr(protocol_model, "_ASKED", {})
    rules = Rules(attempts=2, ticks=1, crashes=0)

    assert any("second batch" in fault for world in explore(rules) for fault in faults(world, rules))


def test_the_exploration_notices_a_sweep_that_cancels_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sweeper, "cancel", lambda *_: True)
    monkeypatch.setattr(protocol_model, "_SWEPT", {})
    rules = replace(SMALL["pauses beyond the lease, swept meanwhile"], sweeps=0)

    assert any("runs after the sweep" in fault for world in explore(rules) for fault in faults(world, rules))


@pytest.mark.parametrize("recognisable", [True, False])
@pytest.mark.parametrize("name", ["pauses beyond the lease, swept meanwhile", "creations carried out twice"])
def test_the_exploration_notices_a_shard_that_nobody_sweeps(
    monkeypatch: pytest.MonkeyPatch, name: str, recognisable: bool
) -> None:
    monkeypatch.setattr(endings, "swept", lambda world, _: world)
    rules = replace(SMALL[name], sweeps=0, recognisable=recognisable)

    assert any("nobody knows" in fault for world in explore(rules) for fault in faults(world, rules))


def test_a_look_cancels_what_was_created_twice() -> None:
    rules = Rules(attempts=1, ticks=1, crashes=0, sweeps=1, repeats=1)

    assert any(
        stand(world.journal).spare and [batch.running for batch in world.batches].count(False) == 1
        for world in explore(rules)
    )


@pytest.mark.parametrize(
    "rules",
    [
        Rules(attempts=2, together=1, tick=240.0, ticks=1, crashes=0, sweeps=1, long_pauses=True),
        Rules(attempts=2, together=1, tick=240.0, ticks=1, crashes=0, sweeps=2, repeats=1),
    ],
)
def test_what_a_sweep_forgets_makes_no_difference_to_what_can_be_recorded(
    monkeypatch: pytest.MonkeyPatch, rules: Rules
) -> None:

    def reached() -> set[object]:
        return {
            (
                tuple((entry.kind, entry.batch_id) for entry in world.journal),
                world.batches,
                world.sweep is None,
            )
            for world in explore(rules)
        }

    forgetting = reached()
    monkeypatch.setattr(protocol_model, "forget", lambda answers, _: answers)
    monkeypatch.setattr(protocol_model, "_SWEPT", {})

    assert reached() == forgetting
