"""The stage as a group of tasks, for tables that one worker would plan, send or land for too long."""

from inspect import signature
from typing import Any

from airflow.sdk import TaskGroup, TriggerRule, XComArg

from airflow_batch_llm.operators.llm_transform import LLMTransformOperator
from airflow_batch_llm.operators.spread_run import (
    CollectPortionOperator,
    DriveRunOperator,
    FinishRunOperator,
    PlanRunOperator,
    SubmitPortionOperator,
)

#: `drive` and `finish` make good what mapped tasks have left undone; without a plan there is nothing to do.
_IF_PLANNED = TriggerRule.ALL_DONE_MIN_ONE_SUCCESS

#: What belongs to the whole run, and so to the tasks at its two ends.
_OF_THE_RUN = frozenset({*signature(LLMTransformOperator.__init__).parameters, "workspace", "outlets"})


def llm_transform_group(group_id: str, *, max_workers: int = 8, **kwargs: Any) -> TaskGroup:
    """The same as `LLMTransformOperator`, spread over several workers.

    `plan` cuts the run's shards into portions; `submit` and `collect` are mapped over them; `drive` waits in between and
    keeps the batches coming; `finish` publishes, asks failed rows again and judges the run.

    :param group_id: the name of the group, which comes before the names of its tasks
    :param max_workers: how many portions there are at most
    :param kwargs: the arguments of `LLMTransformOperator`. Those of every operator, such as `retries` or `pool`, go to all
        tasks of the group; `outlets` to `finish`
    """
    of_tasks = {name: value for name, value in kwargs.items() if name not in _OF_THE_RUN}
    of_plan = {name: value for name, value in kwargs.items() if name != "outlets"}
    with TaskGroup(group_id) as group:
        plan = PlanRunOperator(task_id="plan", max_workers=max_workers, **of_plan)
        handle, portions = XComArg(plan, key="handle"), plan.output
        drive_id, finish_id = (str(group.child_id(label)) for label in ("drive", "finish"))  # type: ignore[no-untyped-call]
        submit = SubmitPortionOperator.partial(task_id="submit", handle=handle, heir=drive_id, **of_tasks)
        collect = CollectPortionOperator.partial(task_id="collect", handle=handle, heir=finish_id, **of_tasks)
        submitted = submit.expand(portion=portions)
        drive = DriveRunOperator(task_id="drive", handle=handle, trigger_rule=_IF_PLANNED, **of_tasks)
        collected = collect.expand(portion=portions)
        finish = FinishRunOperator(
            task_id="finish",
            handle=handle,
            members=[task.task_id for task in (plan, submitted, drive, collected)],
            trigger_rule=_IF_PLANNED,
            **kwargs,
        )
        submitted >> drive >> collected >> finish
    return group
