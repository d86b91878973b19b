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

#: What the group means to begin with, and what it hands on when it has ended.
_AT_THE_BEGIN, _AT_THE_END = frozenset({"trigger_rule"}), frozenset({"outlets", "do_xcom_push"})

#: What belongs to the whole run, and so to the tasks at its two ends.
_OF_THE_RUN = frozenset({*signature(LLMTransformOperator.__init__).parameters, "workspace"})

#: How the UI names the mapped tasks.
_PORTION = "shards {{ task.portion['first'] }} to {{ task.portion['last'] }}"


def llm_transform_group(group_id: str, *, max_workers: int = 8, **kwargs: Any) -> TaskGroup:
    """The same as `LLMTransformOperator`, spread over several workers.

    `plan` cuts the run's shards into portions; `submit` and `collect` are mapped over them; `drive` waits in between and
    keeps the batches coming; `finish` publishes, asks failed rows again and judges the run.

    :param group_id: the name of the group, which comes before the names of its tasks
    :param max_workers: how many portions there are at most
    :param kwargs: the arguments of `LLMTransformOperator`. Those of every operator, such as `retries` or `pool`, go to all
        tasks of the group; only `trigger_rule` goes to `plan` alone, and `outlets` to `finish`
    """
    of_plan = _without(kwargs, _AT_THE_END)
    of_finish = _without(kwargs, _AT_THE_BEGIN)
    of_tasks = _without(kwargs, _AT_THE_BEGIN | _AT_THE_END | _OF_THE_RUN)
    with TaskGroup(group_id) as group:
        drive_id, finish_id = (str(group.child_id(label)) for label in ("drive", "finish"))  # type: ignore[no-untyped-call]
        plan = PlanRunOperator(task_id="plan", max_workers=max_workers, **of_plan)
        handle, portions = XComArg(plan, key="handle"), plan.output
        of_mapped = {"handle": handle, "map_index_template": _PORTION, **of_tasks}
        submit = SubmitPortionOperator.partial(task_id="submit", heirs=[drive_id, finish_id], **of_mapped)
        submitted = submit.expand(portion=portions)
        drive = DriveRunOperator(
            task_id="drive", handle=handle, heirs=[finish_id], trigger_rule=_IF_PLANNED, **of_tasks
        )
        collect = CollectPortionOperator.partial(task_id="collect", heirs=[finish_id], **of_mapped)
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


def _without(arguments: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in names}
