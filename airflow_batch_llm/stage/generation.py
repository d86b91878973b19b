"""Move one generation of a run forward by its frozen plan: round after round, until the report is stored.

It needs neither the source nor the prompt: a worker with the run folder, the provider and the target can go on.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import NoReturn

import orjson

from airflow_batch_llm.core.checked import seconds
from airflow_batch_llm.core.escalation import batches_until
from airflow_batch_llm.core.printing import counted, verb
from airflow_batch_llm.core.settings import Pace
from airflow_batch_llm.core.waiting import CANCEL_GRACE_SECONDS, Watch
from airflow_batch_llm.errors import DeadlinePassed, ProviderError, Unavailable, WarehouseError
from airflow_batch_llm.stage.budgets import Budgets, Purse
from airflow_batch_llm.stage.canary import CanaryJudge
from airflow_batch_llm.stage.land.finishing import Finished, Finisher
from airflow_batch_llm.stage.land.followup import FollowUp
from airflow_batch_llm.stage.land.ledger import Ledger
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.records.folder import RunFolder
from airflow_batch_llm.stage.records.plan import Plan
from airflow_batch_llm.stage.records.run_index import RunIndex
from airflow_batch_llm.stage.records.standings import RunMemory, read_rounds, read_sendable
from airflow_batch_llm.stage.reusing import Copier
from airflow_batch_llm.stage.round import LOOK_AGAIN_SECONDS, OpenRound, Round

#: Seconds after the provider's own window, to land the last answers.
_AFTER_WINDOW_SECONDS = 7200.0

#: Seconds past its deadline after which a run counts as abandoned.
ABANDONED_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """A run that has to wait. `waiting` says for people what it waits for."""

    watch: Watch
    waiting: str
    plan: Plan
    """The run's first round."""
    error: ProviderError | None = None
    """The error of the last look at the batches. None: it succeeded, or there are no batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A planned run folder, and the parts that bring it to its end."""

    parts: Parts
    folder: RunFolder
    first: Plan
    pace: Pace
    max_tries: int = 0
    places: int | None = None  # fewer than the pace's, for a part of the work; 0: nothing is sent
    is_open: bool = False
    """It was just checked that there is no report. Default: it was not checked."""

    def advance(self) -> Pause | Finished:
        """Move the generation as far as it goes now."""
        finisher = Finisher(parts=self.parts, folder=self.folder, first=self.first)
        if not self.is_open and (ended := finisher.ended()) is not None:
            self.parts.log(
                f"The run {self.folder.path} had ended before: its report is returned, and nothing is sent. Clear the task"
                " to plan again."
            )
            return ended
        deadline, memory = self.deadline(), self._memory()
        with _scratch(self.parts.spool) as scratch:
            self._copy(scratch)
            rounds = [self.sendable()]
            while True:
                current = self._round(rounds[-1], deadline, scratch, memory)
                still = self._advanced(current, deadline)
                if still is not None:
                    memory.leave()
                    current.publish_early()
                    self._give_up_late(current, still, deadline)
                    return self._pause(still, rounds, deadline, memory)
                if current.plan.is_canary_alone:
                    rounds = [self._judged(current)]
                    continue
                self._publish(current)
                following = None if current.plan.is_stopped else self._next(rounds, current)
                if following is None:
                    return finisher.finish(rounds, memory)
                rounds.append(following)

    def _copy(self, scratch: Path) -> None:
        """Copy the answers that are reused, unless that is done."""
        Copier(parts=self.parts, folder=self.folder, plan=self.first, scratch=scratch).run()

    def _advanced(self, current: Round, deadline: float) -> OpenRound | None:
        try:
            return current.advance()
        except Unavailable as error:
            if self.parts.clock() < deadline:
                raise
            self._give_up(current, f"the provider cannot be reached: {str(error).rstrip('.')}")

    def sendable(self) -> Plan:
        """Return the part of the first round that may be sent now: its canary alone, until that is judged."""
        return read_sendable(self.folder, self.first)

    def ask_canary(self) -> None:
        """Judge the canary, if there is one and its answers come in real time."""
        if self.sendable().is_canary_alone:
            self._first_round(lambda _: None)

    def _judged(self, current: Round) -> Plan:
        """Merge the canary's answers, and return the plan that its verdict leaves."""
        try:
            current.publish()
        except WarehouseError:
            # Another live attempt may have judged the canary, gone on, and dropped the staged rows.
            if self.folder.read_canary() is None:
                raise
        return CanaryJudge(folder=self.folder, plan=self.first).judge(self.parts)

    def is_at_provider(self) -> bool:
        """Return whether a batch of any round is running, or may be."""
        deadline, memory = self.deadline(), self._memory()
        return any(
            self._round(plan, deadline, self.parts.spool, memory).is_at_provider()
            for plan in read_rounds(self.folder)
        )

    def land(self) -> None:
        """Publish the rounds whose batches have all ended. Nothing is sent, and no new round begins."""
        if self.sendable().is_canary_alone:
            return  # its own worker judges it, or the run that ends it once it is abandoned
        idle = replace(self, places=0)
        deadline, memory = self.deadline(), self._memory()
        with _scratch(self.parts.spool) as scratch:
            self._copy(scratch)
            for plan in read_rounds(self.folder):
                current = idle._round(plan, deadline, scratch, memory)
                if current.advance() is not None:
                    break
                is_new = self.folder.read_published(plan.round) is None
                self._publish(current)
                if is_new:
                    Ledger(parts=self.parts).update(self.folder)
        memory.leave()

    def drive(self) -> Pause | None:
        """Send what may be sent of the first round, and land nothing. Returns None if all its batches have ended."""
        return self._first_round(Round.drive)

    def collect(self) -> Pause | None:
        """Stage what has ended of the first round, and publish nothing. Returns None if all its shards are staged."""
        return self._first_round(Round.advance)

    def _first_round(self, step: Callable[[Round], OpenRound | None]) -> Pause | None:
        deadline, memory = self.deadline(), self._memory()
        with _scratch(self.parts.spool) as scratch:
            plan, still = self.sendable(), None
            if plan.is_canary_alone:
                current = self._round(plan, deadline, scratch, memory)
                still = current.advance()
                plan = self._judged(current) if still is None else plan
            if still is None:
                still = step(self._round(plan, deadline, scratch, memory))
        memory.leave()
        if still is None or self._is_late(deadline, still):  # what is late is for `advance` to say
            return None
        return self._pause(still, [plan], deadline, memory)

    def _is_late(self, deadline: float, still: OpenRound) -> bool:
        """Return whether the deadline has passed, and the time in which cancelled batches may end.

        That time does not count while the provider cannot be reached, because then nothing can be cancelled.
        """
        grace = CANCEL_GRACE_SECONDS if self.pace.cancel_on_timeout and still.error is None else 0.0
        return self.parts.clock() >= deadline + grace

    def deadline(self) -> float:
        """Return the run's deadline. Its first step sets it, and a clear of the unfinished run sets a new one."""
        records = [orjson.loads(data) for data in self.folder.deadlines()]
        if not records or records[-1]["max_tries"] < self.max_tries:
            span = seconds(self.pace.timeout)
            if span is None:
                span = self.parts.provider.limits.window_seconds + _AFTER_WINDOW_SECONDS
            end = {"at": self.parts.clock() + span, "max_tries": self.max_tries}
            RunIndex(workspace=self.parts.workspace).begin(self.folder, end["at"])
            Budgets(parts=self.parts, folder=self.folder).confirm(self.first)
            Ledger(parts=self.parts).expect(self.folder, self.parts.clock() + span + ABANDONED_SECONDS)
            if self.folder.add_deadline(orjson.dumps(end), after=len(records)):
                return float(end["at"])
            records = [orjson.loads(data) for data in self.folder.deadlines()]
        return float(records[-1]["at"])

    def _memory(self) -> RunMemory:
        return RunMemory.of(self.folder, self.first)

    def _round(self, plan: Plan, deadline: float, scratch: Path, memory: RunMemory) -> Round:
        return Round(
            parts=self.parts,
            folder=self.folder,
            memory=memory,
            plan=plan,
            places=self.pace.max_active_batches if self.places is None else self.places,
            deadline=deadline,
            scratch=scratch,
            concurrency=self.pace.max_concurrency,
        )

    def _publish(self, current: Round) -> None:
        """Merge the round once, if it was not merged before, and drop the staged rows."""
        if self.folder.read_published(current.plan.round) is None:
            try:
                current.publish()
            except WarehouseError:
                # Another live attempt may have merged the round in between, and dropped the staged rows.
                if self.folder.read_published(current.plan.round) is None:
                    raise
            done = orjson.dumps({"at": self.parts.clock(), "nonce": current.plan.nonce})
            self.folder.create_published(current.plan.round, done)
        with self.parts.cleaning("staged rows"):
            current.drop_loaded()

    def _next(self, rounds: list[Plan], current: Round) -> Plan | None:
        last, deadline, memory = rounds[-1], current.deadline, current.memory
        known = self.folder.read_plan(last.round + 1)
        if known is not None:
            return Plan.from_json(known)
        if last.in_warehouse:
            return None
        landed = memory.all_landed(last.shards)
        is_late = self.parts.clock() >= batches_until(last.rules, deadline)
        following = FollowUp(parts=self.parts, folder=self.folder, scratch=current.scratch, is_late=is_late)
        wanted = self._in_time(last, following.wanted(last, landed), deadline)
        if not any(wanted.values()) or self.folder.is_cancelled():
            return None
        allowed = self._affordable(rounds, wanted, memory)
        if not any(allowed.values()):
            return None
        for name, requests in allowed.items():
            if requests:
                by = f" by the route {name}" if last.is_routed else ""
                what = "item" if last.is_packed else "request"
                told = f"{counted(requests, what)} {verb(requests, 'is', 'are')} asked again{by}."
                self.parts.log(f"Round {last.round + 1}: {told}")
        return following.plan(last, landed, allowed)

    def _in_time(self, last: Plan, wanted: Mapping[str, int], deadline: float) -> dict[str, int]:
        """Return the requests for which there is time left: a batch needs more of it than an answer in real time."""
        now, batches_end = self.parts.clock(), deadline - (seconds(self.pace.min_round_time) or 0.0)
        ends = {name: deadline if last.base(name).way.in_real_time else batches_end for name in wanted}
        return {name: requests if now <= ends[name] else 0 for name, requests in wanted.items()}

    def _affordable(self, rounds: list[Plan], wanted: Mapping[str, int], memory: RunMemory) -> dict[str, int]:
        """Return the requests of each route that stay within the budget, at the cost of the requests so far."""
        purse, budgets = Purse.of(memory, rounds), Budgets(parts=self.parts, folder=self.folder)
        periods = self.first.budgets
        shared = budgets.most(periods)
        allowed = purse.allowed(wanted, shared)
        while periods and any(allowed.values()) and not budgets.keep(periods, purse.cost_with(allowed)):
            shared = budgets.most(periods)  # others have taken what was left
            allowed = purse.allowed(wanted, shared)
        for name, requests in allowed.items():
            if left_out := wanted[name] - requests:
                self.parts.warn(
                    f"{counted(left_out, 'item' if rounds[-1].is_packed else 'request')}"
                    f" {verb(left_out, 'is', 'are')} not asked again: {purse.told(name, shared)}"
                )
        return allowed

    def _give_up_late(self, current: Round, still: OpenRound, deadline: float) -> None:
        """Land the answers that exist, and log that the run's time is over."""
        if not self._is_late(deadline, still):
            return
        ids = ", ".join(still.batch_ids) or "none that is known"
        if still.error is None:
            self._give_up(current, f"batches are still running: {ids}")
        why = str(still.error).rstrip(".")
        self._give_up(current, f"the provider cannot be reached ({why}). Batches may be running: {ids}")

    def _give_up(self, current: Round, why: str) -> NoReturn:
        current.publish()
        Ledger(parts=self.parts).update(self.folder)
        raise DeadlinePassed(
            f"The run's time is over and {why}. What had been fetched has landed. Clear the task to wait on with a new"
            " deadline; nothing will be sent twice. To end what is running, use `airflow-batch-llm cancel`."
        )

    def _pause(self, still: OpenRound, rounds: Sequence[Plan], deadline: float, memory: RunMemory) -> Pause:
        wake_at = still.wake_at
        given_up = batches_until(rounds[-1].rules, deadline)
        if self.parts.clock() < given_up < deadline:  # then a worker is to cancel them
            wake_at = given_up if wake_at is None else min(wake_at, given_up)
        if not still.batch_ids and wake_at is None:
            wake_at = self.parts.clock() + LOOK_AGAIN_SECONDS
        watch = Watch(
            batch_ids=still.batch_ids,
            since=still.since,
            deadline=deadline,
            wake_at=wake_at,
            shards_wait=still.unsent > 0,
            poll_interval=self.pace.poll_interval,
            cancel_at_deadline=self.pace.cancel_on_timeout,
            strays=still.strays,
        )
        paid = memory.spent([*_numbers(rounds[:-1]), *still.staged])
        dollars = rounds[0].dollars
        expected = "" if dollars is None else f" of about ${dollars:,.4f}"
        said = "The canary is asked first: " if rounds[-1].is_canary_alone else ""
        said += still.described(rounds[-1], self.parts.clock())
        waiting = f"{said}; ${paid:,.4f}{expected} spent"
        return Pause(watch=watch, waiting=waiting, plan=self.first, error=still.error)


def _numbers(rounds: Iterable[Plan]) -> Iterator[int]:
    return (shard.number for plan in rounds for shard in plan.shards)


@contextmanager
def _scratch(spool: Path) -> Iterator[Path]:
    spool.mkdir(parents=True, exist_ok=True)
    scratch = Path(mkdtemp(dir=spool))
    try:
        yield scratch
    finally:
        rmtree(scratch, ignore_errors=True)
