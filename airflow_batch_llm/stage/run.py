"""A run, moved forward: everything that can be done now is done, and the rest is said as what to wait for.

`advance` may be called by any process, after any crash, any number of times: it reads the folder and goes on from
there. Two attempts at once do no harm; they see each other's records.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from airflow_batch_llm.core.waiting import CANCEL_GRACE_SECONDS, Watch
from airflow_batch_llm.errors import DeadlinePassed
from airflow_batch_llm.stage.finishing import Finished, Finisher
from airflow_batch_llm.stage.folder import RunFolder
from airflow_batch_llm.stage.followup import FollowUp
from airflow_batch_llm.stage.landed import read_landed
from airflow_batch_llm.stage.plan import Plan
from airflow_batch_llm.stage.planning import Planner
from airflow_batch_llm.stage.round import Open, Round
from airflow_batch_llm.stage.settings import Parts, Stage

#: The provider's own window, and time to land what came in its last minute.
_AFTER_WINDOW_SECONDS = 7200.0

#: A woken worker looks again after this where nothing else is known.
_LOOK_AGAIN_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Nothing more can be done now. `waiting` is for people: how many of how many, and when it looks again."""

    watch: Watch
    waiting: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One stage, executed by one task of one Dag run, over any number of attempts.

    `max_tries` is a number that a clear raises and a retry does not: it tells "go on" from "do it again".
    """

    stage: Stage
    parts: Parts
    name: str
    max_tries: int = 0

    def advance(self) -> Pause | Finished:
        """Go as far as can be gone now."""
        while True:
            folder = self._folder()
            plan = self._plan(folder)
            if self.stage.guards.plan_only:
                return Finisher(parts=self.parts, folder=folder, first=plan).planned()
            with self._scratch() as scratch:
                done = self._work(folder, plan, scratch)
            if isinstance(done, Pause) or plan.max_tries >= self.max_tries:
                return done

    def _folder(self) -> RunFolder:
        """The generation to work on: the first unfinished one, or the last, or a new one after a clear."""
        folder = RunFolder(workspace=self.parts.workspace, run=self.name)
        while (data := folder.read_plan()) is not None:
            if folder.read_report() is None or Plan.from_json(data).max_tries >= self.max_tries:
                break
            folder = replace(folder, generation=folder.generation + 1)
        return folder

    def _plan(self, folder: RunFolder) -> Plan:
        data = folder.read_plan()
        if data is not None:
            return Plan.from_json(data)
        return Planner(stage=self.stage, parts=self.parts, folder=folder, max_tries=self.max_tries).plan()

    def _work(self, folder: RunFolder, plan: Plan, scratch: Path) -> Pause | Finished:
        finisher = Finisher(parts=self.parts, folder=folder, first=plan)
        if (stored := finisher.stored()) is not None:
            return stored
        deadline = self._deadline(folder)
        rounds = [plan]
        while True:
            current = self._round(folder, rounds[-1], deadline, scratch)
            still = current.advance()
            if still is not None:
                self._give_up_late(current, still, deadline)
                return self._pause(still, deadline)
            if folder.read_published(rounds[-1].round) is None:
                current.publish()
                folder.create_published(
                    rounds[-1].round, orjson.dumps({"at": self.parts.clock(), "nonce": rounds[-1].nonce})
                )
                current.unstage()
            following = self._next(folder, rounds, deadline, scratch)
            if following is None:
                return finisher.finish(rounds)
            rounds.append(following)

    def _round(self, folder: RunFolder, plan: Plan, deadline: float, scratch: Path) -> Round:
        return Round(
            parts=self.parts,
            folder=folder,
            plan=plan,
            pace=self.stage.pace,
            deadline=deadline,
            scratch=scratch,
        )

    def _next(self, folder: RunFolder, rounds: list[Plan], deadline: float, scratch: Path) -> Plan | None:
        last = rounds[-1]
        known = folder.read_plan(last.round + 1)
        if known is not None:
            return Plan.from_json(known)
        landed = {shard.number: read_landed(folder, shard.number) for shard in last.shards}
        requests = sum(len(one.again) for one in landed.values())
        if not requests or self.parts.clock() > deadline - self.stage.pace.min_round_seconds:
            return None
        if not self._affordable(folder, rounds, requests):
            return None
        self.parts.say(f"Round {last.round + 1}: {requests:,} requests are asked again.")
        return FollowUp(parts=self.parts, folder=folder, scratch=scratch).plan(last, landed)

    def _affordable(self, folder: RunFolder, rounds: list[Plan], requests: int) -> bool:
        """Whether so many more requests, at the price of those so far, stay within the budget."""
        most = rounds[0].limits.max_cost_usd
        if most is None:
            return True
        shards = [(shard, read_landed(folder, shard.number)) for plan in rounds for shard in plan.shards]
        spent = sum(landed.report.spent.cost for _, landed in shards)
        sent = sum(shard.requests for shard, _ in shards)
        if spent + requests * spent / max(1, sent) <= most:
            return True
        self.parts.say(f"{requests:,} requests are not asked again: ${spent:,.2f} of ${most:g} are spent.")
        return False

    def _deadline(self, folder: RunFolder) -> float:
        """The end of this run's time, set once; a clear of the unfinished run sets a new one."""
        records = [orjson.loads(data) for data in folder.deadlines()]
        if not records or records[-1]["max_tries"] < self.max_tries:
            seconds = self.stage.pace.timeout_seconds
            if seconds is None:
                seconds = self.parts.provider.limits.window_seconds + _AFTER_WINDOW_SECONDS
            folder.add_deadline(
                orjson.dumps({"at": self.parts.clock() + seconds, "max_tries": self.max_tries})
            )
            records = [orjson.loads(data) for data in folder.deadlines()]
        return float(records[-1]["at"])

    def _give_up_late(self, current: Round, still: Open, deadline: float) -> None:
        """After the deadline and the time that cancelled batches get to end: land what there is, and say so."""
        grace = CANCEL_GRACE_SECONDS if self.stage.pace.cancel_on_timeout else 0.0
        if self.parts.clock() < deadline + grace:
            return
        current.publish()
        ids = ", ".join(still.batch_ids) or "none known"
        raise DeadlinePassed(
            f"The run's time is over and batches are still running: {ids}. What had been answered has landed."
            " Clear the task to wait on with a new deadline; nothing will be sent twice."
        )

    def _pause(self, still: Open, deadline: float) -> Pause:
        now = self.parts.clock()
        wake_at = still.wake_at
        if not still.batch_ids and wake_at is None:
            wake_at = now + _LOOK_AGAIN_SECONDS
        watch = Watch(
            batch_ids=still.batch_ids,
            since=still.since,
            deadline=deadline,
            wake_at=wake_at,
            shards_wait=still.unsent > 0,
            poll_interval=self.stage.pace.poll_interval,
            cancel_at_deadline=self.stage.pace.cancel_on_timeout,
        )
        waiting = f"{len(still.batch_ids):,} batches are running, {still.unsent:,} shards wait for a place."
        return Pause(watch=watch, waiting=waiting)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        self.parts.spool.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=self.parts.spool))
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
