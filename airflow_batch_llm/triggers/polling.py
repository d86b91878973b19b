"""One client and one poll for all triggers of a triggerer that have the same connection.

Batches that are due are gathered, asked for together, and handed out. The pauses of triggers come into step by
themselves: a round takes along those that would be due soon.
"""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import Context
from copy import copy
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeAlias
from weakref import WeakKeyDictionary

from airflow_batch_llm.core.model import BatchStatus
from airflow_batch_llm.errors import ProviderError, Refused
from airflow_batch_llm.hooks.monitoring import quiet_sdks_here
from airflow_batch_llm.providers.base import NotesCreations, Provider
from airflow_batch_llm.providers.steps import no_longer_than

#: Seconds between the first question and the round, and the most of them while further questions come: triggers that
#: start together ask together.
_GATHER_SECONDS, _MOST_GATHERING_SECONDS = 0.2, 5.0

#: Turns of the event loop after such a pause. A busy machine may wake the poller before triggers that are ready to ask.
_TURNS = 20

#: A trigger that would be due within this share of its pause joins a round that is made anyway.
_EARLY_SHARE = 0.15

#: Triggers that are woken in one turn of the event loop: each has something to do then.
_WOKEN_AT_ONCE = 10

#: Questions in a row that fail after which a round counts as an outage, unless one was answered.
_FAILURES_OF_AN_OUTAGE = 6

#: A key that is refused is looked up again at most this often.
_RENEWAL_SECONDS = 30.0

_UNAUTHORIZED = 401
#: Statuses that say nothing of a batch: a key, its rights, the rate of calls, a gateway.
_STATUS_OF_ALL = (_UNAUTHORIZED, 403, 429, 502, 503, 504)

Opener: TypeAlias = Callable[[], Awaitable[Provider]]


@dataclass(slots=True, eq=False)
class _Question:
    """The batches that one trigger asks for."""

    batch_ids: Sequence[str]
    since: float
    """The time at which the youngest of them was created, in seconds since the epoch."""
    ends_at: float
    """The time at which the trigger gives up, on the loop's clock."""
    answer: asyncio.Future[Mapping[str, BatchStatus]]


@dataclass(slots=True, eq=False)
class _Pause:
    """One trigger's pause."""

    due_at: float
    seconds: float
    over: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True, eq=False)
class Poller:
    """The shared poll of one connection, on one event loop."""

    key: str
    open: Opener
    users: int = 0
    _provider: Provider | None = None
    _renewed_at: float = -math.inf
    _opening: asyncio.Task[Provider] | None = None
    _questions: list[_Question] = field(default_factory=list)
    _pauses: set[_Pause] = field(default_factory=set)
    _apart: set[str] = field(default_factory=set)
    """Batches that have spoilt an answer."""
    _rounds: asyncio.Task[None] | None = None

    async def check(
        self, batch_ids: Sequence[str], within: float, *, since: float
    ) -> Mapping[str, BatchStatus]:
        """Return the status of these batches, the youngest of which was created at `since`.

        Raises what is wrong with them, and not with those of others.
        """
        provider = await self.connected()
        try:
            return await self._asked(batch_ids, within, since)
        except Refused as error:
            if error.status != _UNAUTHORIZED or not await self._renewed(provider):
                raise
        await self.connected()
        return await self._asked(batch_ids, within, since)

    async def cancel(self, batch_id: str) -> None:
        """Cancel a batch."""
        await (await self.connected()).acancel(batch_id)

    async def sleep(self, seconds: float) -> None:
        """Pause, or a little less if a round is made before that."""
        now = asyncio.get_running_loop().time()
        pause = _Pause(due_at=now + seconds, seconds=seconds)
        self._pauses.add(pause)
        try:
            async with asyncio.timeout(seconds):
                await pause.over.wait()
        except TimeoutError:
            pass
        finally:
            self._pauses.discard(pause)

    async def connected(self) -> Provider:
        """The provider. A connection is looked up once for all, and all go on in the same turn of the event loop."""
        if self._provider is not None:
            return self._provider
        if self._opening is None:
            self._opening = asyncio.create_task(self._opened())
        return await asyncio.shield(self._opening)

    async def _opened(self) -> Provider:
        try:
            self._provider = await self.open()
            return self._provider
        finally:
            self._opening = None

    async def close(self) -> None:
        """End the rounds and close the client."""
        for task in filter(None, (self._rounds, self._opening)):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._rounds = None
        opened, self._provider = self._provider, None
        if opened is not None:
            await opened.aclose()

    async def _renewed(self, refused: Provider) -> bool:
        """Let go of a provider whose key was refused: the connection may hold another one by now."""
        if self._provider is not refused:
            return True
        now = asyncio.get_running_loop().time()
        if now < self._renewed_at + _RENEWAL_SECONDS:
            return False
        self._renewed_at, self._provider = now, None
        await refused.aclose()
        return True

    async def _asked(
        self, batch_ids: Sequence[str], within: float, since: float
    ) -> Mapping[str, BatchStatus]:
        loop = asyncio.get_running_loop()
        question = _Question(batch_ids, since, loop.time() + within, loop.create_future())
        self._questions.append(question)
        if self._rounds is None or self._rounds.done():
            # It serves others, too: nothing of this trigger's context, such as its time limit, goes with it.
            self._rounds = asyncio.create_task(self._make_rounds(), context=Context())
        return await question.answer

    async def _make_rounds(self) -> None:
        """Make rounds until no task asks."""
        quiet_sdks_here()
        while self._questions:
            await self._wake_soon_due()
            await self._gather()
            waiting, self._questions = self._questions, []
            try:
                await self._round(waiting)
            except Exception as error:  # noqa: BLE001 - every caller is told
                for question in waiting:
                    if not question.answer.done():
                        question.answer.set_exception(error)

    async def _gather(self) -> None:
        """Wait for a moment, and longer while others join."""
        loop = asyncio.get_running_loop()
        until, seen = loop.time() + _MOST_GATHERING_SECONDS, 0
        while len(self._questions) > seen and loop.time() < until:
            seen = len(self._questions)
            await asyncio.sleep(_GATHER_SECONDS)
            for _ in range(_TURNS):
                await asyncio.sleep(0)

    async def _wake_soon_due(self) -> None:
        now = asyncio.get_running_loop().time()
        due = [pause for pause in self._pauses if pause.due_at - now <= _EARLY_SHARE * pause.seconds]
        for number, pause in enumerate(due, start=1):
            pause.over.set()
            if number % _WOKEN_AT_ONCE == 0:
                await asyncio.sleep(0)

    async def _round(self, waiting: Sequence[_Question]) -> None:
        """Ask for all of them at once, and alone for those whose batches have spoilt an answer before."""
        alone = [question for question in waiting if not self._apart.isdisjoint(question.batch_ids)]
        known = set(alone)
        outage = await self._ask([question for question in waiting if question not in known])
        for number, question in enumerate(alone):
            if outage is not None:
                await _hand_out(outage, alone[number:])
                return
            outage = await self._ask([question])

    async def _ask(self, waiting: Sequence[_Question]) -> ProviderError | None:
        """Answer these questions, in halves where a batch of one spoils the answer for the others.

        Returns the error if it is nobody's own: then all questions have it.
        """
        groups = deque([waiting])
        failed, is_answering = 0, False
        while groups:
            group = [question for question in groups.popleft() if not question.answer.done()]
            if not group:
                continue
            try:
                seen = await self._status_of(group)
            except ProviderError as error:
                failed += 1
                if _is_for_all(error) or (not is_answering and failed == _FAILURES_OF_AN_OUTAGE):
                    await _hand_out(error, [*group, *chain.from_iterable(groups)])
                    return error
                if len(group) == 1:
                    self._apart.update(group[0].batch_ids)
                    await _hand_out(error, group)
                else:
                    middle = len(group) // 2
                    groups += [group[:middle], group[middle:]]
            else:
                is_answering = True
                if len(group) == 1:
                    self._apart.difference_update(group[0].batch_ids)
                await _hand_out(seen, group)
        return None

    async def _status_of(self, group: Sequence[_Question]) -> Mapping[str, BatchStatus]:
        provider = await self.connected()
        created = {batch_id: question.since for question in group for batch_id in question.batch_ids}
        if isinstance(provider, NotesCreations):
            provider.note_created(created)
        within = max(question.ends_at for question in group) - asyncio.get_running_loop().time()
        with no_longer_than(within):
            return await provider.acheck(tuple(created))


async def _hand_out(reply: Mapping[str, BatchStatus] | ProviderError, group: Iterable[_Question]) -> None:
    """Answer these questions, a few in each turn of the event loop."""
    for number, question in enumerate(group, start=1):
        if question.answer.done():
            continue
        if isinstance(reply, ProviderError):
            question.answer.set_exception(copy(reply))  # each waiter adds its own traceback
        else:
            question.answer.set_result({one: reply[one] for one in question.batch_ids if one in reply})
        if number % _WOKEN_AT_ONCE == 0:
            await asyncio.sleep(0)


def _is_for_all(error: ProviderError) -> bool:
    """Return whether the connection or the key is the reason, and no single batch."""
    return error.status in (None, *_STATUS_OF_ALL)


#: The pollers of each event loop, by connection and parameters.
_pollers: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Poller]] = WeakKeyDictionary()


def join(key: str, opener: Opener) -> Poller:
    """Return the poller that this event loop has for a connection. `leave` must follow."""
    pollers = _pollers.setdefault(asyncio.get_running_loop(), {})
    poller = pollers.setdefault(key, Poller(key=key, open=opener))
    poller.users += 1
    return poller


async def leave(poller: Poller) -> None:
    """Let go of a poller. The last one closes its client."""
    poller.users -= 1
    if not poller.users:
        _pollers[asyncio.get_running_loop()].pop(poller.key, None)
        await poller.close()
