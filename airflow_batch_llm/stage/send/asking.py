"""Ask the requests of a shard in real time: one worker at a time, and every answer kept before it is used.

A worker holds a lease on the shard, which it renews while it asks. It keeps answers in segments in the run folder, so a
next attempt asks only what is missing. What a crash can cost is bounded: the requests in flight, and the answers of the
segment that was not kept yet. The lease names that bound, and the attempt that takes over counts it.
"""

import asyncio
import secrets
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from airflow_batch_llm.core.journal import Ask, Entry, Kind, Standing, decide, stand
from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.core.printing import counted
from airflow_batch_llm.core.throttle import Throttle
from airflow_batch_llm.errors import BatchLLMError, Unavailable, UnknownFate
from airflow_batch_llm.providers.base import AnswersNow
from airflow_batch_llm.providers.lines import split_lines
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.payloads import fetch_requests
from airflow_batch_llm.stage.records.plan import Plan, PlannedShard
from airflow_batch_llm.stage.send.submitting import Submitter

#: A worker may ask for this long after its last word. It renews the lease after a third of it.
LEASE_SECONDS = 30.0

#: Answers are kept after this long, or when there are this many.
SEGMENT_SECONDS, SEGMENT_ANSWERS = 1.0, 100

#: Without a single answer for this long, the attempt ends and the task looks again later.
_PATIENCE_SECONDS = 600.0
_AGAIN_SECONDS = 60.0

#: A request whose answer was lost this often is not asked any more in this round.
_MOST_LOST = 3

#: On a request to end, the answers in flight are waited for this long.
_PARTING_SECONDS = 5.0

_TICK_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Asks shards of one plan, as one worker."""

    parts: Parts
    folder: RunFolder
    plan: Plan
    scratch: Path
    deadline: float
    concurrency: int

    def ask(self, shards: Sequence[PlannedShard]) -> None:
        """Ask the shards one after the other, as far as can be gone now.

        An event loop of its own thread does it, since the caller may have one. If the caller is ended meanwhile, the
        answers that have come are kept and the lease is given back.
        """
        ending = threading.Event()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="asking") as pool:
            asked = pool.submit(asyncio.run, self._ask(shards, ending))
            try:
                asked.result()
            except BaseException:
                ending.set()
                raise

    async def _ask(self, shards: Sequence[PlannedShard], ending: threading.Event) -> None:
        throttle = Throttle(most=self.concurrency)
        try:
            for shard in shards:
                if not ending.is_set():
                    await _Asking(asker=self, shard=shard, throttle=throttle, ending=ending).run()
        finally:
            await self.parts.provider.aclose()

    def is_free(self, shard: PlannedShard, standing: Standing) -> bool:
        """Return whether this worker may ask the shard now."""
        return isinstance(decide(standing, self._submitter.terms(shard), self.parts.clock()), Ask)

    @property
    def _submitter(self) -> Submitter:
        return Submitter(
            parts=self.parts, folder=self.folder, plan=self.plan, scratch=self.scratch, deadline=self.deadline
        )


class _Request(NamedTuple):
    ordinal: int
    line: bytes


class _Reply(NamedTuple):
    """The end of one call: an answer, or an error."""

    request: _Request
    sent_at: float
    answer: bytes | None
    error: Exception | None


class _Lost(Exception):
    """Another worker has taken the lease over."""


@dataclass(slots=True, kw_only=True)
class _Asking:
    """One worker's attempt at one shard."""

    asker: Asker
    shard: PlannedShard
    throttle: Throttle
    ending: threading.Event
    name: str = field(default_factory=lambda: secrets.token_hex(6))
    _last: int = 0  # the number of the last record of the journal
    _records: int = 0
    _lease_until: float = 0.0
    _renew_at: float = 0.0
    _segments: int = 0
    _answers: list[bytes] = field(default_factory=list)  # not kept yet
    _keeping: int = 0  # the answers of the segment that is being written
    _kept_at: float = 0.0
    _answered_at: float = 0.0
    _twice: int = 0  # since the last record
    _lost: Counter[int] = field(default_factory=Counter)
    _trouble: Exception | None = None  # of the attempt: nothing more is sent

    async def run(self) -> None:
        """Ask what has no answer yet. Raises what ended the attempt before its time."""
        if not await asyncio.to_thread(self._take):
            return
        answered = await asyncio.to_thread(self._answered)
        path = await asyncio.to_thread(self._requests)
        self._answered_at = self._kept_at = self._now()
        still = self.shard.requests - len(answered)
        self.asker.parts.say(f"Shard {self.shard.number}: {counted(still, 'request')} asked in real time.")
        try:
            with path.open("rb") as file:
                lines = (_Request(n, line) for n, line in enumerate(split_lines(file)) if n not in answered)
                await self._ask(lines)
            await self._keep()
            await asyncio.to_thread(self._end)
        except _Lost:
            self.asker.parts.warn(f"Shard {self.shard.number}: another worker has taken it over.")
        finally:
            path.unlink(missing_ok=True)

    # -- the lease ---------------------------------------------------------------------------------------------------

    def _take(self) -> bool:
        """Take the lease, unless another worker holds it."""
        standing = stand(self.asker.folder.journal(self.shard.number))
        if not self.asker.is_free(self.shard, standing):
            return False
        self._last = standing.last
        if standing.asking is not None:  # its worker died, and with it the answers that it had not kept
            missing = self.shard.requests - len(self._answered())
            self._twice = min(missing, standing.asking.at_risk)
        return self._record(Kind.ASKING)

    def _renew(self) -> None:
        if not self._record(Kind.ASKING):
            raise _Lost

    def _record(self, kind: Kind, *, batch_id: str = "", reason: str = "", again: float = 0.0) -> bool:
        """Write the next record of the journal. Returns False if another worker was first."""
        now = self._now()
        self._records += 1
        entry = Entry(
            kind=kind,
            nonce=f"{self.name}.{self._records}",
            at=now,
            intent=self.name,
            expires_at=now + LEASE_SECONDS if kind is Kind.ASKING else 0.0,
            at_risk=self._bound if kind is Kind.ASKING else 0,
            twice=self._twice,
            not_before=again,
            batch_id=batch_id,
            reason=reason,
            unmentioned=self._unmentioned() if kind is Kind.ENDED else "",
        )
        if not self.asker.folder.append(self.shard.number, self._last + 1, entry):
            return False
        self._last, self._twice = self._last + 1, 0
        self._lease_until, self._renew_at = now + LEASE_SECONDS, now + LEASE_SECONDS / 3
        return True

    def _end(self) -> None:
        """Close the attempt: the results are complete, or the rest is left to another attempt."""
        if self._trouble is None and not self.ending.is_set():
            batch_id = f"now-{self.asker.plan.token(self.shard)}"
            aside = self.asker.scratch / f"{self.name}.results.jsonl"
            segments = self.asker.folder.segments(self.shard.number)
            self.asker.folder.write_results(batch_id, (block for each in segments for block in each), aside)
            if not self._record(Kind.ENDED, batch_id=batch_id):
                raise _Lost
            self.asker.folder.delete_segments(self.shard.number)
            return
        trouble, again = self._trouble, 0.0
        if isinstance(trouble, Unavailable):
            again = self._now() + (trouble.retry_after or _AGAIN_SECONDS)
        self._record(Kind.RELEASED, reason=str(trouble or "the worker was ended"), again=again)
        if trouble is not None and not again:
            raise trouble

    def _unmentioned(self) -> str:
        is_late = self._now() >= self.asker.deadline
        return (Outcome.CANCELED if is_late else Outcome.MISSING).value

    # -- the files ---------------------------------------------------------------------------------------------------

    def _requests(self) -> Path:
        path = self.asker.scratch / f"{self.name}.requests.jsonl"
        fetch_requests(self.asker.folder, self.asker.plan, self.shard, path)
        return path

    def _answered(self) -> set[int]:
        """Return the requests whose answers are kept."""
        token = f"{self.asker.plan.token(self.shard)}-"
        found = set()
        for blocks in self.asker.folder.segments(self.shard.number):
            for line in split_lines(blocks):
                custom_id = self.asker.parts.provider.decode(line).custom_id
                if custom_id.startswith(token):
                    found.add(int(custom_id.removeprefix(token)))
        return found

    async def _keep(self) -> None:
        """Write the answers so far as a segment, and renew the lease when it is time."""
        lines, self._answers = self._answers, []
        self._keeping, self._kept_at = len(lines), self._now()
        if lines:
            self._segments += 1
            await asyncio.to_thread(self._write, f"{self.name}-{self._segments:04d}", lines)
        self._keeping = 0
        if self._now() >= self._renew_at:
            await asyncio.to_thread(self._renew)

    def _write(self, name: str, lines: Sequence[bytes]) -> None:
        aside = self.asker.scratch / f"{name}.segment.jsonl"
        blocks = (line + b"\n" for line in lines)
        self.asker.folder.write_segment(self.shard.number, name, blocks, aside)

    # -- the calls ---------------------------------------------------------------------------------------------------

    async def _ask(self, lines: Iterator[_Request]) -> None:
        """Send requests as the throttle allows, until each has its answer or nothing more may be sent."""
        replies: asyncio.Queue[_Reply] = asyncio.Queue()
        again: deque[_Request] = deque()
        calls: set[asyncio.Task[None]] = set()
        keeping: asyncio.Task[None] | None = None
        following = next(lines, None)
        while True:
            if not self._is_over():
                for _ in range(self._room(len(calls))):
                    request = again.popleft() if again else following
                    if request is None:
                        break
                    if request is following:
                        following = next(lines, None)
                    call = asyncio.create_task(self._call(request, replies))
                    calls.add(call)
                    call.add_done_callback(calls.discard)
            if not calls and replies.empty() and (self._is_over() or (following is None and not again)):
                break
            self._take_in(await _next(replies), replies, again)
            if keeping is not None and keeping.done():
                await keeping
                keeping = None
            if keeping is None and self._is_time_to_keep():
                keeping = asyncio.create_task(self._keep())
            if self.ending.is_set():
                await self._part(calls, replies, again)
        if keeping is not None:
            await keeping

    def _room(self, in_flight: int) -> int:
        now = self._now()
        if now >= self._lease_until:
            return 0  # the lease is renewed first
        unkept = in_flight + len(self._answers) + self._keeping
        return min(self.throttle.room(in_flight, now), self._bound - unkept)

    @property
    def _bound(self) -> int:
        """The requests that are in flight or not kept, at most."""
        return self.asker.concurrency + SEGMENT_ANSWERS

    def _is_over(self) -> bool:
        return self._trouble is not None or self.ending.is_set() or self._now() >= self.asker.deadline

    def _is_time_to_keep(self) -> bool:
        now = self._now()
        is_full = len(self._answers) >= SEGMENT_ANSWERS
        return (
            is_full
            or now >= self._renew_at
            or (bool(self._answers) and now >= self._kept_at + SEGMENT_SECONDS)
        )

    async def _call(self, request: _Request, replies: "asyncio.Queue[_Reply]") -> None:
        sent_at, answer, error = self._now(), None, None
        provider = self.asker.parts.provider
        assert isinstance(provider, AnswersNow), "the planner refuses other providers"
        try:
            answer = await provider.answer(self.asker.plan.route(self.shard).call, request.line)
        except Exception as caught:  # noqa: BLE001 - the loop decides
            error = caught
        replies.put_nowait(_Reply(request, sent_at, answer, error))

    def _take_in(
        self, first: _Reply | None, replies: "asyncio.Queue[_Reply]", again: deque[_Request]
    ) -> None:
        """Take note of all replies that have come."""
        reply = first
        while reply is not None:
            self._note(reply, again)
            reply = None if replies.empty() else replies.get_nowait()
        if self._now() > self._answered_at + _PATIENCE_SECONDS and self._trouble is None:
            self._trouble = Unavailable("The provider has answered no request for ten minutes.")

    def _note(self, reply: _Reply, again: deque[_Request]) -> None:
        now = self._now()
        match reply.error:
            case None:
                assert reply.answer is not None
                self._answers.append(reply.answer)
                self._answered_at = now
                self.throttle.answered()
            case Unavailable(retry_after=retry_after):
                self.throttle.refused(reply.sent_at, now, retry_after)
                again.append(reply.request)
            case UnknownFate():
                self._twice += 1
                self._lost[reply.request.ordinal] += 1
                self.throttle.refused(reply.sent_at, now, None)
                if self._lost[reply.request.ordinal] < _MOST_LOST:
                    again.append(reply.request)
            case BatchLLMError() as error:
                self._trouble = self._trouble or error
            case error:
                self._trouble = error

    async def _part(
        self, calls: set[asyncio.Task[None]], replies: "asyncio.Queue[_Reply]", again: deque[_Request]
    ) -> None:
        """Wait a little for the calls in flight. Those that are cut off may have been paid."""
        if calls:
            await asyncio.wait(calls, timeout=_PARTING_SECONDS)
        for call in list(calls):
            call.cancel()
            self._twice += 1
        calls.clear()
        self._take_in(None if replies.empty() else replies.get_nowait(), replies, again)

    def _now(self) -> float:
        return self.asker.parts.clock()


async def _next(replies: "asyncio.Queue[_Reply]") -> _Reply | None:
    """Return the next reply, or None if there is none for a moment."""
    try:
        return await asyncio.wait_for(replies.get(), _TICK_SECONDS)
    except TimeoutError:
        return None
