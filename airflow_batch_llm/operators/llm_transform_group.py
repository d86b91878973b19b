"""Run the stage as a group of tasks, for tables that take one worker too long.

The tasks share the run's folder. Each may fail, be retried or be cleared by itself. Later tasks do what an earlier one
leaves undone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException, BaseOperator, conf
from airflow.sdk import Context, TaskGroup, TriggerRule, XComArg
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

from airflow_batch_llm.errors import InputError
from airflow_batch_llm.hooks.arguments import deployment
from airflow_batch_llm.hooks.handle import RunHandle, TaskKey, place_of
from airflow_batch_llm.hooks.monitoring import translated_errors
from airflow_batch_llm.hooks.object_storage import open_workspace
from airflow_batch_llm.operators.llm_batch import PlannedRunOperator, clears
from airflow_batch_llm.operators.llm_transform import LLMTransformOperator
from airflow_batch_llm.operators.run import Ended, RunOperator

if TYPE_CHECKING:
    from airflow_batch_llm.stage.generation import Pause
    from airflow_batch_llm.stage.run import Portion, Run, Spread


class PlanRunOperator(LLMTransformOperator):
    """Plan the run. Returns the portions of its shards, one for each mapped task, and pushes the run's `handle`.

    :param max_workers: the most portions
    :param successors: the later tasks that wait for the run
    :param opening: the `opening` that `open` has pushed, if other tasks have read the source
    """

    template_fields: Sequence[str] = (*LLMTransformOperator.template_fields, "opening")

    def __init__(
        self, *, max_workers: int = 8, successors: Sequence[str] = (), opening: Any = "", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.successors = successors
        self.opening = opening
        if self.plan_only:
            raise InputError(
                "plan_only is for LLMTransformOperator: a plan alone leaves the other tasks of a group nothing to do."
            )
        if max_workers < 1:
            raise InputError(f"max_workers is {max_workers}: at least one task has to send the batches.")
        self.max_workers = max_workers

    def open_run(self, context: Context, handle: RunHandle, spool: Path) -> "Run":
        """Open the run with the partitions that other tasks have read for it."""
        return replace(super().open_run(context, handle, spool), opening=self.opening)

    def execute(self, context: Context) -> list[dict[str, int]]:
        """Read the source, price it, and freeze the plan."""
        from airflow_batch_llm.stage.run import Portion, Spread

        with translated_errors():
            (handle,) = self.handles(context)
            with self.opened(context, handle) as run:
                generation = run.generation()
                generation.ask_canary()
                portions = Spread(generation=generation).portions(self.max_workers)
        context["ti"].xcom_push(key="handle", value=handle.to_json())
        # Without a portion Airflow would skip the mapped task, and all tasks after it.
        nothing = Portion(first=0, last=0, places=0)
        return [asdict(portion) for portion in portions or [nothing]]


class OpenSourceOperator(LLMTransformOperator):
    """Divide the source into partitions, one for each mapped task.

    The operator first prepares the target.
    It returns the numbers of the partitions, and pushes the `opening` for the tasks that follow.
    The run folder keeps the key values.

    :param partitions: the most partitions
    :param planner: the task that plans the run and gives it its name
    """

    def __init__(self, *, partitions: int, planner: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.partitions = partitions
        self.planner = planner

    def handles(self, context: Context) -> Sequence[RunHandle]:
        """Return the run of the task that plans."""
        from airflow_batch_llm.stage.records.folder import run_path
        from airflow_batch_llm.stage.run import own_name

        task_instance: Any = context["ti"]
        names = (task_instance.dag_id, self.planner, task_instance.run_id)
        handle = self._run_handle(context, run_path(*names, deployment=deployment()))
        own = own_name(open_workspace(handle.workspace), handle.run, lambda: place_of(handle))
        return [replace(handle, run=own)]

    def execute(self, context: Context) -> list[dict[str, int]]:
        """Find the bounds of the source without reading its rows."""
        with translated_errors():
            (handle,) = self.handles(context)
            with self.opened(context, handle) as run:
                opening = run.open_source(self.partitions)
        context["ti"].xcom_push(key="opening", value=opening.nonce if opening else "")
        # Without a mapped task, Airflow would skip what comes after it.
        return [{"number": number} for number in range(len(opening.partitions) if opening else 1)]

    def read(self, context: Context, opening: str, number: int) -> None:
        """Read one partition."""
        with translated_errors():
            (handle,) = self.handles(context)
            with self.opened(context, handle) as run:
                replace(run, opening=opening).read_partition(number)


class ReadPartitionOperator(BaseOperator):
    """Read a partition of the source into the run folder. It reads with the arguments of the task that has divided it.

    They are not its own, since Airflow stores the arguments of mapped tasks, and the prompt is one of them.

    :param opener: the task that has divided the source
    :param opening: the `opening` that this task has pushed
    :param partition: the partition that is this task's
    """

    template_fields: Sequence[str] = ("opening", "partition")

    def __init__(self, *, opener: str, opening: Any, partition: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.opener = opener
        self.opening = opening
        self.partition = partition

    def execute(self, context: Context) -> None:
        """Read the partition, unless that is done."""
        opener: Any = context["dag"].get_task(self.opener).prepare_for_execution()
        opener.render_template_fields(context)
        opener.read(context, self.opening, self.partition["number"])


class _SpreadRunOperator(PlannedRunOperator):
    """A task of the group that works on the planned run.

    :param handle: the handle that `plan` has pushed
    :param successors: the later tasks that do what this one leaves undone
    """

    template_fields: Sequence[str] = ("handle",)

    def __init__(self, *, handle: Any, successors: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.handle = handle
        self.successors = successors

    def handles(self, context: Context) -> Sequence[RunHandle]:  # noqa: ARG002 - it is known
        """Return the one run of the group."""
        return [RunHandle.from_json(self.handle)]


class _PortionOperator(_SpreadRunOperator):
    """A mapped task, which never waits.

    :param portion: the shards that it works on
    """

    template_fields: Sequence[str] = ("handle", "portion")

    def __init__(self, *, portion: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.portion = portion

    def execute(self, context: Context) -> None:
        """Do what can be done for this portion now."""
        from airflow_batch_llm.stage.run import Portion, Spread

        self._task_key = TaskKey.of(context["ti"])
        with translated_errors():
            self._handles = tuple(self.handles(context))
            (handle,) = self._handles
            with self.opened(context, handle) as run:
                self.work(Spread(generation=run.generation()), Portion(**self.portion))

    def work(self, spread: "Spread", portion: "Portion") -> None:
        """Do the part of the run that belongs to this task."""
        raise NotImplementedError


class SubmitPortionOperator(_PortionOperator):
    """Send the first batches of a portion, as many as its places at the provider."""

    def work(self, spread: "Spread", portion: "Portion") -> None:
        spread.submit(portion)


class DriveRunOperator(_SpreadRunOperator):
    """Wait for the batches of all portions, and send shards that had no place, were turned away or were not sent."""

    def step(self, run: "Run") -> "Pause | None":
        from airflow_batch_llm.stage.run import Spread

        return Spread(generation=run.generation()).drive()

    def returned(self, context: Context, ended: Sequence[Ended]) -> None:
        """Return None: the batches have ended, and `finish` reports the result."""


class CollectPortionOperator(_PortionOperator):
    """Bring a portion's answers into the target's staging."""

    def work(self, spread: "Spread", portion: "Portion") -> None:
        spread.collect(portion)


class FinishRunOperator(LLMTransformOperator):
    """Publish staged answers, ask failed rows again, and judge the run. Fails if a task of the group has failed.

    :param handle: the handle that `plan` has pushed
    :param members: the tasks of the group before this one
    """

    template_fields: Sequence[str] = (*LLMTransformOperator.template_fields, "handle")

    def __init__(self, *, handle: Any, members: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.handle: Mapping[str, Any] = handle
        self.members = members

    def handles(self, context: Context) -> Sequence[RunHandle]:  # noqa: ARG002 - it is known
        """Return the one run of the group."""
        return [RunHandle.from_json(self.handle)]

    def open_run(self, context: Context, handle: RunHandle, spool: Path) -> "Run":
        """Open the run with its stage, so that a clear of the whole group reads the source again."""
        return replace(super().open_run(context, handle, spool), clears=clears(context["ti"], self.retries))

    def returned(self, context: Context, ended: Sequence[Ended]) -> Any:
        """Return the report, if the run is good enough and every task of the group has done its part."""
        report = super().returned(context, ended)
        if failed := self._failed(TaskKey.of(context["ti"])):
            context["ti"].xcom_push(key="report", value=report)
            raise AirflowFailException(
                f"{', '.join(failed)} failed. What they left undone was done here, and everything has landed;"
                " the report is in XCom. Look at their logs, clear them, and then this task: nothing is sent twice."
            )
        return report

    def _failed(self, key: TaskKey) -> list[str]:
        states = RuntimeTaskInstance.get_task_states(
            dag_id=key.dag_id, task_ids=list(self.members), run_ids=[key.run_id]
        )
        return sorted(task for task, state in states.get(key.run_id, {}).items() if state == "failed")


#: `drive` and `finish` do what mapped tasks have left undone. Without a plan there is nothing to do.
_IF_PLANNED = TriggerRule.ALL_DONE_MIN_ONE_SUCCESS

#: Arguments that only tasks at the begin of the group take, and those that only tasks at its end take.
_AT_THE_BEGIN, _AT_THE_END = frozenset({"trigger_rule"}), frozenset({"outlets", "do_xcom_push"})

#: Arguments of the whole run, which the tasks at its two ends take.
_OF_THE_RUN = frozenset({*signature(LLMTransformOperator.__init__).parameters, "workspace"})

#: Arguments that a task that drives no run does not take.
_OF_RUNS = frozenset(signature(RunOperator.__init__).parameters)

#: The UI's names of the mapped tasks.
_PORTION = "shards {{ task.portion['first'] }} to {{ task.portion['last'] }}"
_PARTITION = "partition {{ task.partition['number'] + 1 }}"


def llm_transform_group(
    group_id: str, *, max_workers: int = 8, plan_partitions: int = 1, **kwargs: Any
) -> TaskGroup:
    """The same as `LLMTransformOperator`, spread over several workers.

    `plan` cuts the run's shards into portions; `submit` and `collect` are mapped over them; `drive` waits in between and
    keeps the batches coming; `finish` publishes, asks failed rows again and judges the run.

    :param group_id: the name of the group, which comes before the names of its tasks
    :param max_workers: the most portions
    :param plan_partitions: the most tasks that read the source: `open` divides it, and `read` is mapped over the parts.
        The source is a table with a number, a date or a timestamp in its key, or files. 1: `plan` reads it
    :param kwargs: the arguments of `LLMTransformOperator`. Those of every operator, such as `retries` or `pool`, go to all
        tasks of the group; only `trigger_rule` goes to the first task alone, and `outlets` to `finish`
    """
    _refuse_partitions(plan_partitions, kwargs)
    _refuse_more_than_airflow_maps(plan_partitions=plan_partitions, max_workers=max_workers)
    of_first = _without(kwargs, _AT_THE_END)
    of_finish = _without(kwargs, _AT_THE_BEGIN)
    of_tasks = _without(kwargs, _AT_THE_BEGIN | _AT_THE_END | _OF_THE_RUN)
    with TaskGroup(group_id) as group:
        drive_id, finish_id = (str(group.child_id(label)) for label in ("drive", "finish"))  # type: ignore[no-untyped-call]
        successors = [drive_id, finish_id]
        of_plan = {"max_workers": max_workers, "successors": successors, **of_first}
        if plan_partitions == 1:
            plan = PlanRunOperator(task_id="plan", **of_plan)
        else:
            planner = str(group.child_id("plan"))  # type: ignore[no-untyped-call]
            opened = OpenSourceOperator(
                task_id="open", partitions=plan_partitions, planner=planner, **of_first
            )
            plan = _read_and_planned(opened, of_tasks, _without(of_plan, _AT_THE_BEGIN))
        handle, portions = XComArg(plan, key="handle"), plan.output
        of_mapped = {"handle": handle, "map_index_template": _PORTION, **of_tasks}
        submit = SubmitPortionOperator.partial(task_id="submit", successors=successors, **of_mapped)
        submitted = submit.expand(portion=portions)
        drive = DriveRunOperator(
            task_id="drive", handle=handle, successors=[finish_id], trigger_rule=_IF_PLANNED, **of_tasks
        )
        collect = CollectPortionOperator.partial(task_id="collect", successors=[finish_id], **of_mapped)
        collected = collect.expand(portion=portions)
        finish = FinishRunOperator(
            task_id="finish",
            handle=handle,
            members=[task.task_id for task in (plan, submitted, drive, collected)],
            trigger_rule=_IF_PLANNED,
            **of_finish,
        )
        submitted >> drive >> collected >> finish
    return group


def _read_and_planned(
    opened: OpenSourceOperator, of_tasks: dict[str, Any], of_plan: dict[str, Any]
) -> PlanRunOperator:
    """Make the task that reads each partition, and the task that plans after them."""
    opening = XComArg(opened, key="opening")
    read = ReadPartitionOperator.partial(
        task_id="read",
        opener=opened.task_id,
        opening=opening,
        map_index_template=_PARTITION,
        **_without(of_tasks, _OF_RUNS),
    )
    plan = PlanRunOperator(task_id="plan", opening=opening, **of_plan)
    read.expand(partition=opened.output) >> plan
    return plan


def _refuse_partitions(partitions: Any, arguments: Mapping[str, Any]) -> None:
    if type(partitions) is not int or partitions < 1:
        raise InputError(
            f"plan_partitions is {partitions!r}, and must be a number of tasks: 1, or more to spread the reading."
        )
    if partitions > 1 and arguments.get("source_sql") is not None:
        raise InputError(
            f"plan_partitions={partitions} divides a source_table by its key, or a source_uri by its files, and source_sql"
            " is given. Make the query a view and name that as source_table, or leave plan_partitions out."
        )


def _refuse_more_than_airflow_maps(**tasks: int) -> None:
    most = conf.getint("core", "max_map_length", fallback=1024)
    for name, count in tasks.items():
        if count > most:
            raise InputError(
                f"{name} is {count}, and Airflow makes {most} mapped tasks of one at most. Lower {name}, or raise"
                " [core] max_map_length."
            )


def _without(arguments: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in names}
