"""Peak memory of a worker that asks in real time, by the number of rows.

    python -m tests.benchmarks.asking_memory [--provider anthropic] [rows …]

Each number of rows has a worker process and a simulator without limits of its own. Prints, as lines of a table, the memory
when the first request is sent, the most while the requests are asked, the most until the report, the requests per row,
and the requests in a second.
"""

import argparse
import multiprocessing
import re
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.run import Run
from tests.stage.world import Bench, World, stage

NAME = "dag/task/run"
ROWS = (10_000, 30_000, 100_000)
CONCURRENCY = 100
_MEGABYTE = 2**10  # in kilobytes


def _memory() -> int:
    """Return the memory of this process in kilobytes."""
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])


@dataclass(slots=True)
class _Peaks:
    """Watches the memory of this process, before, while and after it asks."""

    world: World
    before: int = 0
    asking: int = 0
    whole: int = 0
    is_over: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        folder = RunFolder(workspace=self.world.workspace(), run=NAME)
        has_ended = False
        while not self.is_over.wait(0.2):
            now = _memory()
            self.whole = max(self.whole, now)
            has_ended = has_ended or (self.before > 0 and _has_ended(folder))
            if self.before and not has_ended:
                self.asking = max(self.asking, now)

    def told(self, line: str) -> None:
        if "asked in real time" in line and not self.before:
            self.before = _memory()


def _has_ended(folder: RunFolder) -> bool:
    return folder.journal(1)[-1].kind in ("ended", "staged")


def _work(world: World, answer: Connection) -> None:
    peaks = _Peaks(world)
    watching = threading.Thread(target=peaks.watch)
    watching.start()
    run = Run(
        stage=stage(world, way="now", max_concurrency=CONCURRENCY, max_cost_usd=None, rows_per_batch=100_000),
        parts=world.parts(log=peaks.told),
        name=NAME,
        max_tries=0,
    )
    began = time.monotonic()
    Bench(world).complete(run)
    peaks.is_over.set()
    watching.join()
    answer.send((peaks.before, peaks.asking, peaks.whole, time.monotonic() - began))


def main(provider: str, rows: int) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="asking-memory-")))
        simulator = stack.enter_context(Simulator(batch_seconds=0))
        world = World(folder=folder, provider_name=provider, url=simulator.url)
        world.begin()
        world.make_tickets(rows)
        ours, theirs = multiprocessing.Pipe()
        worker = multiprocessing.get_context("spawn").Process(target=_work, args=(world, theirs))
        worker.start()
        before, asking, whole, seconds = ours.recv()
        worker.join()
        paid = world.ledger()["rows"]["charged"]
        sizes = " | ".join(f"{size / _MEGABYTE:.0f}" for size in (before, asking, whole))
        print(f"| {rows:,} | {sizes} | {paid / rows:.4f} | {rows / seconds:.0f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", nargs="*", type=int)
    parser.add_argument("--provider", default="anthropic")
    wanted = parser.parse_args()
    print("| rows | MB before | MB while asking | MB until the report | requests per row | rows per second |")
    print("|---|---|---|---|---|---|")
    for number in wanted.rows or ROWS:
        main(wanted.provider, number)
