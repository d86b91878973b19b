"""Deferred tasks of one batch each in one event loop, all with one connection, beside one client for each task.

    python -m tests.benchmarks.poller --tasks 50 200 1000 3000 --providers openai anthropic vertex --apart-up-to 200

A look takes a second at the provider. Printed: seconds until each task has had its first look, calls until then, memory
beside that of a loop with no task, file descriptors, and the longest time that the loop was blocked: by the clock, in
which a busy machine counts, and by the CPU that the loop itself has used meanwhile. `restart`: the same in a new process
that has imported no SDK and has no client. `new key`: from the moment at which the provider refuses the key until each
task has been looked at by a client with the new one, where tasks look every five seconds.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import httpx

from airflow_batch_llm.providers import connect
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.providers.vertex.jobs import labels
from airflow_batch_llm.simulator.handle import Simulator
from airflow_batch_llm.testing.provider_bench import Bench
from tests.store.servers import BUCKET, gcs_server
from tests.vendors import VENDORS

if TYPE_CHECKING:
    from airflow_batch_llm.triggers.llm_batch import LLMBatchTrigger

SHARED, RESTART, NEW_KEY, APART = "one poller", "restart", "new key", "a client each"
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


async def watch(name: str, scene: str, url: str, created: Mapping[str, float]) -> dict[str, float]:
    """Return the figures of triggers for these batches, each with the time of its creation.

    The SDK has been imported before, and a look been made, except after a restart.
    """
    from airflow_batch_llm.core.waiting import Check, Reply, Wish
    from airflow_batch_llm.triggers.llm_batch import LLMBatchTrigger

    shared, pause = scene != APART, 5.0 if scene == NEW_KEY else 600.0
    batch_ids = list(created)

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
        watch = {
            "batch_ids": [batch_id],
            "since": created[batch_id],
            "deadline": now + 86_400,
            "poll_interval": pause,
        }
        return Watched(model_id=f"{name}:{VENDORS[name].model}", llm_conn_id="llm", watch=watch)

    if scene != RESTART:
        first = made(batch_ids[0])
        await first._polled().check(batch_ids[:1], 60, since=time.time())
        await first.cleanup()
    gc.collect()  # what Airflow's import has left is looked at sometime, and takes a tenth of a second
    before, late, used = _rss(), list[float](), list[float]()
    beating = asyncio.create_task(heartbeat(late, used))
    began = time.perf_counter()
    triggers = [made(batch_id) for batch_id in batch_ids]
    tasks = await _started(triggers)
    await _waited(done)
    if scene == NEW_KEY:
        await asyncio.to_thread(_take_new_key, name, url)
        looked.clear()
        done.clear()
        began = time.perf_counter()
        await _waited(done)
    seconds = time.perf_counter() - began
    figures = {
        "files": _open_files(),
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


async def _started(triggers: Sequence["LLMBatchTrigger"]) -> list[asyncio.Task[None]]:
    async def ended(trigger: "LLMBatchTrigger") -> None:
        async for _ in trigger.run():
            return

    tasks = []
    for number, trigger in enumerate(triggers):
        tasks.append(asyncio.create_task(ended(trigger)))
        if number % STARTED_AT_ONCE == 0:
            await asyncio.sleep(0)
    return tasks


async def _waited(done: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(done.wait(), PATIENCE_SECONDS)


def _open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _rss() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def _take_new_key(name: str, url: str) -> None:
    """Let the provider refuse the key once. The connection holds another one from now on."""
    fault = {"provider": name, "kind": "status", "endpoint": "list", "status": 401}
    httpx.post(f"{url}/control/faults", json=fault).raise_for_status()
    connection = json.loads(os.environ["AIRFLOW_CONN_LLM"])
    os.environ["AIRFLOW_CONN_LLM"] = json.dumps({**connection, "password": "second"})


def _measure(name: str, folder: Path, tasks: int, *, apart: bool) -> None:
    with ExitStack() as started:
        env = {}
        if name == "vertex":
            env["STORAGE_EMULATOR_HOST"] = started.enter_context(gcs_server(folder))
            os.environ |= env
        simulator = started.enter_context(Simulator(batch_seconds=86_000.0, env=env))
        url = VENDORS[name].base_url(simulator.url)
        provider = connect(name, Access(api_key="any", base_url=url, options=_options(name)))
        bench = Bench(provider=provider, simulator=simulator, folder=folder, model=VENDORS[name].model)
        if name == "vertex":
            created = _vertex_jobs(bench, url, tasks)
        else:
            created = {bench.submit(bench.shard(1, number=number)): time.time() for number in range(tasks)}
        provider.close()
        simulator.turn(latency=LATENCY)
        for scene in (SHARED, RESTART, NEW_KEY, APART)[: 4 if apart else 3]:
            before = sum(bench.bill()["calls"].values())
            figures = _child(name, scene, simulator.url, created)
            calls = sum(bench.bill()["calls"].values()) - before
            print(
                f"{name:>10}{tasks:>7,}  {scene:<14}{int(figures['looked']):>7,} looked at in"
                f" {figures['seconds']:>6.1f} s{calls:>7,} calls{figures['mb']:>7.0f} MB{int(figures['files']):>7,} files"
                f"  blocked {figures['blocked']:>6.0f} ms, CPU {figures['used']:>6.0f} ms",
                flush=True,
            )


def _options(name: str) -> dict[str, str]:
    if name != "vertex":
        return {}
    return {"project": "test-project", "location": "global", "staging": f"gs://{BUCKET}/staging"}


def _vertex_jobs(bench: Bench, url: str, tasks: int) -> dict[str, float]:
    """Create jobs that all read one file: the SDK would take a minute for a thousand."""
    shard = bench.shard(1)
    upload = bench.provider.upload(shard)
    body = {
        "displayName": shard.token,
        "model": f"publishers/google/models/{VENDORS['vertex'].model}",
        "labels": labels(shard.token),
        "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": [upload]}},
        "outputConfig": {
            "predictionsFormat": "jsonl",
            "gcsDestination": {"outputUriPrefix": f"{upload}-out"},
        },
    }
    path = f"{url}/v1/projects/test-project/locations/global/batchPredictionJobs"
    with httpx.Client(headers={"Authorization": "Bearer any"}) as client:
        return {
            client.post(path, json=body).raise_for_status().json()["name"]: time.time() for _ in range(tasks)
        }


def _child(name: str, scene: str, url: str, created: Mapping[str, float]) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.poller", "--child", name, scene, url]
    base_url = VENDORS[name].base_url(url)
    extra = {**_options(name), "base_url": base_url} if name == "vertex" else {}
    kind = "google_cloud_platform" if name == "vertex" else "generic"
    connection = json.dumps({"conn_type": kind, "host": base_url, "password": "any", "extra": extra})
    done = subprocess.run(
        command,
        input=json.dumps(created),
        text=True,
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, "AIRFLOW_CONN_LLM": connection, "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING"},
    )
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--providers", nargs="+", default=list(VENDORS), choices=list(VENDORS))
    parser.add_argument("--apart-up-to", type=int, default=200, help="tasks with a client each, at the most")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child is not None:
        name, scene, url = chosen.child
        print(json.dumps(asyncio.run(watch(name, scene, url, json.load(sys.stdin)))))
        return
    for name in chosen.providers:
        for tasks in chosen.tasks:
            with TemporaryDirectory() as folder:
                _measure(name, Path(folder), tasks, apart=tasks <= chosen.apart_up_to)


if __name__ == "__main__":
    main()
