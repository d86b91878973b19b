"""The real sweep, taken one read or write at a time: it is stopped where it asks, and known by the answers it has had.

To go on, it runs anew from its beginning with those answers. So it needs no machine of its own to be explored. Answers
that can make no difference any more are forgotten, so that equal sweeps are seen to be equal.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

from airflow_batch_llm.core.journal import Entry, Kind, Searched, Terms, stand
from airflow_batch_llm.core.model import BatchState, BatchStatus, Search, Sighting
from airflow_batch_llm.core.request import shard_token
from airflow_batch_llm.core.submission import Append, Cancel, Find, Read
from airflow_batch_llm.stage.records.plan import PlannedShard
from airflow_batch_llm.stage.send.sweeping import Sweeper

_SHARD = 1


@dataclass(frozen=True, slots=True)
class Check:
    """Ask how these batches are. Answer: their states."""

    batch_ids: tuple[str, ...]


SweepAction = Read | Find | Append | Check | Cancel


class _Asks(Exception):
    """The sweep wants an answer that it has not had yet."""

    def __init__(self, action: SweepAction) -> None:
        self.action = action


@dataclass(frozen=True, slots=True)
class _World:
    """All that a sweep reads and writes, played from a script."""

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

    def cancel(self, batch_id: str) -> None:
        self._ask(Cancel(batch_id=batch_id))


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a sweep wants to know of a plan."""

    run_token: str
    planned_at: float = 0.0

    def token(self, shard: PlannedShard) -> str:
        return shard_token(self.run_token, shard.number)


def sweep_action(answers: Sequence[Any], terms: Terms) -> SweepAction | None:
    """What a sweep asks when it has had these answers. None: it is over."""
    world: Any = _World(iter(answers))
    provider = SimpleNamespace(name="model", find=world.find, check=world.check, cancel=world.cancel)
    # The register of recorded batches is a help for a provider's listing, of which this world shows all.
    workspace = SimpleNamespace(names=lambda path: (), create=lambda path, data: True)
    parts: Any = SimpleNamespace(
        provider=provider, workspace=workspace, clock=lambda: 0.0, warn=lambda message: None
    )
    # Batches are deleted after their run, when no order of events matters any more.
    folder: Any = SimpleNamespace(
        journal=world.journal, append=world.append, read_deleted=lambda batch_id: None, run_id="run"
    )
    plan: Any = _Plan(run_token=terms.token.rpartition("-")[0])
    shard = PlannedShard(
        number=_SHARD,
        requests=terms.requests,
        rows=terms.requests,
        bytes=1,
        requests_sha256="",
        keys_sha256="",
    )
    assert plan.token(shard) == terms.token
    sweeper = Sweeper(parts=parts, folder=folder, plan=plan)
    try:
        sweeper.sweep([(shard, stand(folder.journal(_SHARD)))])
    except _Asks as asks:
        return asks.action
    return None


def forget(answers: Sequence[Any], terms: Terms) -> tuple[Any, ...]:
    """As short a history as makes a sweep do the same from now on."""
    journal, *rest = answers
    if not rest:
        return (_submitted(journal),)
    searched, *rest = rest
    if not rest:
        return _to_record(journal, searched.sightings, terms)
    if not searched.sightings:  # the spare ones are told, and the rest is about them
        return ((), searched, _submitted(rest[0]), *rest[1:])
    (read, *appended) = rest
    if appended:
        return ((), replace(searched, sightings=searched.sightings[1:]))
    return ((), searched, (None,) * len(read))


def _to_record(journal: Any, sightings: Sequence[Sighting], terms: Terms) -> tuple[Any, ...]:
    recorded = {entry.batch_id for entry in journal}
    new = (
        replace(one, state=BatchState.RUNNING)
        for one in sightings
        if one.token == terms.token and one.batch_id not in recorded
    )
    return ((), Searched(at=0.0, sightings=tuple(new)))


def _submitted(journal: Any) -> tuple[Entry, ...]:
    return tuple(entry for entry in journal if entry.kind is Kind.SUBMITTED)
