"""Deferred tasks of one batch each in one event loop, all with one connection, beside one client for each task.

    python -m tests.benchmarks.poller --tasks 50 200 1000 --providers openai anthropic

A look takes a second at the provider. Printed: seconds until each task has had its first look, calls until then, memory
beside that of a loop with no task, and the longest time that the loop was blocked: by the clock, in which a busy machine
counts, and by the CPU that the loop itself has used meanwhile.
"""

import argparse
import asyncio
import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from airflow_batch_llm.providers import connect
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.testing.provider_bench import Bench
from tests.vendors import OVER_HTTPX, VENDORS

LATENCY, BEAT = 1.0, 0.002
STARTED_AT_ONCE = 10
PATIENCE_SECONDS = 240.0


async def heartbeat(late: list[float], used: list[float]) -> None:
    """Note by how much each wake-up is late, and the CPU that was used since the one before."""
    while True:
        before, cpu = time.perf_counter(), time.thread_time()
        await asyncio.sleep(BEAT)
        late.append(time.perf_counter() - before - BEAT)
        used.append(time.thread_time() - cpu)


async def watch(name: str, batch_ids: list[str], *, shared: bool) -> dict[str, float]:
    """Return the figures of triggers for these batches. The SDK has been imported before, and a look been made."""
    from airflow_batch_llm.core.waiting import Check, Reply, Wish
    from airflow_batch_llm.triggers.llm_batch import LLMBatchTrigger

    looked: set[int] = set()
    done = asyncio.Event()

    class Watched(LLMBatchTrigger):
        async def _perform(self, wish: Wish) -> Reply:
            reply = await super()._perform(wish)
            if isinstance(wish, Check):
                looked.add(id(self))
                if len(looked) == len(batch_ids):
                    done.set()
            return reply

        def _key(self) -> str:
            return super()._key() if shared else f"{super()._key()}{id(self)}"

    def made(batch_id: str) -> Watched:
        now = time.time()
        watch = {"batch_ids": [batch_id], "since": now - 7200, "deadline": now + 86_400}
        return Watched(model_id=f"{name}:{VENDORS[name].model}", llm_conn_id="llm", watch=watch)

    async def ended(trigger: Watched) -> None:
        async for _ in trigger.run():
            return

    first = made(batch_ids[0])
    await first._polled().check(batch_ids[:1], 60)
    await first.cleanup()
    before, late, used = _rss(), list[float](), list[float]()
    beating = asyncio.create_task(heartbeat(late, used))
    began = time.perf_counter()
    triggers = [made(batch_id) for batch_id in batch_ids]
    tasks = []
    for number, trigger in enumerate(triggers):
        tasks.append(asyncio.create_task(ended(trigger)))
        if number % STARTED_AT_ONCE == 0:
            await asyncio.sleep(0)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(done.wait(), PATIENCE_SECONDS)
    seconds = time.perf_counter() - began
    figures = {
        "looked": len(looked),
        "seconds": seconds,
        "mb": _rss() - before,
        "blocked": 1000 * max(late),
        "used": 1000 * max(used),
    }
    beating.cancel()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, beating, return_exceptions=True)
    for trigger in triggers:
        await trigger.cleanup()
    return figures


def _rss() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def _measure(name: str, folder: Path, tasks: int) -> None:
    with Simulator(batch_seconds=86_000.0) as simulator:
        url = VENDORS[name].base_url(simulator.url)
        provider = connect(name, Access(api_key="any", base_url=url))
        bench = Bench(provider=provider, simulator=simulator, folder=folder, model=VENDORS[name].model)
        ids = [bench.submit(bench.shard(1, number=number)) for number in range(tasks)]
        provider.close()
        simulator.turn(latency=LATENCY)
        for shared in (True, False):
            before = sum(bench.bill()["calls"].values())
            figures = _child(name, url, ids, shared=shared)
            calls = sum(bench.bill()["calls"].values()) - before
            who = "one poller" if shared else "a client each"
            print(
                f"{name:>10}{tasks:>7,}  {who:<14}{int(figures['looked']):>7,} looked at in {figures['seconds']:>6.1f} s"
                f"{calls:>7,} calls{figures['mb']:>7.0f} MB  blocked {figures['blocked']:>6.0f} ms,"
                f" CPU {figures['used']:>6.0f} ms",
                flush=True,
            )


def _child(name: str, url: str, ids: list[str], *, shared: bool) -> dict[str, Any]:
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.benchmarks.poller",
        "--child",
        name,
        str(int(shared)),
    ]
    connection = json.dumps({"conn_type": "generic", "host": url, "password": "any"})
    done = subprocess.run(
        command,
        input="\n".join(ids),
        text=True,
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, "AIRFLOW_CONN_LLM": connection, "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING"},
    )
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--providers", nargs="+", default=list(OVER_HTTPX), choices=OVER_HTTPX)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child is not None:
        name, shared = chosen.child
        print(json.dumps(asyncio.run(watch(name, sys.stdin.read().split(), shared=bool(int(shared))))))
        return
    for name in chosen.providers:
        for tasks in chosen.tasks:
            with TemporaryDirectory() as folder:
                _measure(name, Path(folder), tasks)


if __name__ == "__main__":
    main()
