"""A small world for the submission protocol, explored to its end: every order in which attempts can meet.

The world holds the real journal records, the real machines of `core.submission` and the real sweep; only the store and
the provider are models. A step is one read or write of one of them, a crash, a lost answer, a creation that arrives
late, or time passing. `explore` visits every reachable state once. Equal things are one object here, so that a state is known by
the identities of its parts, and the machine is asked once for each question.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar, cast

from airflow_batch_llm.core.journal import Entry, Searched, Standing, Terms, stand
from airflow_batch_llm.core.model import BatchState, BatchStatus, Sighting
from airflow_batch_llm.core.submission import (
    Action,
    Answer,
    Append,
    Attempt,
    CancelOwn,
    Created,
    Find,
    NotCreated,
    Phase,
    Read,
    Send,
    Stop,
    Unknown,
    Upload,
    advance,
    begin,
)
from tests.core.sweep_model import LOOKING, SEARCHING, Check, Look, forget, sweep_action

LEASE, LAG = 120.0, 60.0
# What an attempt knows of the journal is read anew before it counts again, or its length is all that counts.
_ABOUT_TO_READ = frozenset(
    {Phase.READING, Phase.INTENDING, Phase.CONFIRMING, Phase.RECORDING, Phase.REREADING, Phase.CANCELLING}
)
_ABOUT_TO_WRITE = frozenset({Phase.UPLOADING, Phase.SENDING})
TERMS = Terms(token="r1-0001", requests=10, lease_seconds=LEASE, list_lag_seconds=LAG)


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch at the provider."""

    id: str
    at: float
    running: bool = True

    @property
    def state(self) -> BatchState:
        return BatchState.RUNNING if self.running else BatchState.ENDED


@dataclass(frozen=True, slots=True)
class Flying:
    """A creation that has left its process and not yet arrived; `until` is the last moment at which it can."""

    id: str
    until: float


Thing = TypeVar("Thing")

_THINGS: dict[Any, Any] = {}


def one(thing: Thing) -> Thing:
    """Return the one object that is used for all that equal it."""
    return cast("Thing", _THINGS.setdefault(thing, thing))


class World(NamedTuple):  # many are made, and a tuple is made fast
    now: float = 0.0
    journal: tuple[Entry, ...] = ()
    batches: tuple[Batch, ...] = ()
    flying: tuple[Flying, ...] = ()
    attempts: tuple[tuple[Attempt, Action] | None, ...] = ()
    sweep: tuple[Any, ...] | None = None  # how the one at work began, and the answers that it has had
    born: int = 0
    swept: int = 0
    crashes: int = 0
    repeated: int = 0

    @property
    def key(self) -> tuple[object, ...]:
        """Return a key that is equal for equal worlds only."""
        parts = (self.journal, self.batches, self.flying, self.sweep, *self.attempts)
        return (
            self.now,
            self.born,
            self.swept,
            self.crashes,
            self.repeated,
            *(id(one(part)) for part in parts),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The events that this world allows."""

    attempts: int = 3
    together: int = 2  # so many attempts live at once; the others begin when these are over
    tick: float = 60.0
    ticks: int = 5
    crashes: int = 2
    sweeps: int = 0  # beside the attempts, one at a time; the last one, after all is over, comes besides
    long_pauses: bool = False  # a creation may arrive after its lease
    repeats: int = 0  # so many creations are carried out twice, at once or inside the lease
    recognisable: bool = True


def steps(world: World, rules: Rules) -> Iterator[World]:
    """Yield every world that can come next."""
    if world.now < rules.ticks * rules.tick:
        yield world._replace(now=world.now + rules.tick)
    for flying in world.flying:
        rest = tuple(other for other in world.flying if other != flying)
        if world.now <= flying.until:
            yield world._replace(flying=rest, batches=(*world.batches, Batch(flying.id, world.now)))
        else:
            yield world._replace(flying=rest)
    alive = sum(attempt is not None for attempt in world.attempts)
    if world.born < rules.attempts and (
        alive < rules.together if world.born < rules.together else alive == 0
    ):
        yield world._replace(born=world.born + 1, attempts=(*world.attempts, begin(f"a{world.born + 1}")))
    yield from _sweeping(world, rules)
    for index, attempt in enumerate(world.attempts):
        if attempt is None:
            continue
        if world.crashes < rules.crashes:
            yield _with(world._replace(crashes=world.crashes + 1), index, None)
        for after, answer in replies(world, attempt[1], rules):
            yield _with(after, index, _asked(attempt, answer, world.now))
            if after != world and world.crashes < rules.crashes:  # it happened, and nobody heard of it
                yield _with(after._replace(crashes=world.crashes + 1), index, None)


def _sweeping(world: World, rules: Rules) -> Iterator[World]:
    """A sweep begins with a shard that has a batch or of which something may show up, asks, dies, or is over."""
    if world.sweep is None:
        if world.swept < rules.sweeps:
            begun = world._replace(swept=world.swept + 1)
            if may_be_swept(world):
                yield begun._replace(sweep=one(SEARCHING))
            if rules.recognisable and stand(world.journal).batch is not None:
                yield begun._replace(sweep=one(LOOKING))
        return
    action = sweep_asks(world.sweep)
    if action is None:
        yield world._replace(sweep=None)
        return
    if world.crashes < rules.crashes:
        yield world._replace(crashes=world.crashes + 1, sweep=None)
    for after, answer in replies(world, named(action, world), rules):
        yield swept_on(after, world.sweep, answer)
        if after != world and world.crashes < rules.crashes:
            yield after._replace(crashes=world.crashes + 1, sweep=None)


def swept_on(world: World, answers: tuple[Any, ...], answer: Any) -> World:
    """Return the world with a sweep that has had one more answer."""
    return world._replace(sweep=one(forget((*answers, answer), TERMS)))


def may_be_swept(world: World) -> bool:
    """Return whether the shard's journal asks for a sweep."""
    standing = stand(world.journal)
    return standing.loose or standing.intent is not None


_SWEPT: dict[int, Action | Check | Look | None] = {}


def sweep_asks(answers: tuple[Any, ...]) -> Action | Check | Look | None:
    """Return the next question of a sweep that has had these answers."""
    known = id(one(answers))
    if known not in _SWEPT:
        _SWEPT[known] = sweep_action(answers, TERMS)
    return _SWEPT[known]


def named(action: Action | Check | Look, world: World) -> Action | Check | Look:
    """Return the same action, with a record that differs from all others."""
    if isinstance(action, Append):
        nonce = f"sweep{world.swept}.{len(world.sweep or ())}"
        return replace(action, entry=replace(action.entry, nonce=nonce))
    return action


def _with(world: World, index: int, attempt: tuple[Attempt, Action] | None) -> World:
    return world._replace(attempts=(*world.attempts[:index], attempt, *world.attempts[index + 1 :]))


_ASKED: dict[tuple[int, int, float], tuple[Attempt, Action] | None] = {}


def _asked(attempt: tuple[Attempt, Action], answer: Answer, now: float) -> tuple[Attempt, Action] | None:
    """Return the machine's next action, or None if it has stopped. State that it no longer uses is forgotten."""
    question = (id(one(attempt)), id(one((type(answer), answer))), now)
    if question not in _ASKED:
        after, action = advance(attempt[0], answer, TERMS, now)
        if after.phase in _ABOUT_TO_READ:
            after = replace(after, standing=Standing())
        if after.phase in _ABOUT_TO_WRITE:
            after = replace(after, standing=Standing(last=after.standing.last))
        if isinstance(action, Append):
            action = replace(action, entry=replace(action.entry, at=0.0))  # for people only
        _ASKED[question] = None if isinstance(action, Stop) else one((_timeless(after), action))
    return _ASKED[question]


def _timeless(attempt: Attempt) -> Attempt:
    """Return the entry without times that are recorded only for people."""
    intent, word = (entry and replace(entry, at=0.0) for entry in (attempt.intent, attempt.word))
    return replace(attempt, intent=intent, word=word)


def replies(world: World, action: Action | Check | Look, rules: Rules) -> Iterator[tuple[World, Any]]:
    match action:
        case Read():
            yield world, world.journal
        case Upload():
            yield world, "upload"
        case Append(number=number, entry=entry):
            if len(world.journal) == number - 1:
                yield world._replace(journal=(*world.journal, entry)), True
            else:
                yield world, world.journal[number - 1] == entry
        case Find():
            for seen in _listings(world):
                yield (
                    world,
                    Searched(at=world.now, sightings=tuple(_sighting(batch, rules) for batch in seen)),
                )
        case Send(expires_at=expires_at):
            yield from _sending(world, expires_at, rules)
        case Check(batch_ids=batch_ids):
            states = tuple((b.id, BatchStatus(state=b.state)) for b in world.batches if b.id in batch_ids)
            yield world, states
        case Look(batch_id=batch_id):
            for seen in _listings(world):
                listed = {batch.id: batch.running for batch in seen}
                yield world, tuple(b for b in listed if listed[b] and b != batch_id and batch_id in listed)
        case CancelOwn(batch_id=batch_id):
            batches = tuple(replace(b, running=b.running and b.id != batch_id) for b in world.batches)
            yield world._replace(batches=batches), None


def _sending(world: World, expires_at: float, rules: Rules) -> Iterator[tuple[World, Answer]]:
    yield world, NotCreated(reason="busy", final=False, retry_after=rules.tick)
    if world.now >= expires_at and not rules.long_pauses:
        return  # the sender's own deadline: nothing leaves the process any more
    name = f"b{len(world.batches) + len(world.flying) + 1}"
    made = world._replace(batches=(*world.batches, Batch(name, world.now)))
    yield made, Created(batch_id=name)
    yield made, Unknown()
    yield world, Unknown()
    until = float("inf") if rules.long_pauses else expires_at
    yield world._replace(flying=(*world.flying, Flying(name, until))), Unknown()
    if world.repeated < rules.repeats:
        yield from _sending_twice(made._replace(repeated=world.repeated + 1), name, expires_at)


def _sending_twice(made: World, name: str, expires_at: float) -> Iterator[tuple[World, Answer]]:
    """Let a gateway repeat the creation, at once or later, and return one of the answers or none."""
    other = f"b{len(made.batches) + len(made.flying) + 1}"
    twice = made._replace(batches=(*made.batches, Batch(other, made.now)))
    yield twice, Created(batch_id=other)
    yield twice, Unknown()
    later = made._replace(flying=(*made.flying, Flying(other, expires_at)))
    yield later, Created(batch_id=name)
    yield later, Unknown()


def _listings(world: World) -> Iterator[tuple[Batch, ...]]:
    """Yield the possible listings: all old batches, and any of the young ones."""
    old = tuple(batch for batch in world.batches if batch.at <= world.now - LAG)
    young = [batch for batch in world.batches if batch.at > world.now - LAG]
    for bits in range(2 ** len(young)):
        yield (*old, *(batch for i, batch in enumerate(young) if bits >> i & 1))


def _sighting(batch: Batch, rules: Rules) -> Sighting:
    known = rules.recognisable or not batch.running
    return Sighting(
        batch_id=batch.id, state=batch.state, token=TERMS.token if known else None, requests=TERMS.requests
    )


def explore(rules: Rules) -> Iterator[World]:
    """Yield every reachable world once."""
    first = World()
    seen = {first.key}
    waiting = [first]
    while waiting:
        world = waiting.pop()
        yield world
        for after in steps(world, rules):
            key = after.key
            if key not in seen:
                seen.add(key)
                waiting.append(after)
