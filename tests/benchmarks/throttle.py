"""Our throttle beside fixed numbers of requests at once, under a vendor's limits, all at the same time.

    python -m tests.benchmarks.throttle [provider] [seconds]

Each has a vendor of its own with 300 requests and 100,000 tokens a minute, whose first minute's allowance is used up;
what gathers while ours plans comes on top. A fixed number waits after a refusal as long as the vendor asks, or doubles
its pause. Prints the answers as a share of what the limits allow, and how often a request was refused.
"""

import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from airflow_batch_llm.core.model import Answered, Call, Way
from airflow_batch_llm.errors import Unavailable
from airflow_batch_llm.simulator.handle import Simulator
from tests.stage.world import Bench, World

LIMITS = {"requests_per_minute": 300, "tokens_per_minute": 100_000}
FIXED = (10, 100)
ANSWER_SECONDS = 1.0


@dataclass(slots=True)
class Watched:
    """A provider whose answers and refusals are counted."""

    inner: Any
    answers: list[float] = field(default_factory=list)
    refusals: Counter[bytes] = field(default_factory=Counter)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def answer(self, call: Any, line: bytes, way: Way) -> Answered:
        try:
            answer: Answered = await self.inner.answer(call, line, way)
        except Unavailable:
            self.refusals[line] += 1
            raise
        self.answers.append(time.monotonic())
        return answer


def ours(bench: Bench, seconds: float) -> Watched:
    """Ask by a run of ours, which ends at its timeout."""
    watched = Watched(bench.world.provider())
    run = bench.run(
        parts={"provider": watched}, way="now", timeout=seconds, max_tokens=200, min_success_ratio=0
    )
    bench.complete(run)
    return watched


def fixed(bench: Bench, seconds: float, number: int) -> Watched:
    """Ask the same lines with so many requests at once."""
    watched = Watched(bench.world.provider())
    asyncio.run(_fixed(watched, bench, time.monotonic() + seconds, number))
    return watched


async def _fixed(watched: Watched, bench: Bench, end: float, number: int) -> None:
    call = Call(model=bench.world.model, max_tokens=200)
    encoded = watched.encode(call)
    lines = (encoded.line(f"r00000000000-0001-{n:06d}", b'"ticket %d"' % n) for n in range(10**6))

    async def worker() -> None:
        for line in lines:
            pause = 1.0
            while time.monotonic() < end:
                try:
                    await watched.answer(call, line, Way.NOW)
                except Unavailable as refused:
                    await asyncio.sleep(min(refused.retry_after or pause, max(0.0, end - time.monotonic())))
                    pause *= 2
                else:
                    break
            if time.monotonic() >= end:
                return

    await asyncio.gather(*(worker() for _ in range(number)))
    await watched.aclose()


def main(provider: str, seconds: float) -> None:
    import_module("httpx2")  # several threads would import it at once
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="throttle-")))
        ways: dict[str, Callable[[Bench], Watched]] = {"ours": lambda bench: ours(bench, seconds)}
        for number in FIXED:
            ways[f"{number} at once"] = lambda bench, number=number: fixed(bench, seconds, number)  # type: ignore[misc]
        benches = {name: _bench(stack, scratch / name, provider) for name in ways}
        with ThreadPoolExecutor() as pool:
            for bench in benches.values():
                bench.world.simulator.turn(**LIMITS)
            running = {name: pool.submit(way, benches[name]) for name, way in ways.items()}
            for name, one in running.items():
                _say(f"{provider}, {name}", one.result())


def _bench(stack: ExitStack, folder: Path, provider: str) -> Bench:
    """A vendor of its own, whose allowance is used up: a bucket that was small stays nearly empty."""
    folder.mkdir()
    simulator = stack.enter_context(Simulator(batch_seconds=0))
    world = World(folder=folder, provider_name=provider, url=simulator.url)
    world.begin()
    world.make_tickets(3000)
    simulator.turn(answer_latency=ANSWER_SECONDS, **dict.fromkeys(LIMITS, 1))
    bench = Bench(world)
    asyncio.run(_touch(bench))
    return bench


async def _touch(bench: Bench) -> None:
    provider: Any = bench.world.provider()
    call = Call(model=bench.world.model, max_tokens=200)
    for _ in range(3):  # also refused, so that all that the SDK imports is there
        with suppress(Unavailable):
            line = provider.encode(call).line("r00000000000-0001-000000", b'"touch"')
            await provider.answer(call, line, Way.NOW)
    await provider.aclose()


def _say(name: str, watched: Watched) -> None:
    seconds = max(watched.answers) - min(watched.answers) + ANSWER_SECONDS
    most = LIMITS["requests_per_minute"] * seconds / 60
    refusals = sum(watched.refusals.values())
    print(
        f"{name:>24}: {len(watched.answers) / most:5.0%} of the limit, {refusals / len(watched.answers):6.2f} "
        f"refusals per answer, {max(watched.refusals.values(), default=0)} of one request at the most",
        flush=True,
    )


if __name__ == "__main__":
    main(sys.argv[1] if sys.argv[1:] else "anthropic", float(sys.argv[2]) if sys.argv[2:] else 60.0)
