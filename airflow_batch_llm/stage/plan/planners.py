"""Let the planners on one target take turns: perform each step of the pure machine.

The planner keeps its spool while it waits, so it waits in its process, usually no longer than another planner needs.
"""

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, assert_never

from airflow_batch_llm.core.reservation import (
    TICKET_LEASE_SECONDS,
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
from airflow_batch_llm.errors import BudgetExceeded, StoreError
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.plan.drafting import Drafting
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.plan import Plan
from airflow_batch_llm.stage.records.registers import Registers

#: Seconds between two looks at the ticket of another planner.
_LOOK_SECONDS = 1.0


@dataclass(slots=True, kw_only=True)
class Planners:
    """One planner among those of its target."""

    parts: Parts
    folder: RunFolder
    drafting: Drafting
    _nonce: str = field(default_factory=lambda: secrets.token_hex(6), init=False)
    _own: int = field(default=0, init=False)  # the number of the ticket that this planner holds
    _last: int = field(default=0, init=False)  # the number of its last record
    _waited_for: set[int] = field(default_factory=set, init=False)
    _stored: Plan | None = field(default=None, init=False)  # the draft that was stored last
    _frozen: Plan | None = field(default=None, init=False)  # it, once this planner has made it the run's plan
    _writing: threading.Lock = field(default_factory=threading.Lock, init=False)

    def take_turn(self) -> Plan:
        """Plan, and freeze the plan when it is this planner's turn.

        Returns the run's plan, which another planner may have frozen.
        """
        machine, answer = reserve(self.folder.path, is_read=self.drafting.opening is not None), None
        try:
            with self._renewed():
                while True:
                    answer = self._take(machine.send(answer))
        except StopIteration:
            return self._frozen or self._read_frozen()
        except BaseException:
            with suppress(StoreError):  # the others wait a little longer then
                self._give_up_own()
                self.drafting.release()
            raise

    def _take(self, step: Step) -> Any:
        match step:
            case Settled():
                opening = self.drafting.opening
                return self._registers.settled_tickets(self._target) if opening is None else opening.settled
            case OpenTicket(number=number):
                return self._open(number)
            case ReadSource():
                return self.drafting.read()
            case Draft():
                return self._draft()
            case LookAt(number=number):
                return self._look(number)
            case Rest(number=number, holder=holder):
                return self._pause(number, holder)
            case DeclareOver(number=number, last=last):
                return self._give_up_own() if number == self._own else self._give_up(number, last)
            case Freeze(run=run, draft=draft):
                return self._freeze(self._registers.folder(run), draft)
            case Seal(draft=draft):
                return self._seal(draft)
            case Remember(number=number):
                return self._registers.settle_tickets(self._target, number, self.drafting.scratch / "settled")
            case _:
                assert_never(step)

    def _open(self, number: int) -> bool:
        with self._writing:
            is_own = self._append(number, 1, TicketKind.OPENED)
            if is_own:
                self._own, self._last = number, 1
            return is_own

    def _draft(self) -> str | None:
        """Store a draft, and register the run for planners that look for plans in flight."""
        if self.folder.read_plan() is not None:
            return None
        try:
            plan = self._held()
        except BudgetExceeded:
            if self._has_waited():
                raise
            return None  # the rows that others are about to buy may be what is too much
        if self._stored is None or plan.nonce != self._stored.nonce:
            self._registers.open_run(self._target, self.folder)
            self.folder.create_draft(plan.nonce, plan.to_json())
            self._stored = plan
        return plan.nonce

    def _held(self) -> Plan:
        """Return a draft whose dollars are held in the shared budgets. Other runs may take them while it is written."""
        while True:
            plan, budgets = self.drafting.draft(), self.drafting.budgets
            if not plan.budgets or not plan.requests or budgets.reserve(plan.budgets, plan.dollars or 0.0):
                return plan
            self.drafting.forget()

    def _has_waited(self) -> bool:
        """Return whether no earlier ticket is open."""
        first = self._registers.settled_tickets(self._target) + 1
        tickets = (self._look(number) for number in range(first, self._own))
        return all(ticket.is_over or ticket.sealed is not None for ticket in tickets)

    def _freeze(self, folder: RunFolder, draft: str) -> None:
        if self._stored is not None and self._stored.nonce == draft:
            if folder.create_plan(self._stored.to_json()):
                self._frozen = self._stored
            return
        folder.freeze(draft)
        if folder.path != self.folder.path:
            self.drafting.note(folder)

    def _read_frozen(self) -> Plan:
        data = self.folder.read_plan()
        assert data is not None, "the plan was frozen here, or by another attempt"
        return Plan.from_json(data)

    def _look(self, number: int) -> PlannerTicket:
        return ticket_of(self._registers.ticket(self._target, number))

    def _pause(self, number: int, holder: TicketEntry) -> bool:
        now = self.parts.clock()
        if now > holder.expires_at:
            self.parts.warn(
                f"The planner of {holder.run} was not heard of in time. Its rows are planned here."
            )
            return True
        if number not in self._waited_for:
            self._waited_for.add(number)
            self.parts.log(f"Waiting for {holder.run}, which plans on the same target.")
        self.parts.sleep(_LOOK_SECONDS)
        return False

    def _give_up(self, number: int, last: int) -> bool:
        return self._append(number, last + 1, TicketKind.OVER)

    def _give_up_own(self) -> bool:
        with self._writing:
            return bool(self._own) and self._append(self._own, self._last + 1, TicketKind.OVER)

    def _seal(self, draft: str) -> bool:
        with self._writing:
            return self._append(self._own, self._last + 1, TicketKind.SEALED, draft=draft)

    def _append(self, number: int, at: int, kind: TicketKind, draft: str = "") -> bool:
        """Create a record of a ticket. Returns whether it is there, also if the reply to its creation was lost."""
        entry = TicketEntry(
            kind=kind,
            nonce=f"{self._nonce}-{at}",
            run=self.folder.path,
            expires_at=self.parts.clock() + TICKET_LEASE_SECONDS,
            draft=draft,
        )
        return self._registers.write_ticket(self._target, number, at, entry)

    @contextmanager
    def _renewed(self) -> Iterator[None]:
        """Renew the ticket in a thread: the source's database may take long for its first row."""
        over = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(over,), daemon=True)
        renewing.start()
        try:
            yield
        finally:
            over.set()
            renewing.join()

    def _renew(self, over: threading.Event) -> None:
        while not over.wait(TICKET_LEASE_SECONDS / 3):
            with self._writing:
                try:
                    if self._own and self._append(self._own, self._last + 1, TicketKind.RENEWED):
                        self._last += 1
                except StoreError:
                    continue  # the next one may succeed; a ticket that is over costs another turn, and no money

    @property
    def _registers(self) -> Registers:
        return Registers(workspace=self.parts.workspace)

    @property
    def _target(self) -> str:
        return str(self.drafting.place)
