"""One provider adapter on one server, and the errands that every test of it runs."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import orjson

from airflow_batch_llm.core.model import (
    BatchStatus,
    Call,
    Lease,
    Outcome,
    Result,
    Search,
    ShardFile,
)
from airflow_batch_llm.core.request import custom_id, shard_token
from airflow_batch_llm.providers.base import Provider


class ProviderServer(Protocol):
    """Speaks a vendor's batch API on loopback, and does what a test asks for.

    The server returns the results of a batch in another order than its requests. A batch ends at once, unless a fault
    holds it. The server listens at `url` from `start` on; after `kill` it does not, until the next `start`.
    """

    @property
    def url(self) -> str:
        """The root of the vendor's API, without a path."""

    def start(self) -> object:
        """Listen, at the same URL as before."""

    def kill(self) -> None:
        """Stop at once, as a crash would."""

    def reset(self) -> None:
        """Forget batches, files, faults, knobs and the ledger. The clock may stay advanced."""

    def fault(self, **fault: Any) -> object:
        """Set a fault; the fields are below. `kind` says what happens, `provider` may be ignored.

        To a call of an `endpoint` (upload, create, retrieve, list, cancel, the download's name, or any): "drop", "status"
        (`status`, `code`, `retry_after`), "delay" (`seconds`), "body" (`text`, `content_type`), "bomb" (`bytes` of one
        letter as gzip), "cut" (the answer breaks off after this many `lines`). It strikes the `nth` such call (default: the
        first) and `times` calls (default 1; None: all), before or after the call takes `effect` (default "before").

        To the next batch: "hold" (it runs until a test ends it), "expire" (its window closes; `share` of its rows ran).

        To `rows` by position, or to `every` n-th row, of the next batch: the keys of `ReadsAnswers.outcomes`, "missing",
        "bad_line" (the line is no JSON), "duplicated" (the line comes twice), "odd" (the answer holds U+2028).
        """

    def clear_faults(self) -> None:
        """Forget the faults of calls and of batches to come."""

    def turn(self, **knobs: Any) -> object:
        """Set `list_lag` (seconds until a batch is listed) or `cancelled_share` (of rows that ran before a cancel).

        `cached_tokens`, `cache_write_tokens` and `reasoning_tokens` are what each answer reports. A server leaves out a
        kind of token that its vendor does not report.
        """

    def clock(self, *, advance_seconds: float = 0.0, settle: bool = False) -> float:
        """Advance the server's clock, and with `settle` wait until every batch is where it should be by then."""

    def batch(self, batch_id: str, action: str) -> object:
        """End a batch that is held: the action is "end"."""

    def ledger(self) -> dict[str, Any]:
        """Return the books, by provider name.

        `batches`: the ids of all batches. `calls`: how often each endpoint was called, also where a fault struck. `rows`:
        {"charged": n}. `tokens`: the sums of "input", "output", "cached" and "reasoning" over all charged rows.
        """


_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The fixtures of a provider test. Each has its own run token, so that no test finds another's batches."""

    provider: Provider
    simulator: ProviderServer
    folder: Path
    model: str
    run: str = field(default_factory=lambda: f"b{uuid4().hex[:8]}")

    def shard(
        self, prompts: Sequence[str | bytes] | int = 3, *, call: Call | None = None, number: int = 1
    ) -> ShardFile:
        """Return a shard in a file, as planning writes it. A prompt in bytes is encoded already, with its attachments."""
        call = call or Call(model=self.model)
        words: Sequence[str | bytes]
        words = [f"prompt {n}" for n in range(prompts)] if isinstance(prompts, int) else prompts
        template, token = self.provider.encode(call), shard_token(self.run, number)
        path = self.folder / f"{token}.jsonl"
        with path.open("wb") as lines:
            for ordinal, prompt in enumerate(words):
                encoded = prompt if isinstance(prompt, bytes) else orjson.dumps(prompt)
                lines.write(template.line(custom_id(token, ordinal), encoded) + b"\n")
        return ShardFile(path=path, token=token, call=call, requests=len(words), bytes=path.stat().st_size)

    def submit(self, shard: ShardFile, *, lease_seconds: float = 60.0) -> str:
        """Upload and create, inside a lease that begins now."""
        upload = self.provider.upload(shard)
        return self.provider.submit(shard, upload, Lease(expires_at=time.time() + lease_seconds))

    def ended(self, batch_id: str) -> BatchStatus:
        """Look until the batch runs no longer."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            status = self.provider.check([batch_id])[batch_id]
            if status.state.is_over:
                return status
            assert time.monotonic() < deadline, f"batch {batch_id} does not end"

    def results(self, batch_id: str) -> dict[str, Result]:
        """Return the decoded results by custom_id."""
        decoded = [self.provider.decode(line) for line in self.provider.results(batch_id)]
        return {result.custom_id: result for result in decoded}

    def outcomes(self, shard: ShardFile, batch_id: str) -> Counter[Outcome]:
        """Return the outcomes of all rows of an ended batch, also of rows that its results leave out."""
        status, results = self.ended(batch_id), self.results(batch_id)
        rows = [results.get(custom_id(shard.token, ordinal)) for ordinal in range(shard.requests)]
        return Counter(row.outcome if row is not None else status.unmentioned for row in rows)

    def search(self, *shards: ShardFile, known: Sequence[str] = ()) -> Search:
        """Return a search for the batches of these shards, since a minute ago."""
        return Search(
            run_tokens=frozenset({self.run}),
            since=time.time() - 60,
            requests={shard.token: shard.requests for shard in shards},
            known=frozenset(known),
        )

    def fault(self, **fault: Any) -> None:
        """Set a fault for this provider."""
        self.simulator.fault(provider=self.provider.name, **fault)

    def bill(self) -> dict[str, Any]:
        """Return the server's ledger for this provider."""
        ledger: dict[str, Any] = self.simulator.ledger()[self.provider.name]
        return ledger


class Driver(Protocol):
    """The verbs that exist twice, without and with an event loop."""

    def check(self, batch_ids: Sequence[str]) -> Mapping[str, BatchStatus]: ...

    def cancel(self, batch_id: str) -> None: ...


@contextmanager
def asynchronously(provider: Provider) -> Iterator[Driver]:
    """The asynchronous verbs, each run to its end on one event loop."""
    with asyncio.Runner() as runner:
        try:
            yield _Asynchronous(provider, runner.run)
        finally:
            runner.run(provider.aclose())


@dataclass(frozen=True, slots=True)
class _Asynchronous:
    provider: Provider
    run: Callable[[Any], Any]

    def check(self, batch_ids: Sequence[str]) -> Mapping[str, BatchStatus]:
        statuses: Mapping[str, BatchStatus] = self.run(self.provider.acheck(batch_ids))
        return statuses

    def cancel(self, batch_id: str) -> None:
        self.run(self.provider.acancel(batch_id))
