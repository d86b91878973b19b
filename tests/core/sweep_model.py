"""The real sweep, taken one read or write at a time: it is stopped where it asks, and known by the answers it has had.

To go on, it runs again from its beginning with those answers. So it needs no machine of its own to be explored. Answers
that can make no difference any more are forgotten, so that equal sweeps are seen to be equal.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from airflow_batch_llm.core.journal import Entry, RecordKind, Searched, Terms, stand
from airflow_batch_llm.core.model import BatchState, BatchStatus, Search, Sighting
from airflow_batch_llm.core.request import shard_token
from airflow_batch_llm.core.submission import Append, CancelOwn, Find, Read
from airflow_batch_llm.stage.records.plan import PlannedShard
from airflow_batch_llm.stage.send.sweeping import Sweeper

_SHARD = 1


@dataclass(frozen=True, slots=True)
class Check:
    """Ask how these batches are. Answer: their states."""

    batch_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """Look at the shard's batch by a list. Answer: the ids of others that the list shows running under its token."""

    batch_id: str


SweepAction = Read | Find | Append | Check | Look | CancelOwn

#: How a sweep begins: it searches and cancels what is spare, or it looks at the shard's batch and takes its twins.
SEARCHING, LOOKING = (("searching",), ("looking",))


class _Asks(Exception):
    """The sweep wants an answer that it has not had yet."""

    def __init__(self, action: SweepAction) -> None:
        self.action = action


@dataclass(frozen=True, slots=True)
class _World:
    """The parts that a sweep reads and writes, played from a script."""

    answers: Iterator[Any]

    def _ask(self, action: SweepAction) -> Any:
        for answer in self.answers:
            return answer
        raise _Asks(action)

    def journal(self, number: int) -> tuple[Entry, ...]:
        assert number == _SHARD
        return cast("tuple[Entry, ...]", self._ask(Read()))

    def append(self, number: int, at: int, entry: Entry) -> bool:
        assert number == _SHARD
        # The nonce is random; whoever asks gives it one that says who and when.
        return bool(self._ask(Append(number=at, entry=replace(entry, nonce=""))))

    def find(self, search: Search) -> Sequence[Sighting]:
        return cast("Sequence[Sighting]", self._ask(Find()).sightings)

    def check(self, batch_ids: tuple[str, ...]) -> Mapping[str, BatchStatus]:
        return cast("Mapping[str, BatchStatus]", dict(self._ask(Check(batch_ids))))

    def look(self, batch_id: str) -> tuple[str, ...]:
        return cast("tuple[str, ...]", self._ask(Look(batch_id)))

    def cancel(self, batch_id: str) -> None:
        self._ask(CancelOwn(batch_id=batch_id))


@dataclass(frozen=True, slots=True)
class _Plan:
    """The facts of a plan that a sweep reads."""

    run_token: str
    shards: tuple[PlannedShard, ...]
    planned_at: float = 0.0

    def token(self, shard: PlannedShard) -> str:
        return shard_token(self.run_token, shard.number)

    def route(self, shard: PlannedShard) -> Any:
        return SimpleNamespace(call=SimpleNamespace(attachments=()))


def sweep_action(answers: Sequence[Any], terms: Terms) -> SweepAction | None:
    """Return the question of a sweep that has had these answers, the first of which begins it, or None if it is over."""
    begins, *rest = answers
    world: Any = _World(iter(rest))
    provider = SimpleNamespace(name="model", find=world.find, check=world.check, cancel=world.cancel)
    # The register of recorded batches is a help for a provider's listing, of which this world shows all.
    workspace = SimpleNamespace(names=lambda path: (), create=lambda path, data: True)
    parts: Any = SimpleNamespace(
        provider=provider,
        workspace=workspace,
        clock=lambda: 0.0,
        log=lambda message: None,
        warn=lambda message: None,
        by=None,
    )
    folder: Any = SimpleNamespace(run_id="run")
    journals: Any = SimpleNamespace(read=world.journal, append=world.append)
    shard = PlannedShard(
        number=_SHARD,
        requests=terms.requests,
        rows=terms.requests,
        bytes=1,
        requests_sha256="",
        keys_sha256="",
    )
    plan: Any = _Plan(run_token=terms.token.rpartition("-")[0], shards=(shard,))
    assert plan.token(shard) == terms.token
    sweeper = Sweeper(parts=parts, folder=folder, journals=journals, plans=(plan,))
    try:
        if begins == SEARCHING[0]:
            sweeper.search()
            spare = stand(journals.read(_SHARD)).spare
            sweeper.settle(dict.fromkeys(spare, (plan, shard)))
        else:
            standing = stand(journals.read(_SHARD))
            if standing.batch is not None:
                batch_id = standing.batch.batch_id
                seen = {batch_id: BatchStatus(state=BatchState.RUNNING, twins=world.look(batch_id))}
                sweeper.take_twins({batch_id: (shard, standing)}, seen)
    except _Asks as asks:
        return asks.action
    return None


def forget(answers: Sequence[Any], terms: Terms) -> tuple[Any, ...]:
    """Return the shortest history after which a sweep does the same."""
    begins, *rest = answers
    if not rest:
        return (begins,)
    return (begins, *(_searched(rest, terms) if begins == SEARCHING[0] else _looked(rest)))


def _searched(answers: Sequence[Any], terms: Terms) -> tuple[Any, ...]:
    searched, *rest = answers
    sightings = [
        replace(one, state=BatchState.RUNNING) for one in searched.sightings if one.token == terms.token
    ]
    if not sightings:  # the spare ones are told, and the rest is about them
        told = (_submitted(rest[0]), *rest[1:]) if rest else ()
        return (Searched(at=0.0, sightings=()), *told)
    part = _recording(sightings[0].batch_id, rest)
    left, told = (sightings[1:], ()) if part.done else (sightings, part.kept)
    return (Searched(at=0.0, sightings=tuple(left)), *told)


def _looked(answers: Sequence[Any]) -> tuple[Any, ...]:
    journal, *rest = answers
    own = _submitted(journal)[:1]
    if not rest:
        return (own,)
    twins, *rest = rest
    if not twins:
        return (own, ())
    part = _recording(twins[0], rest)
    after = rest[part.used :]
    if not part.done or not after:
        return (own, twins, *part.kept)
    if twins[0] not in stand(after[0]).spare or len(after) > 1:
        return (own, twins[1:])
    return (own, twins, *part.kept, _submitted(after[0]))


class _Recording(NamedTuple):
    """The answers that are about the record of one batch: shortened, whether they are all, and how many they were."""

    kept: tuple[Any, ...]
    done: bool
    used: int


def _recording(batch_id: str, answers: Sequence[Any]) -> _Recording:
    if not answers:
        return _Recording((), done=False, used=0)
    journal, *appended = answers
    own = _submitted(journal)
    if not own or any(entry.batch_id == batch_id for entry in own):
        return _Recording((own,), done=True, used=1)
    if appended:
        return _Recording((own[:1], True), done=True, used=2)
    filler = Entry(
        kind=RecordKind.RELEASED, nonce="", at=0.0
    )  # says nothing about an intent that there is not
    return _Recording(((*own[:1], *(filler for _ in journal[1:])),), done=False, used=1)


def _submitted(journal: Any) -> tuple[Entry, ...]:
    return tuple(entry for entry in journal if entry.kind is RecordKind.SUBMITTED)
