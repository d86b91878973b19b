"""Execute requests: those of a batch in a worker thread, or one at once.

A batch goes from its input lines to its result lines and charges, a chunk of rows at a time, so that nothing grows with
the batch. An interrupted execution begins again at the first row. It forgets the batch's charges and writes its files again.

A single request is admitted, executed, charged, and answered in the vendor's words. Its answer is charged before it is sent,
so a caller who hangs up while waiting pays. The price is that of the tier that the answer names, not of the one that was
asked for.
"""

import asyncio
import logging
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import anyio
import anyio.to_thread
import orjson
from starlette.responses import JSONResponse, Response

from airflow_batch_llm.simulator.answers import Draw
from airflow_batch_llm.simulator.bodies import MEGABYTE, count_lines, lines
from airflow_batch_llm.simulator.controls import (
    BatchFault,
    Fault,
    FlexFault,
    RowFault,
    RowFaults,
    batch_fault,
)
from airflow_batch_llm.simulator.database import Batch, BatchPhase, BilledUsage, BilledWay, Charge, RowFate
from airflow_batch_llm.simulator.meters import Lack, LimitStanding, ModelLimits
from airflow_batch_llm.simulator.request import AskedRequest, Reply, RowError, StopReason, tokens
from airflow_batch_llm.simulator.responder import items_of, spoil
from airflow_batch_llm.simulator.vendor import BatchTally, Parsed, Refusal, Rejected, Rows, Vendor, Written
from airflow_batch_llm.simulator.world import World

INPUT = "input.jsonl"
_CHUNK = 2000
_LONE = "\ue000"  # takes the place of a lone surrogate until the line has been encoded
_ODD = "\u2028\u0085\u00a0\U0001f600"
_UNEXECUTED = {RowFault.EXPIRED: RowFate.EXPIRED, RowFault.CANCELED: RowFate.CANCELED}


def execute(world: World, vendor: Vendor, batch: Batch) -> BatchTally:
    """Run the rows of a batch and write its result lines, one file per channel."""
    world.database.forget_charges(batch.seq)
    with ExitStack() as stack:
        return _Execution(world, vendor.rows(batch), batch, stack).run()


class _Execution:
    def __init__(self, world: World, rows: Rows, batch: Batch, stack: ExitStack) -> None:
        self._world = world
        self._rows = rows
        self._batch = batch
        self._stack = stack
        self._folder = world.folder(batch.id)
        self._files: dict[str, IO[bytes]] = {}
        self._written: dict[str, int] = {}
        self._faults = RowFaults(batch.facts["faults"])
        self._ordered = batch_fault(batch.facts["faults"], BatchFault.ORDERED) is not None

    def run(self) -> BatchTally:
        source = self._folder / INPUT
        if source.exists():  # else it was stopped before its rows were looked at
            self._execute(source)
        database, seq = self._world.database, self._batch.seq
        return BatchTally(outcomes=database.outcomes(seq), usage=database.usage(seq), written=self._written)

    def _execute(self, source: Path) -> None:
        ending = self._batch.facts.get("ending")
        executed = int(count_lines(source) * ending["share"]) if ending else None
        rest = RowFate(ending["outcome"]) if ending else RowFate.SUCCEEDED
        for first, chunk in _chunks(lines(source)):
            limit = len(chunk) if executed is None else max(0, min(len(chunk), executed - first))
            parsed = [self._rows.read(line) for line in chunk]
            written = self._executed(parsed[:limit], first)
            written += [self._rows.skip(row, rest) for row in parsed[limit:]]
            self._keep(first, parsed, written)

    def _executed(self, parsed: Sequence[Parsed], first: int) -> list[Written]:
        faults: list[Fault | None] = [None] * len(parsed)
        if self._faults:
            faults = [self._faults.find(first + index, row.custom_id) for index, row in enumerate(parsed)]
        running = [
            index for index, row in enumerate(parsed) if row.request is not None and not _stops(faults[index])
        ]
        requests: list[AskedRequest] = [parsed[index].request for index in running]  # type: ignore[misc]
        answers = dict(zip(running, self._world.responder.answer_all(requests), strict=True))
        return [self._row(row, faults[index], answers.get(index)) for index, row in enumerate(parsed)]

    def _row(self, row: Parsed, fault: Fault | None, answer: Reply | None) -> Written:
        if answer is None:
            if fault and fault.kind in _UNEXECUTED:
                return self._rows.skip(row, _UNEXECUTED[RowFault(fault.kind)])
            return self._rows.write(row, Reply(error=row.error or _row_error(fault)))
        assert row.request is not None
        answer = settled(row.request, answer, fault)
        if fault and fault.kind is RowFault.FOREIGN:
            row = row._replace(custom_id=fault.text or f"foreign-{row.custom_id}")
        return self._rows.write(row, answer)

    def _keep(self, first: int, parsed: Sequence[Parsed], written: Sequence[Written]) -> None:
        pairs = zip(parsed, written, strict=True)
        charges = [_charge(first + index, row, result) for index, (row, result) in enumerate(pairs)]
        self._world.database.add_charges(self._batch.seq, charges)
        results: list[Any] = [(result.channel, result.line) for result in written if result.line]
        if self._faults:
            results = []
            for index, result in enumerate(written):
                fault = self._faults.find(first + index, parsed[index].custom_id)
                results.extend((result.channel, line) for line in _faulty_lines(result.line, fault))
        if not self._ordered:
            Draw(first).shuffle(results)
        for channel, count in Counter(channel for channel, _ in results).items():
            self._file(channel).write(b"".join(line + b"\n" for where, line in results if where == channel))
            self._written[channel] = self._written.get(channel, 0) + count

    def _file(self, channel: str) -> IO[bytes]:
        if channel not in self._files:
            path = self._folder / f"{channel}.jsonl"
            self._files[channel] = self._stack.enter_context(path.open("wb", buffering=MEGABYTE))
        return self._files[channel]


def _chunks(source: Iterator[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    first = 0
    while chunk := list(islice(source, _CHUNK)):
        yield first, chunk
        first += len(chunk)


def _stops(fault: Fault | None) -> bool:
    """Return whether a fault keeps the row from being executed."""
    return fault is not None and (fault.kind is RowFault.ERRORED or fault.kind in _UNEXECUTED)


def _row_error(fault: Fault | None) -> RowError:
    assert fault is not None
    return RowError(
        fault.status, fault.code or "", fault.message or "The simulator was told to fail this row."
    )


def settled(request: AskedRequest, answer: Reply, fault: Fault | None = None) -> Reply:
    """The answer after the request's token limit and the row's fault have had their say."""
    if answer.error or answer.body:
        return answer
    if fault is not None:
        answer = _faulty(request, answer, fault)
    if request.max_tokens is not None and tokens(len(answer.text)) > request.max_tokens:
        return answer._replace(text=answer.text[: 4 * request.max_tokens], stop=StopReason.LENGTH)
    return answer


def _faulty(request: AskedRequest, answer: Reply, fault: Fault) -> Reply:
    match fault.kind:
        case RowFault.REFUSED:
            return Reply(fault.text or "", StopReason.REFUSED)
        case RowFault.FILTERED:
            return Reply("", StopReason.FILTERED)
        case RowFault.TRUNCATED:
            return Reply(answer.text[: len(answer.text) // 2], StopReason.LENGTH)
        case RowFault.EMPTY:
            return Reply("")
        case RowFault.TEXT | RowFault.INVALID:
            return Reply(fault.text if fault.text is not None else '{"no_such_field": []}')
        case RowFault.ODD:
            return Reply(_with_odd(request, answer.text, _ODD))
        case RowFault.SURROGATE:
            return Reply(_with_odd(request, answer.text, _LONE))
        case _ if items_of(request) is not None:
            return spoil(answer, fault)
        case _:
            return answer


def _with_odd(request: AskedRequest, text: str, odd: str) -> str:
    """The odd characters go to the end of a text, or of the first free string of a structured answer."""
    if request.schema is None:
        return text + odd
    value = orjson.loads(text)
    properties = request.schema.get("properties", {})
    for name, part in properties.items() if isinstance(value, dict) else ():
        free = not {"enum", "const", "format", "pattern", "maxLength"} & part.keys()
        if free and isinstance(value.get(name), str):
            value[name] += odd
            break
    return orjson.dumps(value).decode()


def _faulty_lines(line: bytes, fault: Fault | None) -> Sequence[bytes]:
    if not line or fault is None:
        return (line,) if line else ()
    match fault.kind:
        case RowFault.MISSING:
            return ()
        case RowFault.DUPLICATED:
            return (line, line)
        case RowFault.BAD_LINE:
            return (line[: len(line) // 2],)
        case RowFault.SPOILED:
            put = (fault.text or "").encode()
            return (re.sub((fault.find or "").encode(), lambda _: put, line, count=1),)
        case RowFault.SURROGATE:
            return (line.replace(_LONE.encode(), rb"\ud83d"),)
        case _:
            return (line,)


def _charge(line: int, row: Parsed, result: Written) -> Charge:
    usage = result.usage
    return Charge(
        line,
        row.custom_id,
        row.content,
        result.outcome.value,
        int(usage is not None),
        row.model,
        *(usage or BilledUsage()),
    )


logger = logging.getLogger(__name__)
_AT_ONCE = 2  # batches whose rows are looked at or executed at the same time
_LONGEST_NAP = 3600.0
_LOOK_SECONDS = 0.005


class Runner:
    """Moves batches on."""

    def __init__(self, world: World, vendors: Mapping[str, Vendor]) -> None:
        self._world = world
        self.vendors = vendors
        self._awake = asyncio.Event()
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._steps: dict[str, asyncio.Task[None]] = {}

    def poke(self) -> None:
        """Say that something may have become due."""
        self._awake.set()

    async def run(self) -> None:
        while True:
            self._awake.clear()
            now = self._world.clock.now()
            for batch_id in self._world.database.due_batches(now):
                if batch_id not in self._steps:
                    self._begin(batch_id)
            await self._nap(now)

    async def idle(self) -> None:
        """Wait until no step is being taken."""
        while self._steps:
            await asyncio.gather(*self._steps.values(), return_exceptions=True)

    async def caught_up(self) -> None:
        """Wait until every step that is due has been taken."""
        await self.idle()
        while self._world.database.due_batches(self._world.clock.now()):
            await asyncio.sleep(_LOOK_SECONDS)
            await self.idle()

    async def _nap(self, now: float) -> None:
        """Sleep until a batch becomes due that was not at `now`, or until the end of a step or a call wakes the runner."""
        wake = self._world.database.next_wake(now)
        timeout = _LONGEST_NAP if wake is None else min(wake - now, _LONGEST_NAP)
        try:
            await asyncio.wait_for(self._awake.wait(), timeout)
        except TimeoutError:
            return

    def _begin(self, batch_id: str) -> None:
        task = asyncio.create_task(self._step(batch_id))
        self._steps[batch_id] = task
        task.add_done_callback(lambda _: self._done(batch_id))

    def _done(self, batch_id: str) -> None:
        task = self._steps.pop(batch_id)
        if not task.cancelled() and (error := task.exception()):
            logger.error("a step of a batch failed", extra={"batch_id": batch_id}, exc_info=error)
            self._world.database.change_batch(
                batch_id, BatchPhase.REJECTED, None, simulator_error=repr(error)
            )
        self.poke()

    async def _step(self, batch_id: str) -> None:
        async with self._places:
            batch = self._world.database.batch(batch_id)
            if batch is None or batch.wake_at is None or batch.wake_at > self._world.clock.now():
                return
            if batch.phase is BatchPhase.ACCEPTED and batch.wake_at < batch.facts["expires_at"]:
                await self._prepare(batch)
            else:
                await self._finish(batch)

    async def _prepare(self, batch: Batch) -> None:
        verdict = await asyncio.to_thread(self.vendors[batch.provider].prepare, batch)
        fresh = self._world.database.batch(batch.id)
        if fresh is None or fresh.phase is not BatchPhase.ACCEPTED:
            return
        now = self._world.clock.now()
        if isinstance(verdict, Rejected):
            self._world.database.change_batch(
                batch.id, BatchPhase.REJECTED, None, ended_at=now, **verdict.facts
            )
            return
        facts = {**fresh.facts, **verdict.facts}
        wake = min(facts["ends_at"] or facts["expires_at"], facts["expires_at"])
        self._world.database.change_batch(batch.id, BatchPhase.RUNNING, wake, running_at=now, **verdict.facts)

    async def _finish(self, batch: Batch) -> None:
        vendor = self.vendors[batch.provider]
        database = self._world.database
        facts = {"ending": {"outcome": RowFate.EXPIRED, "share": 0.0}} if _window_closed(batch) else {}
        now = self._world.clock.now()
        batch = database.change_batch(
            batch.id, BatchPhase.FINISHING, batch.wake_at, finishing_at=now, **facts
        )
        tally = await asyncio.to_thread(execute, self._world, vendor, batch)
        results = await asyncio.to_thread(vendor.finish, batch, tally)
        common = {
            "ended_at": self._world.clock.now(),
            "total": sum(tally.outcomes.values()) or batch.facts.get("total", 0),
            "outcomes": tally.outcomes,
            "usage": tally.usage._asdict(),
        }
        if isinstance(results, Rejected):
            database.change_batch(batch.id, BatchPhase.REJECTED, None, **common, **results.facts)
        else:
            database.change_batch(batch.id, BatchPhase.ENDED, None, **common, **results)


def _window_closed(batch: Batch) -> bool:
    """Return whether the batch's window closed before its rows were due."""
    ends_at, expires_at = batch.facts["ends_at"], batch.facts["expires_at"]
    queued = batch.phase is BatchPhase.ACCEPTED
    return "ending" not in batch.facts and (queued or ends_at is None or ends_at > expires_at)


_THREADS = 64  # that call the responder; a slow one must not keep the control endpoints waiting


class Asked(NamedTuple):
    """One real-time request that the vendor takes."""

    request: AskedRequest
    content: bytes
    """The digest of the request, the same as that of a batch line that asks the same."""
    flex: bool = False
    """It goes by the flex tier."""


class Words(Protocol):
    """The part of a real-time answer that is only one vendor's. Limits and tokens go by the vendor's kinds."""

    @property
    def provider(self) -> str: ...

    def usage(self, request: AskedRequest, answer: Reply) -> BilledUsage: ...

    def body(self, asked: Asked, answer: Reply, usage: BilledUsage) -> dict[str, Any]:
        """The body of the answer, as it stands in a batch's result line."""

    def way(self, body: dict[str, Any]) -> BilledWay:
        """The way that the answer says it went, by which it is billed."""

    @property
    def no_room(self) -> str | None:
        """The code of a 429 for want of room in the flex tier, where it has one of its own."""

    def per_minute(self) -> Mapping[str, int | None]:
        """The limits of a model by kind, in the order in which they are looked at; None for no limit."""

    def needs(self, request: AskedRequest) -> Mapping[str, int]:
        """The amounts that must be there for the request to be admitted."""

    def spends(self, usage: BilledUsage) -> Mapping[str, int]:
        """The amounts that are taken once the answer is made."""

    def over_limit(self, model: str, standing: LimitStanding) -> Refusal: ...

    def retry_headers(self, seconds: float) -> dict[str, str]: ...

    def limit_headers(self, standings: Sequence[LimitStanding]) -> dict[str, str]: ...


class RealTime:
    """Answers the requests of one vendor."""

    def __init__(self, world: World, words: Words) -> None:
        self._world = world
        self._words = words
        self._threads = anyio.CapacityLimiter(_THREADS)

    async def answer(self, asked: Asked) -> Response:
        """The vendor's answer. Raises the refusal of a request that is not answered, and not charged."""
        asked = self._seated(asked)
        self._admit(asked.request)
        (answer,) = await anyio.to_thread.run_sync(
            self._world.responder.answer_all, [asked.request], limiter=self._threads
        )
        if answer.error:
            raise Refusal(answer.error.status, answer.error.code or None, answer.error.message)
        answer = settled(asked.request, answer)
        usage = self._words.usage(asked.request, answer)
        body = self._words.body(asked, answer, usage)
        self._world.database.add_asked(
            self._words.provider, self._words.way(body), asked.content, asked.request.model, usage
        )
        self._limits(asked.request.model).spend(self._words.spends(usage))
        knobs = self._world.knobs
        await asyncio.sleep(knobs.answer_latency + knobs.answer_latency_per_token * usage.output)
        standings = self._limits(asked.request.model).standings()
        return JSONResponse(body, headers=self._words.limit_headers(standings))

    def _seated(self, asked: Asked) -> Asked:
        """The request in the tier that has room for it. A fault of the flex tier refuses it, or moves it."""
        fault = self._world.faults.for_flex(self._words.provider) if asked.flex else None
        if fault is None:
            return asked
        if fault.kind is FlexFault.NO_CAPACITY:
            message = fault.message or "Resource unavailable: the flex tier has no room now."
            raise Refusal(429, fault.code or self._words.no_room, message)
        return asked._replace(flex=False)

    def _limits(self, model: str) -> ModelLimits:
        limits = {kind: limit for kind, limit in self._words.per_minute().items() if limit is not None}
        return self._world.limits.of(self._words.provider, model, limits, self._world.clock.now())

    def _admit(self, request: AskedRequest) -> None:
        limits = self._limits(request.model)
        lack: Lack | None = limits.admit(self._words.needs(request))
        if lack is None:
            return
        refusal = self._words.over_limit(request.model, lack.standing)
        refusal.headers = self._words.limit_headers(limits.standings())
        if self._world.knobs.retry_after:
            refusal.headers |= self._words.retry_headers(math.ceil(lack.seconds * 1000) / 1000)
        raise refusal
