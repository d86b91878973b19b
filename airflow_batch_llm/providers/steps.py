"""Run each verb with two drivers: a verb is a generator that yields the calls it needs and receives their answers.

`drive` performs the calls with a synchronous SDK client (workers), `adrive` with an asynchronous one (triggers).
A failed call comes back as a value, so that the verb decides to retry, to give up or to look elsewhere.
Only calls that are safe to repeat go through `patiently`; a creation never does.
"""

import asyncio
import inspect
import math
import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, TypeAlias, TypeVar

from airflow_batch_llm.core.model import BatchState, BatchStatus
from airflow_batch_llm.errors import Refused, Unavailable, raise_alone
from airflow_batch_llm.providers.incoming import NotUnderstood, not_understood, understood

T = TypeVar("T")

#: The time by which the caller wants an answer, on the monotonic clock. None: each call has its own limit.
_ends_at: ContextVar[float | None] = ContextVar("ends_at", default=None)

#: Seconds without a byte after which a call has failed.
CALL_TIMEOUT = 60.0

#: Each call gets at least this many seconds, also right before the limit.
_LEAST_CALL_SECONDS = 5.0


@contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    """Limit all verbs in this block to `seconds`.

    Each verb makes its call at least once. An outer block with an earlier end still counts.
    """
    token = _ends_at.set(time.monotonic() + min(seconds, _seconds_left()))
    try:
        yield
    finally:
        _ends_at.reset(token)


def call_timeout() -> float:
    """Return the seconds that a call may take from now on."""
    return max(_LEAST_CALL_SECONDS, min(CALL_TIMEOUT, _seconds_left()))


def _seconds_left() -> float:
    ends_at = _ends_at.get()
    return math.inf if ends_at is None else ends_at - time.monotonic()


@dataclass(frozen=True, slots=True)
class Invoke:
    """One call. With the synchronous client `call` returns the answer, with the asynchronous one an awaitable."""

    call: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Delay:
    """A pause of this many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Each:
    """Several verbs side by side. The reply lists what each returned, or the exception that ended it, in order."""

    flows: "Sequence[Calls[Any]]"
    at_once: int = 8


Step: TypeAlias = Invoke | Delay | Each
#: A verb as a generator: yields steps, is sent their replies (a failed `Ask` replies its exception), returns T.
Calls: TypeAlias = Generator[Step, Any, T]
#: Translates an SDK's exception into the package's error. An exception that is not a provider's failure comes back unchanged.
Judge: TypeAlias = Callable[[Exception], Exception]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """The time limit for repeating a call that is safe to repeat. `longest` bounds each pause, also a Retry-After."""

    attempts: int = 5
    first: float = 0.5
    longest: float = 60.0

    def pause(self, attempt: int, error: Exception) -> float | None:
        """Return the seconds until the next attempt. Returns None if the error is final, or the caller's schedule is better."""
        if not isinstance(error, Unavailable) or attempt + 1 >= self.attempts:
            return None
        longest = min(self.longest, _seconds_left())
        if error.retry_after is not None:
            return error.retry_after if error.retry_after <= longest else None
        ceiling: float = min(self.longest, self.first * 2**attempt)
        pause = ceiling * random.uniform(0.5, 1.0)  # noqa: S311 - so that clients do not return together
        return pause if pause <= longest else None


#: The patience of a worker and of a trigger. A trigger shares its event loop, and looks again soon.
WORKER = Patience(attempts=6, first=0.5, longest=60.0)
TRIGGER = Patience(attempts=3, first=0.5, longest=30.0)


#: Attempts at a call that a gateway answers with an HTML page. That seldom changes within seconds, and the caller looks again.
_PUZZLED_ATTEMPTS = 2


def patiently(
    call: Callable[[Any], Any],
    judge: Judge,
    patience: Patience,
    read: Callable[[Any], T] = lambda answer: answer,
) -> Calls[T]:
    """Repeat a safe call within its patience, and return what `read` makes of the answer.

    Raises the judged error once it is final or patience is spent. An answer that cannot be read is `Unavailable`: a
    gateway or a proxy may have given it in the vendor's place.
    """
    attempt = 0
    while True:
        reply = yield Invoke(call)
        if not isinstance(reply, Exception):
            try:
                with understood():
                    return read(reply)
            except NotUnderstood as not_read:
                reply = not_read
        error = judge(reply)
        puzzled = reply.__cause__ if isinstance(reply.__cause__, NotUnderstood) else reply
        if isinstance(puzzled, ValueError) and (error is reply or isinstance(error, Unavailable)):
            error = not_understood(puzzled)
            patience = replace(patience, attempts=min(patience.attempts, _PUZZLED_ATTEMPTS))
        pause = patience.pause(attempt, error)
        if pause is None:
            if error is reply:
                raise reply
            raise_alone(error)
        yield Delay(pause)
        attempt += 1


class AlreadyGone(Exception):
    """The object of a deletion or a question does not exist. A judge returns this to the verb that set the judge."""


def drive(calls: Calls[T], client: Any) -> T:
    """Perform a verb with a synchronous client."""
    reply: object = None
    while True:
        try:
            step = calls.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result
        reply = _perform(step, client)


async def adrive(calls: Calls[T], client: Any) -> T:
    """Perform a verb with an asynchronous client."""
    reply: object = None
    while True:
        try:
            step = calls.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result
        reply = await _aperform(step, client)


def _perform(step: Step, client: Any) -> object:
    match step:
        case Delay(seconds):
            time.sleep(seconds)
            return None
        case Invoke(call):
            try:
                return call(_hurried(client))
            except Exception as error:  # noqa: BLE001 - the verb decides
                return error
        case Each((flow,)):
            return [_settle(flow, client)]
        case Each(flows, at_once):
            with ThreadPoolExecutor(max_workers=max(1, min(at_once, len(flows)))) as pool:
                # A thread does not inherit the limit of the one that starts it.
                settled = [pool.submit(copy_context().run, _settle, flow, client) for flow in flows]
                return [one.result() for one in settled]


def _hurried(client: Any) -> Any:
    """Return the client, with a shorter time-out if its SDK has a way to set one and the limit is near."""
    if call_timeout() >= CALL_TIMEOUT or not hasattr(client, "with_options"):
        return client
    return client.with_options(timeout=call_timeout())


async def _aperform(step: Step, client: Any) -> object:
    match step:
        case Delay(seconds):
            await asyncio.sleep(seconds)
            return None
        case Invoke(call):
            try:
                answer = call(_hurried(client))
                return await answer if inspect.isawaitable(answer) else answer
            except Exception as error:  # noqa: BLE001 - the verb decides
                return error
        case Each(flows, at_once):
            places = asyncio.Semaphore(at_once)
            return await asyncio.gather(*(_asettle(flow, client, places) for flow in flows))


def _settle(flow: Calls[Any], client: Any) -> object:
    try:
        return drive(flow, client)
    except Exception as error:  # noqa: BLE001 - the verb decides
        return error


async def _asettle(flow: Calls[Any], client: Any, places: asyncio.Semaphore) -> object:
    async with places:
        try:
            return await adrive(flow, client)
        except Exception as error:  # noqa: BLE001 - the verb decides
            return error


#: A server that has no list of its batches answers one of these.
_NO_LIST = frozenset({400, 404, 405, 501})
#: A server that does not know the batch from which a page is to begin answers one of these.
_NO_CURSOR = frozenset({400, 404})

#: A part of a list is this share of a page, so that it still fits into one page if batches were added or times are inexact.
_FULL_SHARE = 0.92


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusPage:
    """One page of a list, newest first. `after` leads to the next. None: this is the last page."""

    statuses: Mapping[str, BatchStatus]
    after: str | None
    tokens: Mapping[str, str] = field(default_factory=dict)
    """Shard tokens of the batches that were not cancelled."""
    created: Mapping[str, float] = field(default_factory=dict)
    """The times at which the batches were created, in seconds since the epoch, newest first. Needed where a list has `Parts`."""


#: The page of a list that a cursor leads to. None: its first page.
Pager: TypeAlias = Callable[[str | None], Calls[StatusPage]]


@dataclass(frozen=True, slots=True)
class Mark:
    """A batch between two parts of a list."""

    batch_id: str
    created_at: float


@dataclass(slots=True)
class ListMemory:
    """Keeps the batches and times that a provider's list has shown in earlier looks."""

    by_name: set[str] = field(default_factory=set)
    """Batches that are asked for by name, because the first page did not show them."""
    created: Mapping[str, float] = field(default_factory=dict)
    """The times at which batches were created: exact if a look has shown them, or about, as the waiting tasks know."""
    has_failed: bool = False
    """The last look could not read all parts of the list."""

    def note(self, about: Mapping[str, float]) -> None:
        """Take approximate creation times. Times that the list has shown are kept."""
        unseen = {batch_id: at for batch_id, at in about.items() if batch_id not in self.created}
        self.created = {**self.created, **unseen}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A list that can be read in parts, side by side."""

    size: int
    """Batches in a full page."""
    memory: ListMemory
    between: Callable[[Mark | None, Mark | None], Pager]
    """Return the pages of batches older than a mark, down to another mark and with it. With None there is no lower end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """The two ways to look: a page of the list, or one batch.

    Where pages have tokens, `by_name` is a set, and a single batch too is looked up by a page, which shows its twins. It
    remembers those that the first page did not show: from then on they are asked for by name, for one call and not two.
    """

    page: Pager
    one: Callable[[str], Calls[BatchStatus]]
    by_name: set[str] | None = None
    parts: Parts | None = None


def from_batches(page: Pager) -> Callable[[Mark | None, Mark | None], Pager]:
    """Return the parts of a list whose cursors are ids of batches."""

    def between(newest: Mark | None, oldest: Mark | None) -> Pager:
        def part(after: str | None) -> Calls[StatusPage]:
            told = yield from page(after or (newest.batch_id if newest else None))
            is_met = oldest is not None and oldest.batch_id in told.statuses
            return replace(told, after=None) if is_met else told

        return part

    return between


def look_up(batch_ids: Sequence[str], lookup: Lookup) -> Calls[dict[str, BatchStatus]]:
    """Return the status of each of these batches. Raises the first error of any of them."""
    wanted = list(dict.fromkeys(batch_ids))
    if len(wanted) == 1 and lookup.by_name is not None and wanted[0] not in lookup.by_name:
        pages = yield from _first_page(wanted[0], lookup)
    else:
        pages = yield from _pages(wanted, lookup)
    listed = {batch_id: status for page in pages for batch_id, status in page.statuses.items()}
    found = {batch_id: listed[batch_id] for batch_id in wanted if batch_id in listed}
    missing = [batch_id for batch_id in wanted if batch_id not in found]
    # A batch that the list did not show is asked for by name: a list may lag behind a creation.
    replies = (yield Each([lookup.one(batch_id) for batch_id in missing])) if missing else []
    for batch_id, reply in zip(missing, replies, strict=True):
        if isinstance(reply, Exception):
            raise reply
        found[batch_id] = reply
    if lookup.parts is not None:
        _remember(lookup.parts.memory, wanted, pages)
    tokens = {batch_id: token for page in pages for batch_id, token in page.tokens.items()}
    return _with_twins(found, listed, tokens)


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a list that has further pages."""

    number: int
    page: Pager
    after: str | None = None
    is_first: bool = True


def _pages(wanted: Sequence[str], lookup: Lookup) -> Calls[list[StatusPage]]:
    """Pages while they are fewer calls than one for each batch: while the last ones have shown several, or a tenth.

    The next pages of all parts are asked for side by side. Returns them in the order of the list.
    """
    parts = _parts(wanted, lookup)
    memory = ListMemory() if lookup.parts is None else lookup.parts.memory
    if memory.has_failed and len(parts) > 1:
        # An outage that lasts costs the calls of one page, and not those of each part.
        yield from lookup.page(None)
    memory.has_failed = True
    missing, shown = set(wanted), 0
    told: list[tuple[_Part, StatusPage]] = []
    while parts and len(missing) > len(parts):
        if shown <= len(parts) and len(told) >= max(len(parts), len(missing) // 10):
            break
        latest = _told(parts, (yield Each([part.page(part.after) for part in parts])))
        told += latest
        parts = [
            replace(part, after=page.after, is_first=False) for part, page in latest if page.after is not None
        ]
        before = len(missing)
        missing.difference_update(*(page.statuses for _, page in latest))
        shown = before - len(missing)
    memory.has_failed = False
    return [page for _, page in sorted(told, key=lambda one: one[0].number)]


def _told(parts: Sequence[_Part], replies: Sequence[Any]) -> list[tuple[_Part, StatusPage]]:
    """Return the pages that were answered, each with its part. Raises the first error of another kind.

    A batch that marks the beginning of a part may have been deleted since. The part before it does not end there then.
    """
    told = []
    for part, reply in zip(parts, replies, strict=True):
        if not isinstance(reply, Exception):
            told.append((part, reply))
        elif not (
            part.number and part.is_first and isinstance(reply, Refused) and reply.status in _NO_CURSOR
        ):
            raise reply
    return told


def _parts(wanted: Sequence[str], lookup: Lookup) -> list[_Part]:
    """Cut the list from the newest batch that is wanted to the oldest into parts of nearly a page each.

    What is newer is a part, too, so that no number of new batches makes another one longer.
    """
    whole = [_Part(0, lookup.page)]
    if lookup.parts is None:
        return whole
    created = lookup.parts.memory.created
    times = [created[batch_id] for batch_id in wanted if batch_id in created]
    if not times:
        return whole
    oldest, newest = min(times), max(times)
    listed = [Mark(batch_id, at) for batch_id, at in created.items() if oldest <= at <= newest]
    listed.sort(key=lambda mark: -mark.created_at)  # stable: the order of the list counts within a second
    if len(listed) <= lookup.parts.size:
        return whole
    number = math.ceil(len(listed) / (_FULL_SHARE * lookup.parts.size))
    marks = [listed[max(0, len(listed) * part // number - 1)] for part in range(number)]
    ends = pairwise((None, *marks, None))
    return [_Part(part, lookup.parts.between(*both)) for part, both in enumerate(ends)]


def _remember(memory: ListMemory, wanted: Iterable[str], pages: Iterable[StatusPage]) -> None:
    """Keep the times that these pages have shown, and those of other wanted batches. Forget the rest."""
    seen = {batch_id: at for page in pages for batch_id, at in page.created.items()}
    kept = set(wanted) - seen.keys()
    unseen = {batch_id: at for batch_id, at in memory.created.items() if batch_id in kept}
    memory.created = seen | unseen


def _first_page(batch_id: str, lookup: Lookup) -> Calls[list[StatusPage]]:
    """Return the list's first page, in place of a call by name. A server may have batches and no list of them."""
    assert lookup.by_name is not None
    try:
        page = yield from lookup.page(None)
    except Refused as error:
        if error.status not in _NO_LIST:  # nor would the call by name be answered
            raise
        lookup.by_name.add(batch_id)
        return []
    if batch_id not in page.statuses and page.after is not None:
        lookup.by_name.add(batch_id)
    return [page]


def _with_twins(
    found: dict[str, BatchStatus], listed: Mapping[str, BatchStatus], tokens: Mapping[str, str]
) -> dict[str, BatchStatus]:
    """Add to each batch's status the other batches that run under the same token."""
    running: dict[str, list[str]] = {}
    for batch_id, token in tokens.items():
        if batch_id not in found and listed[batch_id].state is BatchState.RUNNING:
            running.setdefault(token, []).append(batch_id)
    return {
        batch_id: replace(status, twins=tuple(running.get(tokens.get(batch_id, ""), ())))
        for batch_id, status in found.items()
    }
