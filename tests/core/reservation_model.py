"""A small world for the planners on one target, explored to its end: every order in which their steps can meet.

One row is wanted by every planner. The world holds the real records and the real machine of `core.reservation`; the
store and the rest of a run are models. There is no clock: a planner may count as dead at any time, and go on after that.
A planner is known by the answers it has had: to find its next step, the machine runs again from its beginning.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from airflow_batch_llm.core.reservation import (
    DeclareOver,
    Draft,
    Freeze,
    LookAt,
    OpenTicket,
    PlannerTicket,
    ReadSource,
    Remember,
    Rest,
    Seal,
    Settled,
    Step,
    TicketEntry,
    TicketKind,
    reserve,
    ticket_of,
)

#: The steps that a broken machine leaves out.
WAITING, SEALING, HELPING, NOTING = "waiting", "sealing", "helping", "noting"


@dataclass(frozen=True, slots=True)
class Planner:
    """One process that plans a run."""

    run: str
    name: str
    answers: tuple[Any, ...] = ()
    stage: int = 0  # of a step that reads or writes more than once
    is_read: bool = False  # other tasks read its source
    listed: frozenset[str] = frozenset()  # the runs that the register held
    noted: frozenset[str] = frozenset()  # plans in flight that hold the row
    wants: bool = False  # the target did not hold the row when it was read
    own: int = 0
    renewed: bool = False


@dataclass(frozen=True, slots=True)
class World:
    tickets: tuple[tuple[TicketEntry, ...], ...] = ()
    settled: int = 0
    drafts: frozenset[tuple[str, bool]] = frozenset()  # each with whether it holds the row
    plans: frozenset[tuple[str, str, bool]] = frozenset()  # run, draft, whether it holds the row
    register: frozenset[str] = frozenset()
    published: frozenset[str] = frozenset()
    planners: tuple[Planner | None, ...] = ()
    crashes: int = 0
    lates: int = 0

    @property
    def frozen(self) -> frozenset[str]:
        return frozenset(run for run, _, _ in self.plans)

    @property
    def bought(self) -> int:
        """Count how often the row is bought."""
        return sum(holds for _, _, holds in self.plans)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The events that this world allows."""

    runs: tuple[str, ...]  # the run of each planner, in the order in which they begin
    crashes: int = 0
    lates: int = 2  # how often a planner counts as dead
    renewals: bool = False
    without: str = ""  # what the machine leaves out, to see that this is noticed
    readers: frozenset[str] = (
        frozenset()
    )  # runs whose source other tasks read before the planner opens a ticket


@cache
def next_step(run: str, answers: tuple[Any, ...], is_read: bool) -> Step | None:
    """Return a planner's step after these answers, or None if it has ended."""
    machine = reserve(run, is_read=is_read)
    try:
        step = next(machine)
        for answer in answers:
            step = machine.send(answer)
    except StopIteration:
        return None
    return step


def steps(world: World, rules: Rules) -> Iterator[World]:
    """Yield every world that can come next."""
    if len(world.planners) < len(rules.runs):
        run = rules.runs[len(world.planners)]
        name = f"p{len(world.planners) + 1}"
        born = None if run in world.frozen else Planner(run, name, is_read=run in rules.readers)
        yield replace(world, planners=(*world.planners, born))
    for run in world.frozen:
        if run not in world.published:
            yield replace(world, published=world.published | {run})
        elif run in world.register:
            yield replace(world, register=world.register - {run})
    for index, planner in enumerate(world.planners):
        if planner is None:
            continue
        if world.crashes < rules.crashes:
            yield _with(replace(world, crashes=world.crashes + 1), index, None)
        if rules.renewals and planner.own and not planner.renewed:
            yield from _renewed(world, index, planner)
        yield from _taken(world, index, planner, rules)


def _with(world: World, index: int, planner: Planner | None) -> World:
    return replace(world, planners=(*world.planners[:index], planner, *world.planners[index + 1 :]))


def _answered(planner: Planner, answer: Any, **changes: Any) -> Planner | None:
    after = replace(planner, answers=(*planner.answers, answer), stage=0, **changes)
    return None if next_step(after.run, after.answers, after.is_read) is None else after


def _entry(planner: Planner, kind: TicketKind, draft: str = "") -> TicketEntry:
    return TicketEntry(kind=kind, nonce=planner.name, run=planner.run, draft=draft)


def _appended(world: World, number: int, at: int, entry: TicketEntry) -> World | None:
    records = world.tickets[number - 1]
    if len(records) != at - 1:
        return None
    changed = (*world.tickets[: number - 1], (*records, entry), *world.tickets[number:])
    return replace(world, tickets=changed)


def _renewed(world: World, index: int, planner: Planner) -> Iterator[World]:
    ticket = ticket_of(world.tickets[planner.own - 1])
    if ticket.sealed is None and not ticket.is_over:
        renewed = _appended(world, planner.own, ticket.last + 1, _entry(planner, TicketKind.RENEWED))
        assert renewed is not None
        yield _with(renewed, index, replace(planner, renewed=True))


def _taken(world: World, index: int, planner: Planner, rules: Rules) -> Iterator[World]:
    """Yield the worlds after each possible result of the planner's next step."""

    def on(after: World, answer: Any, **changes: Any) -> World:
        return _with(after, index, _answered(planner, answer, **changes))

    match step := next_step(planner.run, planner.answers, planner.is_read):
        case Settled():
            yield on(world, world.settled)
        case OpenTicket(number=number):
            yield _opened(world, planner, number, on)
        case ReadSource() | Draft():
            yield from _read(world, index, planner, step, rules)
        case LookAt(number=number):
            over = rules.without == WAITING and number != planner.own
            yield on(world, PlannerTicket(is_over=True) if over else ticket_of(world.tickets[number - 1]))
        case Rest():
            if world.lates < rules.lates:
                yield on(replace(world, lates=world.lates + 1), True)
            yield from _waited(world, step, on)
        case DeclareOver(number=number, last=last):
            after = _appended(world, number, last + 1, _entry(planner, TicketKind.OVER))
            yield on(after or world, after is not None)
        case Freeze(run=run, draft=draft):
            after = world if rules.without == HELPING and run != planner.run else _frozen(world, run, draft)
            met = {name for owner, name, holds in after.plans if owner == run != planner.run and holds}
            yield on(after, None, noted=planner.noted | met)
        case Seal():
            sealed = _sealed(world, planner, step)
            yield on(sealed or world, sealed is not None or rules.without == SEALING)
        case Remember(number=number):
            yield on(replace(world, settled=max(world.settled, number)), None)


def _opened(world: World, planner: Planner, number: int, on: Callable[..., World]) -> World:
    if number <= len(world.tickets):
        return on(world, False)
    opened = (_entry(planner, TicketKind.OPENED),)
    return on(replace(world, tickets=(*world.tickets, opened)), True, own=number, renewed=False)


def _waited(world: World, step: Rest, on: Callable[[World, Any], World]) -> Iterator[World]:
    """To wait while nothing happens changes nothing: the look at the ticket comes once its records have changed."""
    ticket = ticket_of(world.tickets[step.number - 1])
    if ticket.holder != step.holder or ticket.sealed is not None or ticket.is_over:
        yield on(world, False)


def _sealed(world: World, planner: Planner, step: Seal) -> World | None:
    ticket = ticket_of(world.tickets[step.number - 1])
    if ticket.is_over:
        return None
    return _appended(world, step.number, ticket.last + 1, _entry(planner, TicketKind.SEALED, step.draft))


def _frozen(world: World, run: str, draft: str) -> World:
    if run in world.frozen:
        return world
    holds = next(holds for name, holds in world.drafts if name == draft)
    return replace(world, plans=world.plans | {(run, draft, holds)})


def _read(world: World, index: int, planner: Planner, step: Step, rules: Rules) -> Iterator[World]:
    """List the register, read the plans in it, and then read the target or store the draft: one after the other."""
    if planner.stage == 0:
        if isinstance(step, Draft) and planner.run in world.frozen:
            yield _with(world, index, _answered(planner, None))
        else:
            listed = frozenset() if rules.without == NOTING else world.register - {planner.run}
            yield _with(world, index, replace(planner, stage=1, listed=listed))
    elif planner.stage == 1:
        flying = {
            draft
            for run, draft, holds in world.plans
            if run in planner.listed and holds and run not in world.published
        }
        noted = planner.noted | flying
        yield _with(world, index, replace(planner, stage=2, listed=frozenset(), noted=noted))
    elif isinstance(step, ReadSource):
        known = any(holds for run, _, holds in world.plans if run in world.published)
        yield _with(world, index, _answered(planner, None, wants=not known))
    elif planner.run not in world.register:
        yield _with(replace(world, register=world.register | {planner.run}), index, planner)
    else:
        holds = planner.wants and not planner.noted
        draft = f"{planner.name}-{'with' if holds else 'without'}"
        yield _with(replace(world, drafts=world.drafts | {(draft, holds)}), index, _answered(planner, draft))


def explore(rules: Rules) -> Iterator[World]:
    """Yield every reachable world, once."""
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
