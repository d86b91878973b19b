"""A small world for the submission protocol, explored to its end: every order in which attempts can meet.

The world holds the real journal records and the real machines of `core.submission`; only the store and the provider
are models. A step is one read or write of one attempt, a crash, a lost answer, a creation that arrives late, or time
passing. `explore` visits every reachable state once.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from airflow_batch_llm.core.journal import CLOCK_SKEW_SECONDS, Entry, Searched, Terms, stand
from airflow_batch_llm.core.model import BatchState, Sighting
from airflow_batch_llm.core.submission import (
    Action,
    Answer,
    Append,
    Attempt,
    Cancel,
    Created,
    Find,
    NotCreated,
    Read,
    Send,
    Stop,
    Unknown,
    Upload,
    advance,
    begin,
)

LEASE, LAG = 120.0, 60.0
TICK = 60.0
TERMS = Terms(token="r1-0001", requests=10, lease_seconds=LEASE, list_lag_seconds=LAG)


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch at the provider."""

    id: str
    at: float
    running: bool = True


@dataclass(frozen=True, slots=True)
class Flying:
    """A creation that has left its process and not yet arrived; `until` is the last moment at which it can."""

    id: str
    until: float


@dataclass(frozen=True, slots=True)
class World:
    now: float = 0.0
    journal: tuple[Entry, ...] = ()
    batches: tuple[Batch, ...] = ()
    flying: tuple[Flying, ...] = ()
    attempts: tuple[tuple[Attempt, Action] | None, ...] = ()
    born: int = 0
    crashes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What can happen in this world."""

    attempts: int = 3
    together: int = 2  # so many attempts live at once; the others begin when these are over
    ticks: int = 5
    crashes: int = 2
    long_pauses: bool = False  # a creation may arrive after its lease
    recognisable: bool = True


def steps(world: World, rules: Rules) -> Iterator[World]:
    """Every world that can come next."""
    if world.now < rules.ticks * TICK:
        yield replace(world, now=world.now + TICK)
    for flying in world.flying:
        rest = tuple(other for other in world.flying if other != flying)
        if world.now <= flying.until:
            yield replace(world, flying=rest, batches=(*world.batches, Batch(flying.id, world.now)))
        else:
            yield replace(world, flying=rest)
    alive = sum(one is not None and not isinstance(one[1], Stop) for one in world.attempts)
    if world.born < rules.attempts and (alive < rules.together if world.born < rules.together else alive == 0):
        yield replace(world, born=world.born + 1, attempts=(*world.attempts, begin(f"a{world.born + 1}")))
    for index, one in enumerate(world.attempts):
        if one is None or isinstance(one[1], Stop):
            continue
        if world.crashes < rules.crashes:
            yield _with(replace(world, crashes=world.crashes + 1), index, None)
        for after, answer in _answers(world, one[1], rules):
            yield _with(after, index, advance(one[0], answer, TERMS, world.now))
            if after != world and world.crashes < rules.crashes:  # it happened, and nobody heard of it
                yield _with(replace(after, crashes=world.crashes + 1), index, None)


def _with(world: World, index: int, one: tuple[Attempt, Action] | None) -> World:
    return replace(world, attempts=(*world.attempts[:index], one, *world.attempts[index + 1 :]))


def _answers(world: World, action: Action, rules: Rules) -> Iterator[tuple[World, Answer]]:
    match action:
        case Read():
            yield world, world.journal
        case Upload():
            yield world, "upload"
        case Append(number=number, entry=entry):
            if len(world.journal) == number - 1:
                yield replace(world, journal=(*world.journal, entry)), True
            else:
                yield world, world.journal[number - 1] == entry
        case Find():
            for seen in _listings(world):
                yield world, Searched(at=world.now, sightings=tuple(_sighting(batch, rules) for batch in seen))
        case Send(expires_at=expires_at):
            yield from _sending(world, expires_at, rules)
        case Cancel(batch_id=batch_id):
            batches = tuple(replace(b, running=b.running and b.id != batch_id) for b in world.batches)
            yield replace(world, batches=batches), None


def _sending(world: World, expires_at: float, rules: Rules) -> Iterator[tuple[World, Answer]]:
    yield world, NotCreated(reason="busy", final=False, retry_after=TICK)
    if world.now >= expires_at and not rules.long_pauses:
        return  # the sender's own deadline: nothing leaves the process any more
    name = f"b{len(world.batches) + len(world.flying) + 1}"
    made = replace(world, batches=(*world.batches, Batch(name, world.now)))
    yield made, Created(batch_id=name)
    yield made, Unknown()
    yield world, Unknown()
    until = float("inf") if rules.long_pauses else expires_at
    yield replace(world, flying=(*world.flying, Flying(name, until))), Unknown()


def _listings(world: World) -> Iterator[tuple[Batch, ...]]:
    """What a listing may show: all old batches, and any of the young ones."""
    old = tuple(batch for batch in world.batches if batch.at <= world.now - LAG)
    young = [batch for batch in world.batches if batch.at > world.now - LAG]
    for bits in range(2 ** len(young)):
        yield (*old, *(batch for i, batch in enumerate(young) if bits >> i & 1))


def _sighting(batch: Batch, rules: Rules) -> Sighting:
    known = rules.recognisable or not batch.running
    state = BatchState.RUNNING if batch.running else BatchState.ENDED
    return Sighting(batch_id=batch.id, state=state, token=TERMS.token if known else None, requests=TERMS.requests)


def explore(rules: Rules) -> Iterator[World]:
    """Every reachable world, once."""
    first = World()
    seen = {first}
    waiting = [first]
    while waiting:
        world = waiting.pop()
        yield world
        for after in steps(world, rules):
            if after not in seen:
                seen.add(after)
                waiting.append(after)


def settled(world: World) -> World:
    """The same world after an undisturbed attempt, long after everything that flew has arrived or is lost."""
    calm = replace(world, now=world.now + 10 * (LEASE + LAG + CLOCK_SKEW_SECONDS), flying=())
    attempt, action = begin("calm")
    while not isinstance(action, Stop):
        if isinstance(action, Send):
            name = f"b{len(calm.batches) + 1}"
            calm, answer = replace(calm, batches=(*calm.batches, Batch(name, calm.now))), Created(batch_id=name)
        else:
            calm, answer = next(_answers(calm, action, Rules()))  # type: ignore[assignment]
        attempt, action = advance(attempt, answer, TERMS, calm.now)
    return calm


def recorded(world: World) -> str | None:
    """The batch that the journal names."""
    batch = stand(world.journal).batch
    return batch.batch_id if batch is not None else None
