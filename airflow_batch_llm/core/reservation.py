"""Order the planners on one target, so that two of them never buy the same row.

Before a planner reads the source, it opens the next numbered ticket of the target. Before it freezes its plan, it waits
until every earlier ticket is sealed or over, takes out of its rows what the earlier plans buy, and seals its own
ticket. A ticket is a journal, in which each record is created once. So either its planner seals it or another planner
declares it over, never both. A sealed ticket names a whole plan that is stored already, and every later planner freezes
that plan before it goes on. So a planner that dies or freezes between its seal and its plan leaves no gap. Leases only
decide how long others wait. No row is bought twice, even if clocks are wrong.
"""

from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, assert_never

import orjson

#: A planner counts as dead when it has not renewed its ticket for this long.
TICKET_LEASE_SECONDS = 90.0


class TicketKind(StrEnum):
    """The kinds of record on a planner's ticket."""

    OPENED = "opened"
    """A planner is at work, and writes its next record before `expires_at`."""
    RENEWED = "renewed"
    """The planner is still at work."""
    SEALED = "sealed"
    """The planner's plan is stored as a draft, and counts."""
    OVER = "over"
    """No plan follows: the planner gave the ticket up, or did not renew it in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketEntry:
    """One record of a ticket."""

    kind: TicketKind
    nonce: str
    """Tells the record of one process from an equal one of another."""
    run: str
    """The run folder that is planned, with its generation."""
    expires_at: float = 0.0
    """Seconds since the epoch. After this the planner counts as dead."""
    draft: str = ""
    """The nonce of the plan that the ticket is sealed with."""

    def to_json(self) -> bytes:
        """Return the record as it is stored."""
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> "TicketEntry":
        fields = orjson.loads(data)
        return cls(**{**fields, "kind": TicketKind(fields["kind"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerTicket:
    """The state of a ticket after all its records."""

    last: int = 0
    """The number of the last record."""
    holder: TicketEntry | None = None
    """The planner's last record. None: no planner has opened the ticket."""
    sealed: TicketEntry | None = None
    is_over: bool = False


def ticket_of(entries: Sequence[TicketEntry]) -> PlannerTicket:
    """Fold the records of a ticket, from first to last."""
    ticket = PlannerTicket()
    for entry in entries:
        ticket = replace(_after(ticket, entry), last=ticket.last + 1)
    return ticket


def _after(ticket: PlannerTicket, entry: TicketEntry) -> PlannerTicket:
    if ticket.sealed is not None or ticket.is_over:
        return ticket  # the first of the two decides
    match entry.kind:
        case TicketKind.OPENED | TicketKind.RENEWED:
            return replace(ticket, holder=entry)
        case TicketKind.SEALED:
            return replace(ticket, sealed=entry)
        case TicketKind.OVER:
            return replace(ticket, is_over=True)
        case _:
            assert_never(entry.kind)


@dataclass(frozen=True, slots=True)
class Settled:
    """Ask for the number of a ticket before which, and with which, all tickets are sealed or over."""


@dataclass(frozen=True, slots=True)
class OpenTicket:
    """Create the first record of this ticket. Answered by whether this planner created it."""

    number: int


@dataclass(frozen=True, slots=True)
class ReadSource:
    """Read the source, and before that the plans in flight and the target."""


@dataclass(frozen=True, slots=True)
class Draft:
    """Take out the rows of all plans frozen so far, and store the plan as a draft.

    Answered by the draft's nonce, or by None if the run has got a frozen plan meanwhile.
    """


@dataclass(frozen=True, slots=True)
class LookAt:
    """Read an earlier ticket. Answered by a `Ticket`."""

    number: int


@dataclass(frozen=True, slots=True)
class Rest:
    """Wait a little for the planner of an earlier ticket. Answered by whether its time is up."""

    number: int
    holder: TicketEntry


@dataclass(frozen=True, slots=True)
class DeclareOver:
    """Declare a ticket over, by its next record. Another planner may be faster."""

    number: int
    last: int


@dataclass(frozen=True, slots=True)
class Freeze:
    """Create the plan of this run from a stored draft, unless the run has a plan.

    The rows of another run's plan count as in flight from then on, also if that run lands them meanwhile.
    """

    run: str
    draft: str


@dataclass(frozen=True, slots=True)
class Seal:
    """Seal the planner's own ticket with a draft.

    Answered by whether that succeeded: another planner may have declared it over.
    """

    number: int
    draft: str


@dataclass(frozen=True, slots=True)
class Remember:
    """Note for later planners that all tickets up to this one are sealed or over, and their plans frozen."""

    number: int


Step = Settled | OpenTicket | ReadSource | Draft | LookAt | Rest | DeclareOver | Freeze | Seal | Remember


def reserve(run: str, *, is_read: bool = False) -> Generator[Step, Any, None]:
    """Bring one planner to a frozen plan of its run: its own, or that of another attempt.

    `is_read`: other tasks read the source before, after they had asked `Settled` and noted the plans in flight. The ticket
    is then opened after the reading, so that no other planner waits for it while it goes on.
    """
    first = (yield Settled()) + 1
    if is_read:
        yield ReadSource()
    number = yield from _open(first)
    if not is_read:
        yield ReadSource()
    takes_over = run
    while True:
        draft = yield Draft()  # written while others plan; it stands unless their plans take rows out of it
        if first < number:
            yield from _settle(takes_over, range(first, number))
            draft = yield Draft()
        if draft is None:
            ticket = yield LookAt(number)
            yield DeclareOver(number, ticket.last)
            return
        if (yield Seal(number, draft)):
            yield Freeze(run, draft)
            yield Remember(number)
            return
        first, takes_over = number + 1, ""  # an attempt at this run that has taken over goes first
        number = yield from _open(first)


def _open(number: int) -> Generator[Step, Any, int]:
    while not (yield OpenTicket(number)):
        number += 1
    return number


def _settle(takes_over: str, numbers: range) -> Generator[Step, Any, None]:
    """Wait until each of these tickets is sealed, and its plan frozen, or over.

    An earlier attempt at the run `takes_over` is not waited for.
    """
    for number in numbers:
        is_late = False
        while not (ticket := (yield LookAt(number))).is_over:
            if ticket.sealed is not None:
                yield Freeze(ticket.sealed.run, ticket.sealed.draft)
                break
            if is_late or ticket.holder.run == takes_over:
                yield DeclareOver(number, ticket.last)
            else:
                is_late = yield Rest(number, ticket.holder)
    yield Remember(numbers[-1])
