"""The submission protocol in every order in which attempts can meet, crash, freeze and lose answers."""

from dataclasses import replace

import pytest

from tests.core import protocol_model
from tests.core.explore import SMALL, faults, visit
from tests.core.protocol_model import Rules, explore


@pytest.mark.parametrize("name", SMALL)
def test_no_order_of_events_buys_or_loses_a_shard_twice(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        print()
        states = visit(name, SMALL[name])

    assert states > 30_000


def test_pauses_beyond_the_lease_do_leave_a_second_batch_for_the_sweep() -> None:
    rules = SMALL["pauses beyond the lease"]

    assert any(len(world.batches) == 2 for world in explore(rules))


def test_the_exploration_notices_a_lease_that_is_given_up_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    hasty = replace(protocol_model.TERMS, list_lag_seconds=-120.0)
    monkeypatch.setattr(protocol_model, "TERMS", hasty)
    monkeypatch.setattr(protocol_model, "_ASKED", {})
    rules = Rules(attempts=2, ticks=1, crashes=0)

    assert any("second batch" in fault for world in explore(rules) for fault in faults(world, rules))
