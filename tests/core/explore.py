"""The submission protocol, explored to its end.

    python -m tests.core.explore

takes minutes and some gigabytes; the suite explores smaller worlds. Prints how many states each world has, and stops at
the first one in which a row would be paid twice or lost.
"""

import sys
import time
from collections.abc import Iterator

from airflow_batch_llm.core.journal import stand
from tests.core.protocol_model import Rules, World, explore, quiet, settled

SMALL = {
    "three attempts": Rules(attempts=3, tick=120.0, ticks=2, crashes=2),
    "three attempts, not recognisable": Rules(attempts=3, tick=120.0, ticks=2, crashes=2, recognisable=False),
    "pauses beyond the lease": Rules(attempts=2, tick=120.0, ticks=2, crashes=1, long_pauses=True),
}
LARGE = {
    "two attempts, by the half minute of the lag": Rules(attempts=2, tick=60.0, ticks=5, crashes=1),
    "three attempts": Rules(attempts=3, tick=120.0, ticks=3, crashes=2),
    "three attempts, not recognisable": Rules(attempts=3, tick=120.0, ticks=3, crashes=2, recognisable=False),
    "pauses beyond the lease": Rules(attempts=2, tick=240.0, ticks=2, crashes=1, long_pauses=True),
}


def faults(world: World, rules: Rules) -> Iterator[str]:
    """What is wrong with a world, in which attempts may still be at work."""
    if not rules.long_pauses and len(world.batches) > 1:
        yield "a second batch was bought"
    if not quiet(world):
        return
    calm = settled(world, rules)
    standing = stand(calm.journal)
    if standing.batch is None:
        yield "no batch is recorded in the end"
        return
    running = {batch.id for batch in calm.batches if batch.running}
    if rules.recognisable and standing.batch.batch_id not in running:
        yield "the recorded batch was cancelled"
    if not rules.long_pauses and {batch.id for batch in calm.batches} != {standing.batch.batch_id}:
        yield "a batch besides the recorded one exists"
    if running - {standing.batch.batch_id} and not standing.loose:
        yield "a stray batch runs, and nothing tells the sweep to look for it"


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
    print(f"{sum(visit(name, rules) for name, rules in LARGE.items()):,} states, no row paid twice")
    return 0


if __name__ == "__main__":
    sys.exit(main())
