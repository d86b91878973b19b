"""A small world for asking in real time, explored to its end: every order in which workers can meet.

The world holds the real journal records and the real turns of `core.realtime`; only the files and the vendor are models. A
step is one read or write, a request that leaves or reaches the vendor, a reply, a crash, or time passing. A worker that
takes no step while time passes is a frozen one, so freezing needs no step of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from airflow_batch_llm.core.journal import (
    CLOCK_SKEW_SECONDS,
    Ask,
    Entry,
    RecordKind,
    Standing,
    Terms,
    decide,
    stand,
)
from airflow_batch_llm.core.model import Way
from airflow_batch_llm.core.realtime import LEASE_SECONDS, Turn, taking

#: A lease runs out with one tick, and may be taken over with two.
TICK = (LEASE_SECONDS + CLOCK_SKEW_SECONDS) / 2
TERMS = Terms(token="r1-0001", requests=0, lease_seconds=0.0, list_lag_seconds=0.0, way=Way.NOW)

Requests = frozenset[int]
NONE: Requests = frozenset()


class Flying(NamedTuple):
    """A request on its way. It can reach the vendor also after its worker has died."""

    request: int
    worker: int  # the place of the worker
    arrived: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One attempt, and what it knows."""

    turn: Turn
    phase: str = "reading"
    standing: Standing = field(default_factory=Standing)
    missing: int = 0
    to_ask: tuple[int, ...] = ()
    answers: Requests = NONE  # not kept yet
    unsure: tuple[int, ...] = ()  # their answers were lost, and no record counts it
    read: Requests = NONE  # from the segments, for the results


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The events that this world allows."""

    requests: int = 2
    bound: int = 1
    workers: int = 2
    together: int = 2
    ticks: int = 2
    crashes: int = 1
    losses: int = 0  # answers that are lost on their way
    partings: int = 0  # workers that are asked to end


@dataclass(frozen=True, slots=True)
class World:
    now: float = 0.0
    journal: tuple[Entry, ...] = ()
    segments: tuple[tuple[int, Requests], ...] = ()  # by worker
    results: tuple[tuple[str, Requests], ...] = ()
    paid: tuple[int, ...] = ()
    flying: frozenset[Flying] = frozenset()
    workers: tuple[Worker | None, ...] = ()
    crashes: int = 0
    losses: int = 0
    partings: int = 0

    @property
    def kept(self) -> Requests:
        return frozenset().union(*(answers for _, answers in self.segments))


def steps(world: World, rules: Rules) -> Iterator[World]:
    """Yield every world that can come next."""
    if world.now < rules.ticks * TICK:
        yield replace(world, now=world.now + TICK)
    for flying in world.flying:
        yield from _arriving(world, flying)
    alive = sum(worker is not None for worker in world.workers)
    if len(world.workers) < rules.workers and alive < rules.together:
        yield born(world, rules)
    for place, worker in enumerate(world.workers):
        if worker is None:
            continue
        if world.crashes < rules.crashes and worker.phase != "reading":
            yield _gone(replace(world, crashes=world.crashes + 1), place)
        yield from moves(world, place, worker, rules)


def born(world: World, rules: Rules) -> World:
    """Return the world with one more worker."""
    worker = Worker(turn=Turn(worker=f"w{len(world.workers)}", bound=rules.bound))
    return replace(world, workers=(*world.workers, worker))


def _arriving(world: World, flying: Flying) -> Iterator[World]:
    """Let the vendor answer and be paid, or the request be lost."""
    rest = world.flying - {flying}
    is_dead = world.workers[flying.worker] is None
    if not flying.arrived:
        paid = tuple(count + (number == flying.request) for number, count in enumerate(world.paid))
        back = rest if is_dead else rest | {flying._replace(arrived=True)}
        yield replace(world, flying=back, paid=paid)
    if is_dead:
        yield replace(world, flying=rest)


def moves(world: World, place: int, worker: Worker, rules: Rules) -> Iterator[World]:
    """Yield the next moves of one worker."""
    match worker.phase:
        case "reading":
            standing = stand(world.journal)
            if isinstance(decide(standing, TERMS, world.now), Ask):
                yield _put(world, place, replace(worker, phase="counting", standing=standing))
        case "counting":
            missing = rules.requests - len(world.kept)
            yield _put(world, place, replace(worker, phase="taking", missing=missing))
        case "taking":
            turn, entry = taking(worker.turn, worker.standing, worker.missing, world.now)
            yield from _writing(
                world, place, replace(worker, turn=turn, standing=Standing()), entry, "listing"
            )
        case "listing":
            to_ask = tuple(n for n in range(rules.requests) if n not in world.kept)
            yield _put(world, place, replace(worker, phase="asking", to_ask=to_ask, missing=0))
        case "asking":
            yield from _asking(world, place, worker, rules)
        case "gathering":
            yield _put(world, place, replace(worker, phase="storing", read=world.kept))
        case "storing":
            name = results_name(worker)
            others = tuple(each for each in world.results if each[0] != name)
            stored = replace(world, results=(*others, (name, worker.read)))
            yield _put(stored, place, replace(worker, phase="ending", read=NONE))
        case "ending":
            entry = Entry(kind=RecordKind.ENDED, nonce="", at=0.0, batch_id=results_name(worker))
            yield from _writing(world, place, worker, worker.turn.last_word(entry), "deleting")
        case "deleting":
            yield _gone(replace(world, segments=()), place)


def results_name(worker: Worker) -> str:
    """The results of each worker have a name of their own."""
    return f"now-{worker.turn.worker}"


def _asking(world: World, place: int, worker: Worker, rules: Rules) -> Iterator[World]:
    mine = [flying for flying in world.flying if flying.worker == place]
    if worker.to_ask and worker.turn.room(world.now) > 0:
        flying = Flying(worker.to_ask[0], place)
        sender = replace(worker, to_ask=worker.to_ask[1:], turn=worker.turn.sent())
        yield _put(replace(world, flying=world.flying | {flying}), place, sender)
    for flying in mine:
        yield from _replies(world, place, worker, flying, rules)
    if worker.answers:
        yield keeping(world, place, worker)
    if world.now >= worker.turn.renew_at or worker.turn.uncounted:
        yield from _writing(world, place, worker, worker.turn.lease(world.now), "asking")
    if not (worker.to_ask or worker.answers or worker.unsure or mine):
        yield _put(world, place, replace(worker, phase="gathering"))
    if world.partings < rules.partings and not worker.answers:
        yield from _parting(replace(world, partings=world.partings + 1), place, worker, mine)


def keeping(world: World, place: int, worker: Worker) -> World:
    """Let a worker write its segment again."""
    former = dict(world.segments)
    segments = former | {place: former.get(place, NONE) | worker.answers}
    after = replace(worker, answers=NONE, turn=worker.turn.kept(len(worker.answers)))
    return _put(replace(world, segments=tuple(sorted(segments.items()))), place, after)


def _replies(world: World, place: int, worker: Worker, flying: Flying, rules: Rules) -> Iterator[World]:
    rest = replace(world, flying=world.flying - {flying})
    if flying.arrived:
        yield _put(rest, place, replace(worker, answers=worker.answers | {flying.request}))
    else:  # it was refused
        after = replace(worker, to_ask=(*worker.to_ask, flying.request), turn=worker.turn.refused())
        yield _put(rest, place, after)
    if world.losses < rules.losses:
        unsure = (*worker.unsure, flying.request)
        after = replace(worker, unsure=unsure, turn=worker.turn.lost(world.now))
        yield _put(replace(rest, losses=world.losses + 1), place, after)


def _parting(world: World, place: int, worker: Worker, mine: list[Flying]) -> Iterator[World]:
    """Let a worker cancel its calls and give the lease back. Requests in flight may still arrive."""
    turn = worker.turn
    for _ in mine:
        turn = turn.lost(world.now)
    entry = turn.last_word(Entry(kind=RecordKind.RELEASED, nonce="", at=0.0))
    yield from _writing(world, place, replace(worker, turn=turn), entry, "over")


def _writing(world: World, place: int, worker: Worker, entry: Entry, phase: str) -> Iterator[World]:
    """Write a record at its number, or let the worker lose to another one that was first."""
    entry = replace(entry, nonce="")
    if len(world.journal) != worker.turn.last:
        yield _gone(world, place)
        return
    written = replace(world, journal=(*world.journal, replace(entry, at=0.0)))
    turn = replace(worker.turn.written(entry), records=0)
    counted = len(worker.unsure) if entry.kind is RecordKind.ASKING else 0
    after = replace(
        worker,
        phase=phase,
        turn=turn,
        to_ask=(*worker.to_ask, *worker.unsure[:counted]),
        unsure=worker.unsure[counted:],
    )
    yield _gone(written, place) if phase == "over" else _put(written, place, after)


def _put(world: World, place: int, worker: Worker | None) -> World:
    return replace(world, workers=(*world.workers[:place], worker, *world.workers[place + 1 :]))


def _gone(world: World, place: int) -> World:
    """Return the world without this worker. Replies to it are lost."""
    flying = frozenset(each for each in world.flying if each.worker != place or not each.arrived)
    return replace(_put(world, place, None), flying=flying)


def faults(world: World, rules: Rules) -> Iterator[str]:
    """Return the faults of a world in which workers may still be at work."""
    standing = stand(world.journal)
    holding = [w for w in world.workers if w is not None and world.now < w.turn.lease_until]
    if len(holding) > 1:
        yield "two workers ask at a time within their leases"
    if sum(max(0, count - 1) for count in world.paid) > standing.maybe_twice:
        yield "more is paid twice than is counted"
    taken_over = sum(
        1
        for before, after in zip(_standings(world.journal), world.journal, strict=False)
        if before.asking is not None
        and after.kind is RecordKind.ASKING
        and before.asking.intent != after.intent
    )
    if standing.maybe_twice > rules.bound * (taken_over + world.partings) + world.losses:
        yield "more is counted than the bound allows"
    end = world if standing.ended is not None else _alone(world, rules)
    ended = stand(end.journal).ended
    if ended is None:
        yield "no worker can end it"
    elif len(dict(end.results)[ended.batch_id]) < rules.requests:
        yield "a row is lost"


def _standings(journal: tuple[Entry, ...]) -> list[Standing]:
    return [stand(journal[:length]) for length in range(len(journal))]


def _alone(world: World, rules: Rules) -> World:
    """Return the end if all other workers have died, and one more comes after all leases."""
    calm = replace(world, now=world.now + 4 * TICK, workers=(None,) * len(world.workers), flying=frozenset())
    world = born(calm, rules)
    place = len(world.workers) - 1
    for _ in range(20 + 6 * rules.requests):
        worker = world.workers[place]
        if worker is None:
            break
        mine = [flying for flying in world.flying if not flying.arrived]
        after = [*_arriving(world, mine[0])] if mine else [*moves(world, place, worker, _calm(rules))]
        if not after:
            break
        world = after[0] if not worker.answers or mine else keeping(world, place, worker)
    return world


def _calm(rules: Rules) -> Rules:
    return replace(rules, losses=0, partings=0)


def explore(rules: Rules) -> Iterator[World]:
    """Yield every reachable world once."""
    first = World(paid=(0,) * rules.requests)
    seen, waiting = {first}, [first]
    while waiting:
        world = waiting.pop()
        yield world
        for after in steps(world, rules):
            if after not in seen:
                seen.add(after)
                waiting.append(after)
