"""Peak memory while results are read and decoded: run `python -m tests.benchmarks.provider_results`.

Each reading is a process of its own, so that its peak is its own.
"""

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

ROWS = (10_000, 100_000)


def peak_kilobytes() -> int:
    """The peak of this program alone; `ru_maxrss` would begin with that of the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))


def read(name: str, url: str, batch_ids: list[str]) -> None:
    provider = connect(name, Access(api_key="any", base_url=url))
    provider.check(batch_ids)  # the SDK is in memory from here on
    start, count = time.perf_counter(), 0
    for batch_id in batch_ids:
        for line in provider.results(batch_id):
            provider.decode(line)
            count += 1
    seconds = time.perf_counter() - start
    peak = peak_kilobytes() / 1024
    print(f"{name:>9} {count:>7,} results: peak {peak:6.1f} MB, {count / seconds:>7,.0f} rows/s", flush=True)


def run(name: str, folder: Path) -> None:
    with Simulator(batch_seconds=0.0) as simulator:
        url = VENDORS[name].base_url(simulator.url)
        provider = connect(name, Access(api_key="any", base_url=url))
        bench = Bench(provider=provider, simulator=simulator, folder=folder, model=VENDORS[name].model)
        for rows in ROWS:
            size = min(rows, provider.limits.max_requests)
            prompts = [f"{n} {'word ' * 60}" for n in range(size)]
            ids = [bench.submit(bench.shard(prompts, number=rows + part)) for part in range(rows // size)]
            for batch_id in ids:
                while bench.ended(batch_id).finished != size:
                    pass
            command = [sys.executable, "-m", __spec__.name, name, url, *ids]  # type: ignore[name-defined]
            subprocess.run(command, check=True)
        provider.close()


if __name__ == "__main__":
    if len(sys.argv) > 3:
        read(sys.argv[1], sys.argv[2], sys.argv[3:])
    else:
        with TemporaryDirectory() as folder:
            for name in OVER_HTTPX:
                run(name, Path(folder))
