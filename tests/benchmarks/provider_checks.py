"""500 batches watched by one event loop while each look takes a second: run `python -m tests.benchmarks.provider_checks`.

Prints the calls of a round and the longest time that the loop was blocked; the first round imports the SDK.
"""

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from airflow_batch_llm.providers import connect
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.testing.provider_bench import Bench
from tests.vendors import OVER_HTTPX, VENDORS

BATCHES = 500
LATENCY = 1.0
BEAT = 0.002


async def heartbeat(gaps: list[float]) -> None:
    """Note by how much each wake-up is late."""
    while True:
        before = time.perf_counter()
        await asyncio.sleep(BEAT)
        gaps.append(time.perf_counter() - before - BEAT)


async def watch(name: str, url: str, batch_ids: list[str]) -> None:
    provider = connect(name, Access(api_key="any", base_url=url))
    for round_number in range(1, 4):
        gaps: list[float] = []
        beating = asyncio.create_task(heartbeat(gaps))
        start = time.perf_counter()
        statuses = await provider.acheck(batch_ids)
        seconds = time.perf_counter() - start
        beating.cancel()
        assert len(statuses) == len(batch_ids)
        blocked = 1000 * max(gaps)
        print(
            f"{name:>9} round {round_number}: {seconds:5.2f} s, loop blocked at most {blocked:5.1f} ms",
            flush=True,
        )
    await provider.aclose()


def run(name: str, folder: Path) -> None:
    with Simulator(batch_seconds=3600.0) as simulator:
        url = VENDORS[name].base_url(simulator.url)
        provider = connect(name, Access(api_key="any", base_url=url))
        bench = Bench(provider=provider, simulator=simulator, folder=folder, model=VENDORS[name].model)
        ids = [bench.submit(bench.shard(1, number=number)) for number in range(BATCHES)]
        simulator.turn(latency=LATENCY)
        before = dict(bench.bill()["calls"])
        command = [sys.executable, "-m", __spec__.name, name, url]  # type: ignore[name-defined]
        subprocess.run(command, input="\n".join(ids), text=True, check=True)
        after = bench.bill()["calls"]
        calls = {call: (after[call] - before.get(call, 0)) / 3 for call in after}
        print(f"{name:>9} calls a round: { {call: n for call, n in calls.items() if n} }")
        provider.close()


if __name__ == "__main__":
    if len(sys.argv) == 3:
        asyncio.run(watch(*sys.argv[1:], sys.stdin.read().split()))
    else:
        with TemporaryDirectory() as folder:
            for name in OVER_HTTPX:
                run(name, Path(folder))
