"""Bring one stage from its first row to its report, over any number of attempts of one task.

Dag, task and run have the same names in every deployment of a Dag. So a run is also identified by its deployment and
its database. A run of another deployment is never continued, and its report is never returned: its answers are in
another table. The first round may be spread over an executor's workers in portions. These share the run folder, and may
run in any order, twice, or not at all. `Run.advance` finishes the rest.
"""

import ctypes
import hashlib
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

import pyarrow as pa

from airflow_batch_llm.core.printing import counted, share, verb
from airflow_batch_llm.core.settings import Pace, Stage
from airflow_batch_llm.errors import BatchLLMError, InputError, TargetError, Unavailable
from airflow_batch_llm.providers.routed import connections
from airflow_batch_llm.stage.budgets import Budgets
from airflow_batch_llm.stage.generation import ABANDONED_SECONDS, Generation, Pause
from airflow_batch_llm.stage.land.deleting import delete_copies
from airflow_batch_llm.stage.land.finishing import Finished, Finisher
from airflow_batch_llm.stage.land.ledger import Ledger
from airflow_batch_llm.stage.parts import Parts
from airflow_batch_llm.stage.plan.partitions import Opening, Outrun
from airflow_batch_llm.stage.plan.planning import Planner, described
from airflow_batch_llm.stage.records.folder import RunFolder, generations
from airflow_batch_llm.stage.records.plan import Plan
from airflow_batch_llm.stage.records.registers import Registers
from airflow_batch_llm.stage.records.standings import read_judged
from airflow_batch_llm.stage.send.sweeping import cancel_run, cancelled_before, sweep_loose
from airflow_batch_llm.stage.telemetry import describe, span
from airflow_batch_llm.stage.tidying import tidy
from airflow_batch_llm.store import Workspace
from airflow_batch_llm.warehouses.registration import Place

__all__ = ["Pause", "Run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The deployment of a run, and the place of its answers."""

    deployment: str
    """Name of the deployment. Empty if there is only one."""
    table: str
    """Name of the target, as the stage has it."""
    place: Place

    def refuse_other(self, folder: RunFolder, plan: Plan) -> None:
        """Raise `TargetError` if the plan was made for another deployment or another target.

        A plan of an earlier release does not name its database. It belongs to this owner if its table has the same name.
        """
        if plan.place is None:
            is_own = plan.target.table == self.table
        else:
            is_own = (plan.deployment, plan.place) == (self.deployment, self.place)
        if not is_own:
            raise other_target(folder, plan, self.place, self.deployment)

    def refuse_other_database(self, folder: RunFolder, plan: Plan) -> None:
        """Raise `TargetError` if the plan is of another deployment or database. Its table may be another one."""
        if plan.place is not None:
            same_table = replace(self, place=replace(self.place, table=plan.place.table))
            same_table.refuse_other(folder, plan)


def own_name(workspace: Workspace, name: str, place: Callable[[], Place]) -> str:
    """Return the name of this deployment's run: this name, or one below it if a run for another database was finished here.

    Raises `TargetError` if that other run is unfinished. The connection may only have another name for the same database
    now, and the rows would be paid twice.
    """
    folder = RunFolder(workspace=workspace, run=name)
    data = folder.read_plan()
    if data is None or (plan := Plan.from_json(data)).place is None:
        return name
    try:
        own = place()
    except BatchLLMError:
        return name  # the run asks the database again, so that the failure is one of the run
    if plan.place.database == own.database:
        return name
    beside = f"{name}/database={hashlib.blake2b(own.database.encode(), digest_size=8).hexdigest()}"
    is_begun = RunFolder(workspace=workspace, run=beside).read_plan() is not None
    if is_begun or all(one.read_report() is not None for one in generations(workspace, name)):
        return beside
    raise other_target(folder, plan, own)


def other_target(folder: RunFolder, plan: Plan, own: Place, deployment: str | None = None) -> TargetError:
    """Return the error that names both targets. `deployment`: None if it does not matter."""
    planned = plan.target.table if plan.place is None else str(plan.place)
    asked = str(own)
    if deployment is not None and plan.deployment != deployment:
        planned, asked = f"{planned} {_of(plan.deployment)}", f"{asked} {_of(deployment)}"
    return TargetError(
        f"The run {folder.path} was planned for {planned}, and this one is for {asked}. If two deployments share the"
        " workspace, set [batch_llm] deployment in each (on the command line --deployment), to a name of its own. If the"
        " target or its connection has changed, change it back until the run is finished, or begin another run."
        " Nothing was sent."
    )


def _of(deployment: str) -> str:
    return f"of the deployment {deployment!r}" if deployment else "of no named deployment"


#: The bytes from which the C library takes memory from the system, and gives it back as soon as it is free; and the number
#: of that setting. By default the library raises these bytes with each large piece that is freed.
_MAPPED_BYTES, _M_MMAP_THRESHOLD = 1 << 20, -3


def keep_little() -> None:
    """Let Arrow and the C library give back what they no longer need.

    Arrow's own allocators keep far more than is in use: 70 MB where a shard takes six. The C library keeps what lies below
    a piece in use: 130 MB after ten thousand wide rows. A user's own choice is kept.
    """
    if "ARROW_DEFAULT_MEMORY_POOL" not in os.environ:
        pa.set_memory_pool(pa.system_memory_pool())
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        with suppress(AttributeError, OSError, TypeError):  # only glibc has it
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One stage, executed by one task of one Dag run, over any number of attempts.

    A clear raises `max_tries` and a retry does not, so it tells "go on" from "do it again". Without a
    stage, a planned run is brought to its end; `clears` is such a number of the task that does it.
    """

    parts: Parts
    name: str
    stage: Stage | None = None
    max_tries: int = 0
    clears: int = 0
    pace: Pace = field(default_factory=Pace)
    is_given_up: Callable[[RunFolder, int], bool] | None = None
    """Return whether the user has ended the task that waits for another run, planned at this `max_tries`. None: not known."""
    opening: str = ""
    """The nonce of the opening by which other tasks have read the source. Default: this task reads it."""
    _resumed: set[str] = field(default_factory=set, init=False, repr=False, compare=False)  # generations
    _places: dict[str, Place] = field(default_factory=dict, init=False, repr=False, compare=False)  # by table

    def __post_init__(self) -> None:
        keep_little()

    def advance(self) -> Pause | Finished:
        """Move the run as far as it goes now."""
        while True:
            generation = self.generation()
            if self.stage is not None and self.stage.plan_only:
                return Finisher(parts=self.parts, folder=generation.folder, first=generation.first).planned()
            done = generation.advance()
            if isinstance(done, Finished):
                tidy(self.parts)
            if isinstance(done, Pause) or generation.first.max_tries >= self.max_tries or self.stage is None:
                return done

    def generation(self) -> Generation:
        """Return the generation that counts now. Plans it if it has no plan yet."""
        folder, plan, is_finished = self._current()
        is_open = plan is not None and not is_finished
        if plan is None:
            plan = self._plan(folder)
        else:
            self._owner(plan).refuse_other(folder, plan)
            if not is_finished:
                self._resume(folder, plan)
        if self.opening:
            with self.parts.cleaning("what was read for the plan"):
                folder.delete_planned_by(self.opening)
        return replace(self._generation(folder, plan), is_open=is_open)

    def open_source(self, most: int) -> Opening | None:
        """Divide the source into at most `most` partitions, to be read before the run is planned.

        Returns None if an unfinished run goes on, which needs no source.
        """
        folder = self._next_unplanned()
        if folder is None:
            return None
        self._care_for_others(self._stage)
        return self._planner(folder).open(most)

    def read_partition(self, number: int) -> None:
        """Read a partition of the source for the run's plan, unless that is done or no longer needed."""
        folder = self._next_unplanned()
        opening = None if folder is None else Opening.read(folder, self.opening)
        if folder is None or opening is None:
            self.parts.log("The run is planned. There is nothing to read.")
        elif folder.read_partition(opening.nonce, number) is not None:
            self.parts.log(f"The partition {number + 1} was read before.")
        else:
            try:
                rows = replace(self._planner(folder), opening=opening).read_partition(number)
            except Outrun as error:
                self.parts.warn(str(error))
            else:
                self.parts.log(
                    f"{counted(rows, 'row')} read: partition {number + 1} of {len(opening.partitions)}."
                )

    def _next_unplanned(self) -> RunFolder | None:
        """Return the next generation to plan, or None if the last one is unfinished.

        The tasks before the plan have their own `max_tries`, which does not count here.
        """
        folder, plan, _ = replace(self, max_tries=sys.maxsize)._current()
        return folder if plan is None else None

    def is_planned(self) -> bool:
        """Return whether the generation that counts now has a plan."""
        return self._current()[1] is not None

    def _current(self) -> tuple[RunFolder, Plan | None, bool]:
        """Return the generation to work on, its plan, and whether it is finished.

        It is the first unfinished one, or the last, or a new one after a clear.
        """
        folder = RunFolder(workspace=self.parts.workspace, run=self.name)
        while (data := folder.read_plan()) is not None:
            plan, is_finished = Plan.from_json(data), folder.read_report() is not None
            if not is_finished or plan.max_tries >= self.max_tries:
                return folder, plan, is_finished
            self._owner(plan).refuse_other_database(folder, plan)
            folder = replace(folder, generation=folder.generation + 1)
        return folder, None, False

    def _plan(self, folder: RunFolder) -> Plan:
        if self.stage is None:
            raise InputError(f"No run was planned in {folder.workspace.uri}/{self.name}. Look at the name.")
        opening = Opening.read(folder, self.opening)
        if opening is None:
            self._care_for_others(self.stage)
        if opening is None and self.opening:
            self.parts.warn(
                "What other tasks have read is for another plan, or gone. This worker alone reads the source."
            )
        planner = replace(self._planner(folder), opening=opening)
        with span("plan") as current:
            plan = planner.plan()
            describe(current, **plan.numbers(plan.shards), usd=plan.dollars)
        self._refuse_faster(folder, plan)
        self.parts.log(plan.described())
        for told in Budgets(parts=self.parts, folder=folder).described(plan.budgets):
            self.parts.log(told)
        return plan

    def _planner(self, folder: RunFolder) -> Planner:
        return Planner(stage=self._stage, parts=self.parts, folder=folder, max_tries=self.max_tries)

    @property
    def _stage(self) -> Stage:
        assert self.stage is not None, "only a run with a stage reads a source"
        return self.stage

    def _care_for_others(self, stage: Stage) -> None:
        """Finish what other runs have left, before the target is read."""
        self._refuse_earlier_releases(stage.target)
        self._end_abandoned(self._place(stage.target))
        for swept in sweep_loose(self.parts):
            delete_copies(self.parts, swept)
            if swept.read_report() is not None:
                Ledger(parts=self.parts).settle(swept)  # what a stray has cost may be known only now

    def _refuse_faster(self, folder: RunFolder, plan: Plan) -> None:
        """Raise `TargetError` if another deployment has planned the run of this name in the meantime."""
        owner = self._owner(plan)
        try:
            owner.refuse_other(folder, plan)
        except TargetError:
            Registers(workspace=self.parts.workspace).close_run(str(owner.place), folder)
            raise

    def _owner(self, plan: Plan) -> Owner:
        """Return the owner whose plans this run may continue. Without a stage the plan names all but the database."""
        if self.stage is None:
            table, deployment = plan.target.table, plan.deployment
        else:
            table, deployment = self.stage.target, self.parts.deployment
        return Owner(deployment=deployment, table=table, place=self._place(table))

    def _place(self, table: str) -> Place:
        if table not in self._places:
            self._places[table] = self.parts.target.place(table)
        return self._places[table]

    def _resume(self, folder: RunFolder, plan: Plan) -> None:
        """Resume an unfinished run, once per start: warn if the stage differs from the run's plan."""
        if folder.path in self._resumed:
            return
        self._resumed.add(folder.path)
        if plan.provider != self.parts.provider.name:
            raise InputError(
                f"The run {folder.path} was planned for {plan.provider} and is not finished, so it cannot go on with"
                f" {self.parts.provider.name}. Go back to the model and connection of {plan.provider} until it is"
                " finished; nothing was sent."
            )
        if missing := plan.others.keys() - connections(self.parts.provider):
            raise InputError(
                f"The run {folder.path} has routes by the connections {', '.join(sorted(missing))}, which are not open."
                " Go back to the routes that it was planned with until it is finished; nothing was sent."
            )
        if told := cancelled_before(folder):
            self.parts.log(told)
        if self.stage is not None and (told := described(plan, self.stage, self.parts.provider)):
            self.parts.warn(told)

    def _generation(self, folder: RunFolder, plan: Plan) -> Generation:
        pace = self.stage.pace if self.stage is not None else self.pace
        return Generation(
            parts=self.parts, folder=folder, first=plan, pace=pace, max_tries=self.max_tries + self.clears
        )

    def _refuse_earlier_releases(self, table: str) -> None:
        """Raise `InputError` if a run that an earlier release began may be buying rows of this table.

        It is registered by its table alone, and planners do not look there.
        """
        registers = Registers(workspace=self.parts.workspace)
        registers.refuse_earlier_layout()
        for folder in registers.open_runs(table):
            if folder.run != self.name and folder.read_plan() is not None:
                raise InputError(
                    f"The run {folder.path} is unfinished, and an earlier release planned it, which did not record its"
                    f" database. It may be buying rows for {table}. Finish it first, with its own task or with"
                    f" CollectLLMBatchOperator(run_folder={folder.run!r}). Nothing was sent."
                )

    def _end_abandoned(self, place: Place) -> None:
        """Land the answers that other runs on the target have left at the provider, since this run leaves their rows out.

        A worker may resume such a run at the same time: each batch lands once. A run whose time has long been over is
        ended. The batches of a run that a user has ended are cancelled.
        """
        for folder in Registers(workspace=self.parts.workspace).open_runs(str(place)):
            data = folder.read_plan()
            plan = Plan.from_json(data) if data is not None else None
            if plan is None or folder.run == self.name or plan.provider != self.parts.provider.name:
                continue
            if not plan.others.keys() <= connections(self.parts.provider):
                continue
            if plan.place != place:  # two databases have planned one run at once, and the other was faster
                continue
            other = replace(self._generation(folder, plan), max_tries=plan.max_tries)
            try:
                if self._is_given_up(folder, plan):
                    self._cancel_given_up(folder)
                if self.parts.clock() >= other.deadline() + ABANDONED_SECONDS:
                    other.advance()
                elif not other.is_at_provider():
                    other.land()
            except BatchLLMError as error:
                self.parts.warn(f"The run {folder.path} could not be brought to its end: {error.in_full}")

    def _is_given_up(self, folder: RunFolder, plan: Plan) -> bool:
        """Return whether a user has ended another run. This Airflow does not know the tasks of another deployment."""
        if self.is_given_up is None or plan.deployment != self.parts.deployment:
            return False
        return self.is_given_up(folder, plan.max_tries)

    def _cancel_given_up(self, folder: RunFolder) -> None:
        """Cancel the batches of a task that was ended while no worker and no trigger had its run."""
        cancelled = cancel_run(folder, self.parts.provider, self.parts.by, self.parts.clock)
        if cancelled.asked:
            shards = counted(cancelled.asked, "shard")
            self.parts.warn(
                f"The task of the run {folder.path} was ended: {shards} of it {verb(cancelled.asked, 'is', 'are')} asked"
                " no more in real time. What was answered lands with the next run."
            )
        if not cancelled.now:
            return
        batches = counted(len(cancelled.now), "batch")
        done = share(cancelled.answered, cancelled.requests, "request")
        self.parts.warn(
            f"The task of the run {folder.path} was ended while no process held it: {batches}"
            f" {verb(len(cancelled.now), 'is', 'are')} cancelled now. {done} had been processed, as far as the provider"
            " says. What was answered lands with the next run."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Portion:
    """Shards that one worker takes, by their first and last number, and its share of the places at the provider."""

    first: int
    last: int
    places: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The first round of a generation, by its shards' numbers. `finish` sends later rounds, which are small.

    The canary is in no portion. The planner or `drive` asks it. No portion sends anything before its verdict.
    """

    generation: Generation

    def portions(self, most: int) -> list[Portion]:
        """Split the shards into at most `limit` portions of similar size. Returns none if nothing is sent."""
        plan = read_judged(self.generation.folder, self.generation.first)
        numbers = [shard.number for shard in plan.shards if shard not in plan.canary]
        places = self.generation.pace.max_active_batches
        count = min(most, places, len(numbers))
        ends = [len(numbers) * (i + 1) // count for i in range(count)]
        return [
            Portion(
                first=numbers[start],
                last=numbers[end - 1],
                places=places * (i + 1) // count - places * i // count,
            )
            for i, (start, end) in enumerate(zip([0, *ends], ends, strict=False))
        ]

    def submit(self, portion: Portion) -> None:
        """Send the first of these shards, as many as there are places for them."""
        replace(self._part(portion), places=portion.places).drive()

    def drive(self) -> Pause | None:
        """Send further shards as places become free. Returns None if all batches have ended."""
        return self.generation.drive()

    def collect(self, portion: Portion) -> None:
        """Stage these shards. Raises `Unavailable` if batches of theirs are still running, or had to be sent again."""
        if (pause := self._part(portion).collect()) is not None:
            raise Unavailable(f"Not all shards of this portion can be staged yet: {pause.waiting}.")

    def _part(self, portion: Portion) -> Generation:
        self.generation.deadline()  # whoever begins confirms the dollars of the whole plan, and not of its part
        first = self.generation.sendable()
        shards = tuple(shard for shard in first.shards if portion.first <= shard.number <= portion.last)
        return replace(self.generation, first=replace(first, shards=shards))
