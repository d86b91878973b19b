"""The submission protocol and asking in real time, explored to their ends.

    python -m tests.core.explore

takes minutes and some gigabytes; the suite explores smaller worlds. Prints how many states each world has, and stops at
the first one in which a row would be paid twice or lost, or a batch would run on that nobody knows of.
"""

import sys
import time

from tests.core import asking_model, reservation_model
from tests.core.endings import faults
from tests.core.protocol_model import Rules, explore

SMALL = {
    "three attempts": Rules(attempts=3, tick=120.0, ticks=2, crashes=2),
    "three attempts, not recognisable": Rules(attempts=3, tick=120.0, ticks=2, crashes=2, recognisable=False),
    "pauses beyond the lease": Rules(attempts=2, tick=120.0, ticks=2, crashes=1, long_pauses=True),
    "pauses beyond the lease, swept meanwhile": Rules(
        attempts=2, together=1, tick=240.0, ticks=1, crashes=2, sweeps=2, long_pauses=True
    ),
    "pauses beyond the lease, swept meanwhile, not recognisable": Rules(
        attempts=2, tick=240.0, ticks=1, crashes=0, sweeps=1, long_pauses=True, recognisable=False
    ),
    "creations carried out twice": Rules(attempts=2, tick=240.0, ticks=1, crashes=1, repeats=1),
    "creations carried out twice, not recognisable": Rules(
        attempts=2, tick=120.0, ticks=2, crashes=1, repeats=2, recognisable=False
    ),
    "creations carried out twice, looked at meanwhile": Rules(
        attempts=2, together=1, tick=240.0, ticks=1, crashes=1, sweeps=2, repeats=1
    ),
}
LARGE = {
    "two attempts, by the half minute of the lag": Rules(attempts=2, tick=60.0, ticks=5, crashes=1),
    "three attempts": Rules(attempts=3, tick=120.0, ticks=3, crashes=2),
    "three attempts, not recognisable": Rules(attempts=3, tick=120.0, ticks=3, crashes=2, recognisable=False),
    "pauses beyond the lease": Rules(attempts=2, tick=240.0, ticks=2, crashes=1, long_pauses=True),
    "pauses beyond the lease, swept meanwhile": Rules(
        attempts=2, tick=240.0, ticks=1, crashes=1, sweeps=1, long_pauses=True
    ),
    "pauses beyond the lease, swept meanwhile, not recognisable": Rules(
        attempts=2, tick=240.0, ticks=2, crashes=1, sweeps=1, long_pauses=True, recognisable=False
    ),
    "creations carried out twice": Rules(attempts=3, tick=120.0, ticks=2, crashes=1, repeats=2),
    "creations carried out twice, looked at meanwhile": Rules(
        attempts=2, tick=240.0, ticks=1, crashes=1, sweeps=1, repeats=1
    ),
    "creations carried out twice, pauses beyond the lease, looked at meanwhile": Rules(
        attempts=2, together=1, tick=240.0, ticks=1, crashes=1, sweeps=1, long_pauses=True, repeats=1
    ),
    "three attempts, one after the other, pauses beyond the lease, swept meanwhile": Rules(
        attempts=3, together=1, tick=240.0, ticks=2, crashes=2, sweeps=1, long_pauses=True
    ),
}

PLANNERS = {
    "two planners, one dies, with renewals": reservation_model.Rules(
        runs=("a", "b"), crashes=1, renewals=True
    ),
    "three planners": reservation_model.Rules(runs=("a", "b", "c"), lates=0),
    "two attempts at one run, and another run": reservation_model.Rules(runs=("a", "a", "b"), lates=0),
    "two planners, one dies, four times taken for dead": reservation_model.Rules(
        runs=("a", "b"), crashes=1, lates=4
    ),
}


ASKING_SMALL = {
    "two workers ask one request, and an answer is lost": asking_model.Rules(requests=1, losses=1),
    "three workers, one after the other's lease": asking_model.Rules(requests=1, workers=3, crashes=0),
    "two workers, one of which is asked to end": asking_model.Rules(requests=1, partings=1),
}
ASKING = {
    "two workers ask two requests, one at a time": asking_model.Rules(),
    "two workers ask two requests together": asking_model.Rules(bound=2),
    "two workers, an answer is lost": asking_model.Rules(bound=2, losses=1),
    "two workers, one is asked to end": asking_model.Rules(bound=2, partings=1),
    "three workers ask one request, two die": asking_model.Rules(requests=1, workers=3, crashes=2, ticks=4),
}


def visit_asking(name: str, rules: asking_model.Rules) -> int:
    """Explore workers that ask one shard in real time; returns how many states there are."""
    began, states = time.monotonic(), 0
    for world in asking_model.explore(rules):
        states += 1
        for fault in asking_model.faults(world, rules):
            raise AssertionError(f"{name}: {fault}: {world}")
    print(f"{name}: {states:,} states in {time.monotonic() - began:.0f} s", flush=True)
    return states


def visit_planners(name: str, rules: reservation_model.Rules) -> int:
    """Explore the planners on one target; returns how many states there are."""
    began, states = time.monotonic(), 0
    for world in reservation_model.explore(rules):
        states += 1
        if world.bought > 1:
            raise AssertionError(f"{name}: a row is bought twice: {world}")
    print(f"{name}: {states:,} states in {time.monotonic() - began:.0f} s", flush=True)
    return states


def visit(name: str, rules: Rules) -> int:
    """Explore a world; returns how many states it has."""
    began, states = time.monotonic(), 0
    for world in explore(rules):
        states += 1
        for fault in faults(world, rules):
            raise AssertionError(f"{name}: {fault}: {world}")
    print(f"{name}: {states:,} states in {time.monotonic() - began:.0f} s", flush=True)
    return states


def main() -> int:
    states = sum(visit_planners(name, rules) for name, rules in PLANNERS.items())
    states += sum(visit_asking(name, rules) for name, rules in ASKING.items())
    states += sum(visit(name, rules) for name, rules in LARGE.items())
    print(f"{states:,} states, no fault in any")
    return 0


if __name__ == "__main__":
    sys.exit(main())
