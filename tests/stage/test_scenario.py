"""The scenario of `make scenario` at a small size: the bills are right at every step, and the goals are met."""

from tests.benchmarks.scenario import later_nights, measure, misses, steps, verdicts
from tests.stage.world import Bench

ROWS = 200


def test_each_step_costs_what_the_ledger_says_and_the_last_one_little(anthropic: Bench) -> None:
    world, everything = anthropic.world, steps("anthropic")
    first, last = everything[0], everything[-1]

    nights = [measure(world, step, ROWS, nights=2) for step in (first, last)]

    assert first.change == {"way": "now"}
    assert [(one.dollars > 0, abs(one.dollars - one.billed) < 1e-6) for both in nights for one in both] == [
        (True, True)
    ] * 4
    found = {"anthropic": nights}
    ends = [(is_met, told) for is_met, told in verdicts(found) if "estimates" not in told]
    assert len(ends) == 3
    assert all(is_met for is_met, _ in ends), ends
    assert abs(nights[0][1].off) < 0.1
    wanted = (1, len(everything))
    assert len([*misses(found, wanted)]) == 2 + sum(not second.is_close for _, second in nights)
    assert f"| {nights[0][1].off:+.1%} |" in [*later_nights(found, wanted)][2]
