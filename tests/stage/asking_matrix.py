"""Workers that ask in real time, killed or frozen at random instants.

    python -m tests.stage.asking_matrix [--kills 24] [--freezes 8] [--seed 0] [provider …]

kills workers of each provider and freezes others beyond their lease, and prints how many rows were lost, paid twice and
counted. Another seed draws other instants.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from airflow_batch_llm.core.journal import CLOCK_SKEW_SECONDS
from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.core.realtime import LEASE_SECONDS
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.stage.send.asking import SEGMENT_ANSWERS
from tests.stage.processes import Job, Started
from tests.stage.world import Bench, World
from tests.store.servers import gcs_server
from tests.vendors import MODELS

ROWS, CONCURRENCY = 300, 10
CHANGES = {"way": "now", "max_concurrency": CONCURRENCY}


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """The figures of one disturbed run."""

    lost: int
    twice: int
    maybe_twice: int
    after_lease: int = 0
    """The requests that a frozen worker had paid after another had taken over."""


def paid(bench: Bench) -> int:
    """Return the requests in real time that the vendor charges."""
    return int(bench.world.ledger()["ways"].get("now", {"rows": 0})["rows"])


def started(bench: Bench, until: int) -> Started:
    """Start a worker, and wait until this many requests are paid or it has ended."""
    begun = Job(world=bench.world, changes=CHANGES).started()
    for _ in moments(60):
        if paid(bench) >= until or begun.process.exitcode is not None:
            return begun
    raise AssertionError("it did not come so far")


def killed(bench: Bench, until: int) -> Counts:
    """Kill a worker when this many requests are paid, and let another one finish."""
    bench.world.make_tickets(ROWS)
    first = started(bench, until)
    first.process.kill()
    first.process.join()
    return _finished(bench)


def frozen(bench: Bench, until: int) -> Counts:
    """Freeze a worker beyond its lease, let another one finish, and let the first one go on."""
    bench.world.make_tickets(ROWS)
    first = started(bench, until)
    pid = first.process.pid
    assert pid is not None
    if first.process.exitcode is None:
        os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(0.3)  # what is on its way arrives
        bench.world.sleep(LEASE_SECONDS + CLOCK_SKEW_SECONDS + 1)
        before = _finished(bench)
    finally:
        if first.process.exitcode is None:
            os.kill(pid, signal.SIGCONT)
    first.wait()
    after = _finished(bench)
    return Counts(
        lost=before.lost + after.lost,
        twice=after.twice,
        maybe_twice=after.maybe_twice,
        after_lease=after.twice - before.twice,
    )


def _finished(bench: Bench) -> Counts:
    report = bench.complete(**CHANGES).report
    answered = len(bench.world.answers())
    assert report.final.get(Outcome.SUCCEEDED, 0) == answered, report.final
    return Counts(lost=ROWS - answered, twice=paid(bench) - ROWS, maybe_twice=report.maybe_twice)


def judge(counts: Counts) -> None:
    """No row is lost, and no more is paid twice than the report says and the bound allows."""
    assert counts.lost == 0, counts
    assert 0 <= counts.twice <= counts.maybe_twice <= CONCURRENCY + SEGMENT_ANSWERS, counts
    assert counts.after_lease <= CONCURRENCY, counts


def moments(seconds: float) -> Iterator[None]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.02)


def main(providers: list[str], kills: int, freezes: int, seed: int) -> int:
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="asking-matrix-")))
        (scratch / "gcs").mkdir()
        storage = stack.enter_context(gcs_server(scratch / "gcs"))
        simulator = stack.enter_context(Simulator(batch_seconds=0, storage_url=storage))
        for provider in providers:
            environ = {"STORAGE_EMULATOR_HOST": storage} if provider == "vertex" else {}
            draw = random.Random(f"{provider}{seed or ''}")
            for disturb, times in ((killed, kills), (frozen, freezes)):
                found: list[Counts] = []
                for number in range(times):
                    folder = scratch / f"{provider}-{disturb.__name__}-{number}"
                    folder.mkdir()
                    world = World(folder=folder, provider_name=provider, url=simulator.url, environ=environ)
                    world.begin()
                    found.append(disturb(Bench(world), draw.randrange(ROWS)))
                    judge(found[-1])
                if not found:
                    continue
                print(
                    f"{provider}: {times} {disturb.__name__}, {sum(one.lost for one in found)} rows lost, "
                    f"{sum(one.twice for one in found)} paid twice (most {max(one.twice for one in found)}), "
                    f"{sum(one.maybe_twice for one in found)} counted, "
                    f"{sum(one.after_lease for one in found)} arrived after the lease",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("provider", nargs="*")
    for name, value in (("kills", 24), ("freezes", 8), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    wanted = parser.parse_args()
    sys.exit(main(wanted.provider or list(MODELS), wanted.kills, wanted.freezes, wanted.seed))
