"""Wait for batches: one generator decides, and two short drivers act.

The generator yields an action (`Check`, `Sleep`, `Cancel`) and receives the result. An error of a check is sent to it
as a result, too, so that it can count failures. It never submits and never downloads. It ends with the reason why a
worker should look.
"""

import math
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import assert_never

from airflow_batch_llm.core.model import BatchState, BatchStatus
from airflow_batch_llm.core.printing import share, verb
from airflow_batch_llm.errors import ProviderError

#: Waking a worker starts a process. A part of the batches does not wake one more often than this.
MIN_WAKE_SECONDS = 60.0

#: Seconds that batches cancelled at the deadline get to end, so that their answers can be read.
CANCEL_GRACE_SECONDS = 900.0

#: Failed checks in a row after which a worker should look. The batches are left alone.
PATIENCE = 20

#: After this many failed looks in a row the provider counts as unreachable, and the log warns.
WARN_AFTER_LOOKS = 3

#: The last look before a deadline, and each look after it, may be repeated for this long.
LAST_LOOK_SECONDS = 5.0


class Wake(StrEnum):
    """The reason for which the waiting is over."""

    ALL_ENDED = "all_ended"
    PLACE_FREE = "place_free"  # a batch has ended, and shards wait for its place
    STRAY = "stray"  # another batch runs for the same requests: it is to be cancelled
    TIME = "time"  # the agreed time has come
    DEADLINE = "deadline"
    UNREACHABLE = "unreachable"  # the provider has not answered for long

    @property
    def told(self) -> str:
        """Return the reason for people."""
        match self:
            case Wake.ALL_ENDED:
                return "all batches have ended"
            case Wake.PLACE_FREE:
                return "a batch has ended, and another one takes its place"
            case Wake.STRAY:
                return "another batch runs for the same requests"
            case Wake.TIME:
                return "the agreed time has come"
            case Wake.DEADLINE:
                return "the run's time ends"
            case Wake.UNREACHABLE:
                return "the provider has not answered for long"
            case _:
                assert_never(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """Failed looks in a row, of workers and triggers together."""

    looks: int = 0
    since: float = 0.0
    """The time of the first failed look, in seconds since the epoch."""
    alerted: bool = False
    """`on_warning` was called for it."""

    @property
    def is_told(self) -> bool:
        """Return whether the outage has lasted long enough for a warning."""
        return self.looks >= WARN_AFTER_LOOKS

    def after(self, error: BaseException | None, now: float) -> "Tell":
        """Return the outage after one more look, which met this error or reached the provider, and what to log."""
        if error is None:
            return Tell(outage=Outage(), message=self._over(now) if self.is_told else "")
        longer = replace(self, looks=self.looks + 1, since=self.since if self.looks else now)
        return Tell(outage=longer, message=longer._described(now, error) if longer.is_told else "")

    def _described(self, now: float, error: BaseException) -> str:
        return (
            f"The provider could not be reached {self.looks:,} times in a row, since {_moment(self.since)}"
            f" ({_span(now - self.since)}): {error} The batches are left alone, and are looked at again."
        )

    def _over(self, now: float) -> str:
        return (
            f"The provider answers again. It could not be reached {self.looks:,} times in a row, from"
            f" {_moment(self.since)} to {_moment(now)}."
        )


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%H:%M:%S} UTC"


def _span(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds < 120 else f"{seconds / 60:,.0f} minutes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """The batches to wait for: identifiers and times (seconds since the epoch), nothing else."""

    batch_ids: tuple[str, ...]
    since: float  # the youngest batch was created then
    deadline: float
    not_before: float = 0.0  # nobody is woken earlier
    wake_at: float | None = None
    shards_wait: bool = False
    poll_interval: float | None = None  # None: seconds for young batches, minutes for old ones
    cancel_at_deadline: bool = False
    strays: tuple[str, ...] | None = None  # recorded ones: only others wake the worker. None: none does
    outage: Outage = Outage()
    """Looks that have failed before the waiting begins."""
    alerts: bool = False
    """Wake the worker once for an outage, because only a worker can call `on_warning`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Look at these batches, and stop trying after `within` seconds."""

    batch_ids: tuple[str, ...]
    within: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleep:
    """Pause for this many seconds, or a little less unless `exact`."""

    seconds: float
    exact: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Cancel this batch, and stop trying after `within` seconds."""

    batch_id: str
    within: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Tell:
    """A look has made an outage longer, or has ended it."""

    outage: Outage
    message: str = ""
    """For the log. Empty: nothing to say yet."""


Wish = Check | Sleep | Cancel | Tell
Reply = Mapping[str, BatchStatus] | ProviderError | None


#: However long a deferral took, its task is not left alone for longer than this on account of it.
_MOST_LAG_SECONDS = 60.0

#: A trigger that starts this many seconds later was restarted with its triggerer: the worker has ended long ago.
_RESTARTED_SECONDS = 600.0


def settled(watch: Watch, settling: float, now: float) -> Watch:
    """Return the watch of a trigger that starts now, which must not wake the task too early.

    The worker names a moment before its task is deferred, and a busy machine may need longer than that to defer it.
    The trigger starts only once the task is deferred, so the time to settle begins here. A deferral that took long
    shows how slow the machine is: the worker that is about to end gets as much time in addition.
    """
    if not watch.not_before or now > watch.not_before + _RESTARTED_SECONDS:
        return watch
    lag = min(_MOST_LAG_SECONDS, max(0.0, now - watch.not_before))
    return replace(watch, not_before=max(watch.not_before, now + settling + lag))


def interval(age_seconds: float) -> float:
    """Return the seconds until the next look at batches of this age.

    2 s at first, a twentieth of the age later, 90 s at most: an end is seen 45 s late at most, on average.
    """
    return min(90.0, max(2.0, age_seconds / 20))


def waiting(
    watch: Watch, clock: Callable[[], float], jitter: Callable[[], float]
) -> Generator[Wish, Reply, Wake]:
    """Decide what to do until there is something to look at. `jitter` gives numbers from 0 to 1."""
    began = clock()
    open_ids = watch.batch_ids
    failures, outage = 0, watch.outage
    end, cancelled = watch.deadline, False
    if (pause := watch.not_before - began) > 0:
        yield Sleep(seconds=pause, exact=True)
    while True:
        if open_ids:
            reply = yield Check(batch_ids=open_ids, within=max(LAST_LOOK_SECONDS, end - clock()))
            failures = failures + 1 if isinstance(reply, ProviderError) else 0
            told = outage.after(reply if isinstance(reply, ProviderError) else None, clock())
            if told.outage != outage:
                yield told
            outage = told.outage
            if isinstance(reply, Mapping):
                open_ids = tuple(i for i in open_ids if i in reply and not reply[i].state.is_over)
                if watch.strays is not None and _twins(reply) - set(watch.strays):
                    return Wake.STRAY
        now = clock()
        if wake := _wake(watch, open_ids, began, now):
            return wake
        if failures >= PATIENCE or (watch.alerts and outage.is_told and not outage.alerted):
            return Wake.UNREACHABLE
        if now >= end:
            if cancelled or not watch.cancel_at_deadline:
                return Wake.DEADLINE
            if not (yield from _cancel(open_ids)):
                return Wake.DEADLINE
            end, cancelled = now + CANCEL_GRACE_SECONDS, True
        yield Sleep(seconds=_pause(watch, now, end, max(failures, outage.looks), jitter()))


def _cancel(open_ids: tuple[str, ...]) -> Generator[Wish, Reply, bool]:
    """Cancel the running batches. Returns whether the provider could be asked, because otherwise waiting is useless."""
    for batch_id in open_ids:
        reply = yield Cancel(batch_id=batch_id, within=LAST_LOOK_SECONDS)
        if isinstance(reply, ProviderError) and reply.retryable:
            return False
    return True


def _twins(seen: Mapping[str, BatchStatus]) -> set[str]:
    return {twin for status in seen.values() for twin in status.twins}


def _wake(watch: Watch, open_ids: tuple[str, ...], began: float, now: float) -> Wake | None:
    if watch.batch_ids and not open_ids:
        return Wake.ALL_ENDED
    if watch.wake_at is not None and now >= watch.wake_at:
        return Wake.TIME
    some_ended = len(open_ids) < len(watch.batch_ids)
    if some_ended and watch.shards_wait and now - began >= MIN_WAKE_SECONDS:
        return Wake.PLACE_FREE
    return None


def _pause(watch: Watch, now: float, end: float, failures: int, jitter: float) -> float:
    pause = watch.poll_interval if watch.poll_interval is not None else interval(now - watch.since)
    pause = min(300.0, pause * 2 ** min(failures, 8)) if failures else pause
    until = min(end, watch.wake_at) if watch.wake_at is not None else end
    return max(0.05, min(pause * (0.9 + 0.2 * jitter), until - now))


def drive(steps: Generator[Wish, Reply, Wake], perform: Callable[[Wish], Reply]) -> Wake:
    """Perform the generator's actions, one after another."""
    reply: Reply = None
    while True:
        try:
            wish = steps.send(reply)
        except StopIteration as stop:
            wake: Wake = stop.value
            return wake
        try:
            reply = perform(wish)
        except ProviderError as error:
            reply = error


async def adrive(steps: Generator[Wish, Reply, Wake], perform: Callable[[Wish], Awaitable[Reply]]) -> Wake:
    """Do as `drive` does, on an event loop."""
    reply: Reply = None
    while True:
        try:
            wish = steps.send(reply)
        except StopIteration as stop:
            wake: Wake = stop.value
            return wake
        try:
            reply = await perform(wish)
        except ProviderError as error:
            reply = error


@dataclass(frozen=True, slots=True)
class WaitProgress:
    """Counts over all batches that were ever looked at."""

    _seen: dict[str, BatchStatus] = field(default_factory=dict)

    @classmethod
    def of(cls, batch_ids: Iterable[str]) -> "WaitProgress":
        """Return the counts before the first look: all batches run, as far as is known."""
        return cls(_seen={batch_id: BatchStatus(state=BatchState.RUNNING) for batch_id in batch_ids})

    def add(self, statuses: Mapping[str, BatchStatus]) -> None:
        """Return the counts after another look at some of the batches."""
        self._seen.update(statuses)

    @property
    def requests(self) -> int:
        """All requests of the batches whose provider counts them."""
        return sum(status.total or 0 for status in self._seen.values())

    @property
    def finished(self) -> int:
        """Those of them that are no longer running."""
        return sum(_finished(status) for status in self._seen.values())

    def until(self, now: float, seconds: float) -> str:
        """Return the counts with the time of the next look."""
        again = datetime.fromtimestamp(now, UTC) + timedelta(seconds=seconds)
        return f"{self}; looked at again in {seconds:,.0f} s, at {again:%H:%M:%S} UTC."

    def __str__(self) -> str:
        if not self._seen:
            return "No batch is running"
        ended = sum(status.state.is_over for status in self._seen.values())
        said = f"{share(ended, len(self._seen), 'batch')} {verb(len(self._seen), 'has', 'have')} ended"
        if not self.requests:
            return said
        done = share(self.finished, self.requests, "request")
        return f"{said}, {done} {verb(self.requests, 'is', 'are')} done"


def _finished(status: BatchStatus) -> int:
    return (status.total if status.state.is_over else status.finished) or 0
