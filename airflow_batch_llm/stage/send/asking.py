"""Ask the requests of a shard in real time: one worker at a time, and each answer is kept before it is used.

A worker holds a lease on the shard, which it renews while it asks. It keeps answers in segments in the run folder, so a
next attempt asks only what is missing. A crash can cost the requests in flight, and the answers of the segment that was
not kept yet. The lease states that bound, and the attempt that takes over counts it.
"""

import asyncio
import re
import secrets
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from airflow_batch_llm.core.journal import Ask, Entry, RecordKind, Standing, decide, stand
from airflow_batch_llm.core.model import Answered, Outcome, Way
from airflow_batch_llm.core.printing import counted, verb
from airflow_batch_llm.core.realtime import Throttle, Turn, taking
from airflow_batch_llm.core.request import ORDINAL_DIGITS
from airflow_batch_llm.errors import BatchLLMError, Unavailable, UnknownFate
from airflow_batch_llm.providers.base import AnswersNow
from airflow_batch_llm.providers.incoming import joined_lines, split_lines
from airflow_batch_llm.stage.records.plan import PlannedShard
from airflow_batch_llm.stage.send.submitting import Submitter

#: Answers are kept after these seconds, or when there are this many. A full segment has this many.
SEGMENT_SECONDS, SEGMENT_ANSWERS = 1.0, 100

#: Seconds without any answer after which the attempt ends, and the task looks again later.
_PATIENCE_SECONDS: Mapping[Way, float] = {Way.NOW: 600.0, Way.FLEX: 1800.0}
_AGAIN_SECONDS = 60.0

#: The lost answers after which a request is not asked again in this round.
_MOST_LOST = 3

#: Seconds for which a worker that must end waits for the answers in flight.
_PARTING_SECONDS = 5.0

_TICK_SECONDS = 0.5

#: The status of a vendor's answer to one request too many. Any other refusal is an overload.
_LIMIT_REACHED = 429


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Asks shards of one plan, as one worker."""

    submitter: Submitter
    """The submitter of the plan's other shards. It has the plan, the run's records, and the deadline."""
    concurrency: int
    """The number of requests that are asked at once."""

    def ask(self, shards: Sequence[PlannedShard]) -> None:
        """Ask the shards one after the other, as far as possible now.

        An event loop in a new thread does it, since the caller may have one. If the caller is ended meanwhile, the answers
        so far are kept and the lease is given back.
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
        # Vendors limit each model separately, and the half-price tier separately from the usual one.
        throttles = defaultdict[object, Throttle](lambda: Throttle(most=self.concurrency))
        try:
            for shard in shards:
                route = self.submitter.plan.route(shard)
                throttle = throttles[route.provider, route.call.model, route.way]
                asking = _Asking(asker=self, shard=shard, throttle=throttle, ending=ending)
                if ending.is_set() or not await asking.run():
                    break
        finally:
            await self.submitter.parts.provider.aclose()

    def is_free(self, shard: PlannedShard, standing: Standing) -> bool:
        """Return whether this worker may ask the shard now."""
        now = replace(self.submitter)  # it looks again whether the run has been cancelled
        return isinstance(decide(standing, now.terms(shard), now.parts.clock()), Ask)


class _Request(NamedTuple):
    ordinal: int
    line: bytes


class _Reply(NamedTuple):
    """The end of one call: an answer, or an error."""

    request: _Request
    sent_at: float
    answer: Answered | None
    error: Exception | None


class _Lost(Exception):
    """Another worker has taken the lease over."""


class _NotSent(Exception):
    """The lease ran out before the call began."""


@dataclass(slots=True, kw_only=True)
class _Asking:
    """One worker's attempt at one shard."""

    asker: Asker
    shard: PlannedShard
    throttle: Throttle
    ending: threading.Event
    _turn: Turn = field(init=False)
    _segments: int = 0
    _segment: list[bytes] = field(default_factory=list)  # the answers of the last segment, unless it is full
    _answers: list[bytes] = field(default_factory=list)  # not kept yet
    _kept_at: float = 0.0
    _answered_at: float = 0.0
    _again: deque[_Request] = field(default_factory=deque)
    _unsure: deque[_Request] = field(default_factory=deque)
    """Requests whose answers were lost, before a record counts them."""
    _lost: Counter[int] = field(default_factory=Counter)
    _trouble: Exception | None = None  # of the attempt: nothing more is sent
    _is_cancelled: bool = False  # on request: nothing more is sent

    def __post_init__(self) -> None:
        self._turn = Turn(worker=secrets.token_hex(6), bound=self.asker.concurrency + SEGMENT_ANSWERS)

    @property
    def _submitter(self) -> Submitter:
        return self.asker.submitter

    async def run(self) -> bool:
        """Ask the requests without an answer. Returns whether other shards can be asked, and raises the error if not."""
        if not await self._is_free():
            return True
        # The attachments are uploaded before the lease begins. The upload costs nothing, and may take longer than the lease.
        path, left_out = await asyncio.to_thread(self._requests)
        try:
            if await self._take():
                await self._ask_rest(path, left_out)
        except _Lost:
            self._submitter.parts.warn(f"Shard {self.shard.number}: another worker has taken it over.")
            await asyncio.to_thread(self._withdraw)
        finally:
            path.unlink(missing_ok=True)
        return self._trouble is None

    async def _ask_rest(self, path: Path, left_out: Mapping[int, str]) -> None:
        """Ask the lines of a file that have no answer yet.

        The file has all requests of the shard except those that are left out.
        """
        answered = await asyncio.to_thread(self._answered)
        self._answered_at = self._kept_at = self._now()
        await self._look_for_cancellation()
        numbers = [number for number in range(self.shard.requests) if number not in left_out]
        still = len(numbers) - len(answered)
        if self._is_cancelled:
            told = (
                f"cancelled on request, so {counted(still, 'request')} {verb(still, 'is', 'are')} not asked."
            )
        else:
            told = f"{counted(still, 'request')} asked in real time."
        self._submitter.parts.log(f"Shard {self.shard.number}: {told}")
        with path.open("rb") as file:
            sent = zip(numbers, split_lines(file), strict=True)
            await self._ask(_Request(n, line) for n, line in sent if n not in answered)
        await self._keep()
        await self._end()

    # -- the lease ---------------------------------------------------------------------------------------------------

    async def _is_free(self) -> bool:
        """Return whether no other worker holds the lease."""
        entries = await asyncio.to_thread(self._submitter.memory.read, self.shard.number)
        return self.asker.is_free(self.shard, stand(entries))

    async def _take(self) -> bool:
        """Take the lease, unless another worker holds it."""
        standing = stand(await asyncio.to_thread(self._submitter.memory.read, self.shard.number))
        if not self.asker.is_free(self.shard, standing):
            return False
        missing = 0
        if standing.asking is not None:
            missing = self.shard.requests - len(await asyncio.to_thread(self._answered))
        self._turn, entry = taking(self._turn, standing, missing, self._now())
        return await self._record(entry)

    async def _record(self, entry: Entry) -> bool:
        """Write the next record of the journal. Returns False if another worker was first."""
        by = replace(entry, by=self._submitter.parts.by)
        place = self._turn.last + 1
        if not await asyncio.to_thread(self._submitter.memory.append, self.shard.number, place, by):
            return False
        before, self._turn = self._turn, self._turn.written(entry)
        for _ in range(min(len(self._unsure), before.uncounted - self._turn.uncounted)):
            request = self._unsure.popleft()
            if self._lost[request.ordinal] < _MOST_LOST:
                self._again.append(request)
        return True

    async def _end(self) -> None:
        """Close the attempt: the results are complete, or the rest is left to another attempt."""
        if self._answers:
            raise self._trouble or _Lost  # they could not be kept, so the lease runs out and they are counted
        if self._trouble is None and not self.ending.is_set():
            await self._complete()
            return
        trouble, again = self._trouble, 0.0
        if isinstance(trouble, Unavailable):
            again = self._now() + (trouble.retry_after or _AGAIN_SECONDS)
        await self._record(
            self._turn.last_word(
                Entry(
                    kind=RecordKind.RELEASED,
                    nonce="",
                    at=self._now(),
                    reason=self._reason(),
                    not_before=again,
                )
            )
        )
        if trouble is not None and not again:
            raise trouble

    async def _complete(self) -> None:
        """Make the segments the shard's results. A worker that was frozen here writes over no other's."""
        is_given_up = self._is_cancelled or self._now() >= self._submitter.deadline
        unmentioned = Outcome.CANCELED if is_given_up else Outcome.MISSING
        await asyncio.to_thread(self._write_results)
        ended = Entry(
            kind=RecordKind.ENDED,
            nonce="",
            at=self._now(),
            batch_id=self._batch_id,
            unmentioned=unmentioned.value,
        )
        if not await self._record(self._turn.last_word(ended)):
            raise _Lost
        await asyncio.to_thread(self._submitter.folder.delete_segments, self.shard.number)

    def _reason(self) -> str:
        if self._trouble is None:
            return "the worker was ended"
        # Only the package's own errors are known to quote nothing of a request.
        is_own = isinstance(self._trouble, BatchLLMError)
        return str(self._trouble) if is_own else type(self._trouble).__name__

    # -- the files ---------------------------------------------------------------------------------------------------

    def _requests(self) -> tuple[Path, Mapping[int, str]]:
        """Return the lines that are sent, and which requests are left out of them."""
        path = self._submitter.scratch / f"{self._turn.worker}.requests.jsonl"
        return path, self._submitter.fetch(self.shard, path)

    def _answered(self) -> set[int]:
        """Return the requests whose answers are kept, also those that cannot be read."""
        named = re.compile(
            rb'"%b-([0-9]{%d,})"' % (self._submitter.plan.token(self.shard).encode(), ORDINAL_DIGITS)
        )
        segments = self._submitter.folder.segments(self.shard.number)
        lines = (line for blocks in segments for line in split_lines(blocks))
        return {int(found[1]) for line in lines if (found := named.search(line))}

    @property
    def _batch_id(self) -> str:
        return f"{self._submitter.plan.asking_id(self.shard)}-{self._turn.worker}"

    def _withdraw(self) -> None:
        """Delete what this worker wrote too late. Its kept answers stay as long as another may need them."""
        folder, number = self._submitter.folder, self.shard.number
        folder.delete_results(self._batch_id)
        if stand(self._submitter.memory.read(number)).ended is not None:
            folder.delete_segments(number)

    def _write_results(self) -> None:
        aside = self._submitter.scratch / f"{self._turn.worker}.results.jsonl"
        segments = self._submitter.folder.segments(self.shard.number)
        self._submitter.folder.write_results(
            self._batch_id, (block for each in segments for block in each), aside
        )

    async def _keep(self) -> None:
        """Write the answers so far into the segment, and renew the lease when it is time."""
        lines, self._answers = self._answers, []
        self._kept_at = self._now()
        try:
            if lines:
                await asyncio.to_thread(self._write, self._segment + lines)
                self._turn = self._turn.kept(len(lines))
                self._segment += lines
                lines = []
            if len(self._segment) >= SEGMENT_ANSWERS:
                self._segments, self._segment = self._segments + 1, []
            await self._look_for_cancellation()
            if self._now() >= self._turn.renew_at and not await self._record(self._turn.lease(self._now())):
                raise _Lost
        except BatchLLMError as error:  # of the store
            self._answers = lines + self._answers
            self._trouble = self._trouble or error

    async def _look_for_cancellation(self) -> None:
        """Note a request to cancel the shard. The worker waits for the calls in flight, because they are paid."""
        if not self._is_cancelled:
            names = await asyncio.to_thread(self._submitter.folder.cancelled)
            self._is_cancelled = self._submitter.plan.asking_id(self.shard) in names

    def _write(self, lines: Sequence[bytes]) -> None:
        name = f"{self._turn.worker}-{self._segments:06d}"
        aside = self._submitter.scratch / f"{name}.segment.jsonl"
        self._submitter.folder.write_segment(self.shard.number, name, joined_lines(lines), aside)

    # -- the calls ---------------------------------------------------------------------------------------------------

    async def _ask(self, lines: Iterator[_Request]) -> None:
        """Send requests as the throttle allows, until each has its answer or nothing more may be sent."""
        replies: asyncio.Queue[_Reply] = asyncio.Queue()
        calls: set[asyncio.Task[None]] = set()
        keeping: asyncio.Task[None] | None = None
        following = next(lines, None)
        try:
            while calls or not replies.empty() or not (self._is_over() or self._is_all_asked(following)):
                for _ in range(0 if self._is_over() else self._room(len(calls))):
                    request = self._again.popleft() if self._again else following
                    if request is None:
                        break
                    if request is following:
                        following = next(lines, None)
                    self._turn = self._turn.sent()
                    self.throttle.sent(self._now())
                    call = asyncio.create_task(self._call(request, replies))
                    calls.add(call)
                    call.add_done_callback(calls.discard)
                self._take_in(await _next(replies), replies)
                if keeping is not None and keeping.done():
                    await keeping
                    keeping = None
                if keeping is None and self._is_time_to_keep():
                    keeping = asyncio.create_task(self._keep())
                if self.ending.is_set():
                    await self._part(calls, replies)
            if keeping is not None:
                await keeping
        finally:
            await _stop({*calls, *([keeping] if keeping is not None else [])})

    def _room(self, in_flight: int) -> int:
        now = self._now()
        return min(self.throttle.room(in_flight, now), self._turn.room(now))

    def _is_all_asked(self, following: _Request | None) -> bool:
        return following is None and not self._again and not self._unsure

    def _is_over(self) -> bool:
        is_ended = self._is_cancelled or self.ending.is_set() or self._now() >= self._submitter.deadline
        return self._trouble is not None or is_ended

    def _is_time_to_keep(self) -> bool:
        now = self._now()
        is_full = len(self._answers) >= SEGMENT_ANSWERS
        is_due = bool(self._answers) and now >= self._kept_at + SEGMENT_SECONDS
        return self._trouble is None and (is_full or is_due or now >= self._turn.renew_at)

    async def _call(self, request: _Request, replies: "asyncio.Queue[_Reply]") -> None:
        sent_at, answer, error = self._now(), None, None
        provider = self._submitter.parts.provider
        assert isinstance(provider, AnswersNow), "the planner refuses other providers"
        try:
            if sent_at >= self._turn.lease_until:
                raise _NotSent
            route = self._submitter.plan.route(self.shard)
            answer = await provider.answer(route.asked, request.line, route.way)
        except Exception as caught:  # noqa: BLE001 - the loop decides
            error = caught
        replies.put_nowait(_Reply(request, sent_at, answer, error))

    def _take_in(self, first: _Reply | None, replies: "asyncio.Queue[_Reply]") -> None:
        """Process all replies so far."""
        reply = first
        while reply is not None:
            self._note(reply)
            reply = None if replies.empty() else replies.get_nowait()
        now = self._now()
        patience = _PATIENCE_SECONDS[self._submitter.plan.route(self.shard).way]
        rest = self.throttle.pause(now)
        if self._trouble is None and rest > patience:
            self._trouble = Unavailable("The provider asks to wait for long.", retry_after=rest)
        elif self._trouble is None and now > self._answered_at + patience:
            minutes = counted(round(patience / 60), "minute")
            self._trouble = Unavailable(f"The provider has answered no request for {minutes}.")

    def _note(self, reply: _Reply) -> None:
        now = self._now()
        match reply.error:
            case None:
                assert reply.answer is not None
                self._answers.append(reply.answer.line)
                self._answered_at = now
                self.throttle.answered()
                self.throttle.stated(reply.answer.limits, reply.sent_at)
            case Unavailable(retry_after=retry_after, status=status):
                is_overload = status != _LIMIT_REACHED
                self.throttle.refused(reply.sent_at, now, retry_after, is_overload=is_overload)
                self._turn = self._turn.refused()
                self._again.appendleft(reply.request)  # it goes first, so that no request is refused for long
            case _NotSent():
                self._turn = self._turn.refused()
                self._again.append(reply.request)
            case UnknownFate():
                self.throttle.refused(reply.sent_at, now, None, is_overload=True)
                self._note_lost(reply.request)
            case BatchLLMError() as error:
                self._turn = self._turn.refused()
                self._trouble = self._trouble or error
            case error:
                self._note_lost(reply.request)
                self._trouble = error

    def _note_lost(self, request: _Request) -> None:
        self._turn = self._turn.lost(self._now())
        self._lost[request.ordinal] += 1
        self._unsure.append(request)

    async def _part(self, calls: set[asyncio.Task[None]], replies: "asyncio.Queue[_Reply]") -> None:
        """Wait a little for the calls in flight, and then cancel them. A cancelled call may have been paid."""
        cut: set[asyncio.Task[None]] = set()
        if calls:
            _, cut = await asyncio.wait(calls, timeout=_PARTING_SECONDS)
        await _stop(cut)
        calls.clear()
        self._take_in(None if replies.empty() else replies.get_nowait(), replies)
        for _ in cut:
            self._turn = self._turn.lost(self._now())

    def _now(self) -> float:
        return self._submitter.parts.clock()


async def _stop(tasks: set[asyncio.Task[None]]) -> None:
    """Cancel tasks, and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _next(replies: "asyncio.Queue[_Reply]") -> _Reply | None:
    """Return the next reply, or None if there is none for a moment."""
    with suppress(TimeoutError):
        return await asyncio.wait_for(replies.get(), _TICK_SECONDS)
    return None
