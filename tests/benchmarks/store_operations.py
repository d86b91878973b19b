"""Count a whole run's operations on its run folder, by step and by kind of record, for runs of several sizes.

    python -m tests.benchmarks.store_operations --shards 20 200 2000 --places 20 --delay-ms 30

Each look is one of a fresh worker that knows nothing, as in Airflow. A shard has one request. The simulator ends the
batches; a clock that is moved makes the waiting short. The run folder is in object storage, which is in memory here, and
each of its operations takes the delay.
"""

import argparse
import random
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import fsspec

from airflow_batch_llm.core.waiting import drive, waiting
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.stage.drive import Waiter
from airflow_batch_llm.stage.land.finishing import Finished
from airflow_batch_llm.store import Workspace
from airflow_batch_llm.store.remote import IN_MEMORY, ObjectStorage
from airflow_batch_llm.store.storage import Storage
from tests.stage.world import Bench, World, let_go

_VERBS = (
    "create",
    "read",
    "open_read",
    "put",
    "write",
    "delete",
    "delete_folder",
    "names",
    "folders",
)
_STEPS = ("plan", "send", "looks", "last look")
_KINDS = ("plans", "journal", "looks", "results", "landed", "registers", "other")
BATCH_SECONDS = 1200.0


@dataclass(slots=True)
class Counted:
    """A storage whose operations are counted by step and kind, and take some time.

    `in_turn` counts those of the main thread, each of which lets all other work wait.
    """

    storage: Storage
    delay: float = 0.0
    seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    in_turn: Counter[str] = field(default_factory=Counter)
    step: str = "plan"
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self.storage, name)
        return self._counting(verb) if name in _VERBS else verb

    def _counting(self, verb: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: str, *arguments: Any, **named: Any) -> Any:
            with self._lock:
                self.seen[self.step, _kind(path)] += 1
                self.in_turn[self.step] += threading.current_thread() is threading.main_thread()
            if self.delay:
                time.sleep(self.delay)
            return verb(path, *arguments, **named)

        return call

    def total(self, *, step: str = "", kind: str = "") -> int:
        """Return the operations of a step, or of a kind."""
        return sum(
            count
            for (in_step, of_kind), count in self.seen.items()
            if step in {"", in_step} and kind in {"", of_kind}
        )


def _kind(path: str) -> str:
    if path.startswith(".registers/"):
        return "registers"
    found = re.search(r"/g[0-9]+/([a-z]+)/", path)
    return found[1] if found is not None and found[1] in _KINDS else "other"


@contextmanager
def counted_bench(
    simulator: Simulator, folder: Path, shards: int, delay: float = 0.0
) -> Iterator[tuple[Bench, Counted]]:
    """Yield a world whose workspace counts, with a table of one row per shard."""
    world = World(folder=folder, provider_name="openai", url=simulator.url)
    world.begin()
    world.make_tickets(shards)
    uri = f"memory://{folder.name}"
    memory = fsspec.filesystem("memory")
    counted = Counted(ObjectStorage(memory, uri, IN_MEMORY), delay)
    bench = Bench(world)
    bench.workspace = Workspace(uri, counted)  # type: ignore[arg-type]
    try:
        yield bench, counted
    finally:
        memory.rm(folder.name, recursive=True)


class Looks(NamedTuple):
    """The looks of a run: their number, the seconds in them, and those of the longest."""

    looks: int
    seconds: float
    longest: float


def count(bench: Bench, counted: Counted, places: int) -> Looks:
    """Drive a run by fresh workers."""
    arguments: dict[str, Any] = {"rows_per_batch": 1, "max_active_batches": places}
    run = bench.run(**arguments)
    run.generation()
    let_go(run)
    counted.step, looks, spent, longest = "send", 0, 0.0, 0.0
    while True:
        before, began = counted.seen.copy(), time.perf_counter()
        run = bench.run(**arguments)
        state = run.advance()
        took = time.perf_counter() - began
        looks, spent, longest = looks + 1, spent + took, max(longest, took)
        if isinstance(state, Finished):
            for (_, kind), operations in (counted.seen - before).items():
                counted.seen[counted.step, kind] -= operations
                counted.seen["last look", kind] += operations
            let_go(run)
            return Looks(looks, spent, longest)
        counted.step = "looks"
        waiter = Waiter(parts=run.parts, sleep=bench.world.sleep)
        drive(waiting(waiter.noting(state), run.parts.clock, random.random), waiter.perform)
        let_go(run)


#: The goal, and the count before looks left records for the next one (docs/decisions/0019).
_GOAL = 15
_BEFORE = "before: 124 operations for each of 40 shards, and 366 for each of 200"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, nargs="+", default=[20, 200, 2000])
    parser.add_argument("--places", type=int, nargs="+", default=[100])
    parser.add_argument("--delay-ms", type=float, default=0.0, help="the time that each operation takes")
    chosen = parser.parse_args()
    head = "".join(f"{name:>10}" for name in (*_STEPS, *_KINDS, "in turn"))
    print(
        f"{'shards':>7}{'places':>8}{'looks':>7}{'all':>8}{head}{'s a look':>10}{'longest':>9}   (operations per shard)"
    )
    print(f"goal: at most {_GOAL} operations for each shard, whatever their number; {_BEFORE}")
    with Simulator(batch_seconds=BATCH_SECONDS) as simulator:
        for places in chosen.places:
            for shards in chosen.shards:
                with (
                    tempfile.TemporaryDirectory() as folder,
                    counted_bench(simulator, Path(folder), shards, chosen.delay_ms / 1000) as (
                        bench,
                        counted,
                    ),
                ):
                    looks, seconds, longest = count(bench, counted, places)
                    numbers = [counted.total(step=step) for step in _STEPS]
                    numbers += [counted.total(kind=kind) for kind in _KINDS] + [counted.in_turn.total()]
                    shown = "".join(f"{number / shards:>10.1f}" for number in numbers)
                    missed = "" if counted.total() <= _GOAL * shards else "   the goal is missed"
                    print(
                        f"{shards:>7,}{places:>8,}{looks:>7,}{counted.total() / shards:>8.1f}{shown}"
                        f"{seconds / looks:>10.1f}{longest:>9.1f}{missed}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
