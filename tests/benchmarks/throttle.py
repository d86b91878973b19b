"""Our throttle beside fixed numbers of requests at once, under a vendor's limits, all at the same time.

    python -m tests.benchmarks.throttle [--seconds 60] [provider …]

Each has a vendor of its own with 300 requests and 100,000 tokens a minute, which begins with nothing in store. An answer
takes a second, and every fiftieth request meets an overload. Short prompts meet the limit of requests, long ones that of
tokens. A fixed number waits after a refusal as long as the vendor asks, or doubles its pause. Prints, as lines of a table,
the answers as a share of what the limits allow, and how often a request was refused.
"""

import argparse
import asyncio
import os
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

import orjson

from airflow_batch_llm.core.model import Answered, Call, Way
from airflow_batch_llm.errors import Unavailable
from airflow_batch_llm.simulator.handle import Simulator
from tests.stage.world import Bench, World
from tests.store.servers import gcs_server

LIMITS = {"requests_per_minute": 300, "tokens_per_minute": 100_000}
FIXED = (10, 100)
ANSWER_SECONDS = 1.0
MAX_TOKENS = 200

#: The length of a prompt in characters, by the limit that it meets.
PROMPTS = {"requests": 40, "tokens": 2400}

ENDPOINTS = {"anthropic": "messages", "openai": "chat", "vertex": "generate"}
OVERLOADS = {"anthropic": 529, "openai": 503, "vertex": 503}

#: The tokens that a vendor's limit counts, from those of all answers: question, answer, and the number of requests.
COUNTED: dict[str, Callable[[int, int, int], int]] = {
    "anthropic": lambda given, _, __: given,
    "openai": lambda given, _, requests: max(given, MAX_TOKENS * requests),
    "vertex": lambda given, answered, _: given + answered,
}


@dataclass(slots=True)
class Watched:
    """A provider whose answers and refusals are counted. Its first request turns the limits on."""

    inner: Any
    bench: Bench
    opened: float = 0.0
    answers: list[float] = field(default_factory=list)
    refusals: Counter[bytes] = field(default_factory=Counter)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def answer(self, call: Any, line: bytes, way: Way) -> Answered:
        if not self.opened:
            with ThreadPoolExecutor() as pool:  # the other requests wait for it
                pool.submit(_open, self.bench).result()
            self.opened = time.monotonic()
        try:
            answer: Answered = await self.inner.answer(call, line, way)
        except Unavailable:
            self.refusals[line] += 1
            raise
        self.answers.append(time.monotonic())
        return answer


def ours(bench: Bench, seconds: float) -> Watched:
    """Ask by a run of the package, which ends at its timeout."""
    watched = Watched(bench.world.provider(), bench)
    run = bench.run(
        parts={"provider": watched}, way="now", timeout=seconds, max_tokens=MAX_TOKENS, min_success_ratio=0
    )
    bench.complete(run)
    return watched


def fixed(bench: Bench, seconds: float, number: int) -> Watched:
    """Ask the same lines with this many requests at once."""
    watched = Watched(bench.world.provider(), bench)
    asyncio.run(_fixed(watched, bench, time.monotonic() + seconds, number))
    return watched


async def _fixed(watched: Watched, bench: Bench, end: float, number: int) -> None:
    call = Call(model=bench.world.model, max_tokens=MAX_TOKENS)
    encoded = watched.encode(call)
    rows = bench.world.ask("SELECT subject, body FROM tickets")
    prompts = [orjson.dumps(f"Subject: {subject}\n{body}") for subject, body in rows]
    lines = (encoded.line(f"r00000000000-0001-{n:06d}", prompt) for n, prompt in enumerate(prompts))

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
    for limit, length in PROMPTS.items():
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="throttle-")))
            ways: dict[str, Callable[[Bench], Watched]] = {"ours": lambda bench: ours(bench, seconds)}
            for number in FIXED:
                ways[f"{number} at once"] = lambda bench, number=number: fixed(bench, seconds, number)  # type: ignore[misc]
            environ = _environ(stack, scratch, provider)
            benches = {name: _bench(stack, scratch / name, provider, environ, length) for name in ways}
            with ThreadPoolExecutor() as pool:
                running = {name: pool.submit(way, benches[name]) for name, way in ways.items()}
                for name, one in running.items():
                    _say(f"{provider} | {limit} | {name}", one.result())


def _environ(stack: ExitStack, scratch: Path, provider: str) -> dict[str, str]:
    if provider != "vertex":
        return {}
    (scratch / "gcs").mkdir()
    environ = {"STORAGE_EMULATOR_HOST": stack.enter_context(gcs_server(scratch / "gcs"))}
    os.environ.update(environ)
    return environ


def _bench(stack: ExitStack, folder: Path, provider: str, environ: dict[str, str], length: int) -> Bench:
    """Yield a separate vendor with a used-up allowance: a bucket that was small stays nearly empty."""
    folder.mkdir()
    simulator = stack.enter_context(Simulator(batch_seconds=0))
    world = World(folder=folder, provider_name=provider, url=simulator.url, environ=environ)
    world.begin()
    world.make_tickets(3000)
    world.ask(f"UPDATE tickets SET body = rpad(body || ' ', {length}, 'word ')")
    simulator.turn(answer_latency=ANSWER_SECONDS, **dict.fromkeys(LIMITS, 1))
    bench = Bench(world)
    for nth in range(50, 1000, 50):
        bench.fault(kind="status", endpoint=ENDPOINTS[provider], status=OVERLOADS[provider], nth=nth)
    asyncio.run(_touch(bench, 3))  # also refused, so that all that the SDK imports is there
    return bench


def _open(bench: Bench) -> None:
    """Turn the limits on. A bucket fills from when it was last looked at, so it is looked at first."""
    asyncio.run(_touch(bench, 1))
    bench.world.simulator.turn(**LIMITS)


async def _touch(bench: Bench, times: int) -> None:
    provider: Any = bench.world.provider()
    call = Call(model=bench.world.model, max_tokens=MAX_TOKENS)
    for _ in range(times):
        with suppress(Unavailable):
            line = provider.encode(call).line("r00000000000-0001-000000", b'"touch"')
            await provider.answer(call, line, Way.NOW)
    await provider.aclose()


def _say(title: str, watched: Watched) -> None:
    seconds, bench = max(watched.answers) - watched.opened, watched.bench
    bill = bench.world.ledger()["ways"]["now"]
    used = {
        "requests": len(watched.answers),
        "tokens": COUNTED[bench.world.provider_name](
            bill["tokens"]["input"], bill["tokens"]["output"], bill["rows"]
        ),
    }
    share = max(used[kind] / (LIMITS[f"{kind}_per_minute"] * seconds / 60) for kind in used)
    refusals = sum(watched.refusals.values())
    print(
        f"| {title} | {share:.0%} | {len(watched.answers)} | "
        f"{refusals / len(watched.answers):.2f} | {max(watched.refusals.values(), default=0)} |",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("provider", nargs="*")
    parser.add_argument("--seconds", type=float, default=60.0)
    wanted = parser.parse_args()
    print(
        "| provider | limit that is met | worker | of what it allows | answers | refusals per answer | of one request |"
    )
    print("|---|---|---|---|---|---|---|")
    for each in wanted.provider or list(ENDPOINTS):
        main(each, wanted.seconds)
