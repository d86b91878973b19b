"""A small world for runs that share a budget, explored to its end: every order in which their steps can meet.

Every run costs a dollar. The world holds the real states of `core.budget`; the rest of a run is a model: plan, hold,
freeze, confirm, send, report, settle. A process may be killed between any two steps and begin again, two processes may
work on one run, and time may pass so that a planner counts as dead and goes on after that.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum

from airflow_batch_llm.core.budget import BudgetState, Hold

#: The steps that a broken machine leaves out.
EXCLUSIVELY, CONFIRMING, LOOKING = "exclusively", "confirming", "looking"


class Step(IntEnum):
    """The next step of a process."""

    RESERVE = 0
    FREEZE = 1
    CONFIRM = 2
    SEND = 3
    REPORT = 4
    SETTLE = 5
    OVER = 6


@dataclass(frozen=True, slots=True)
class Process:
    run: str
    step: Step = Step.RESERVE
    read: int = 0
    """The number of the state that the process has read. 0: it has not."""
    looked: bool = False
    """The process has looked for a report, and there was none."""


Stored = tuple[float, tuple[tuple[str, float, float | None], ...]]


@dataclass(frozen=True, slots=True)
class World:
    processes: tuple[Process, ...]
    states: tuple[Stored, ...] = ((0.0, ()),)
    plans: frozenset[str] = frozenset()
    sent: frozenset[str] = frozenset()
    reports: frozenset[str] = frozenset()
    now: float = 0.0
    crashes: int = 0

    def state(self, number: int, limit: float) -> BudgetState:
        """Return the state of this number, from 1."""
        spent, holds = self.states[number - 1]
        return BudgetState(
            usd=limit, spent=spent, holds={run: Hold(usd=usd, until=until) for run, usd, until in holds}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The events that can happen in this world."""

    runs: tuple[str, ...]
    limit: float = 1.0
    crashes: int = 1
    lates: int = 1
    without: str = ""


def explore(rules: Rules) -> Iterator[tuple[World, bool]]:
    """Yield every reachable world once, and whether nothing can happen in it any more."""
    first = World(tuple(Process(run) for run in rules.runs))
    seen, waiting = {first}, [first]
    while waiting:
        world = waiting.pop()
        after = list(_steps(world, rules))
        yield world, all(process.step is Step.OVER for process in world.processes)
        for one in after:
            if one not in seen:
                seen.add(one)
                waiting.append(one)


def _steps(world: World, rules: Rules) -> Iterator[World]:
    if world.now < 2.0 * rules.lates:
        yield replace(world, now=world.now + 2.0)
    for index, process in enumerate(world.processes):
        if process.step is Step.OVER:
            continue
        if world.crashes < rules.crashes:
            yield _with(replace(world, crashes=world.crashes + 1), index, _begun(world, process.run))
        yield from _next(world, index, process, rules)


def _begun(world: World, run: str) -> Process:
    """Return a new process that goes on with a run."""
    if run in world.reports:
        return Process(run, Step.SETTLE)
    return Process(run, Step.CONFIRM if run in world.plans else Step.RESERVE)


def _next(world: World, index: int, process: Process, rules: Rules) -> Iterator[World]:
    run = process.run
    match process.step:
        case Step.FREEZE:
            step = Step.SEND if rules.without == CONFIRMING else Step.CONFIRM
            yield _with(replace(world, plans=world.plans | {run}), index, Process(run, step))
        case Step.SEND:
            yield _with(replace(world, sent=world.sent | {run}), index, Process(run, Step.REPORT))
        case Step.REPORT:
            yield _with(replace(world, reports=world.reports | {run}), index, Process(run, Step.SETTLE))
        case _ if not process.read:
            yield _with(world, index, replace(process, read=len(world.states)))
        case Step.SETTLE:
            after = world.state(process.read, rules.limit).settle(run, 1.0)
            yield _changed(world, index, process, after, Step.OVER, rules)
        case _ if not process.looked and rules.without != LOOKING:
            over = run in world.reports
            yield _with(world, index, Process(run, Step.SETTLE) if over else replace(process, looked=True))
        case Step.RESERVE | Step.CONFIRM:
            until = world.now + 1.0 if process.step is Step.RESERVE else None
            held = world.state(process.read, rules.limit).hold(run, 1.0, world.now, until=until)
            if held is None:  # the task fails
                yield _with(world, index, Process(run, Step.OVER))
            else:
                yield _changed(world, index, process, held, Step(process.step + 1), rules)


def _changed(
    world: World, index: int, process: Process, after: BudgetState, step: Step, rules: Rules
) -> World:
    """Create the next state, unless another process has, or there is nothing to change."""
    holds = tuple(sorted((run, hold.usd, hold.until) for run, hold in after.holds.items()))
    stored: Stored = (after.spent, holds)  # type: ignore[assignment]
    if stored != world.states[process.read - 1]:
        if process.read != len(world.states) and rules.without != EXCLUSIVELY:
            return _with(world, index, Process(process.run, process.step))
        world = replace(world, states=(*world.states, stored))
    return _with(world, index, Process(process.run, step))


def _with(world: World, index: int, process: Process) -> World:
    processes = list(world.processes)
    processes[index] = process
    return replace(world, processes=tuple(processes))
