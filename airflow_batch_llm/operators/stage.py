"""The stage that an operator's arguments describe, made when the task runs."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import conf
from airflow.sdk import Context

from airflow_batch_llm.hooks.arguments import number, seconds
from airflow_batch_llm.hooks.llm import split_model_id

if TYPE_CHECKING:
    from airflow_batch_llm.operators.llm_transform import LLMTransformOperator
    from airflow_batch_llm.stage.settings import Ask, Guards, Pace, PromptFile, Shape, Stage


def stage_of(task: "LLMTransformOperator", context: Context) -> "Stage":
    """The stage that a rendered operator describes."""
    from airflow_batch_llm.stage.settings import Stage
    from airflow_batch_llm.warehouses.base import Source

    source = Source(
        sql=task.source_sql,
        table=task.source_table,
        parameters=task.source_parameters,
        key=task.key,
    )
    return Stage(
        source=source,
        key=task.key,
        ask=_ask(task),
        shape=_shape(task, context),
        guards=_guards(task),
        pace=pace_of(task),
        keep_days=task.keep_days,
    )


def _ask(task: "LLMTransformOperator") -> "Ask":
    from airflow_batch_llm.stage.settings import Ask

    return Ask(
        model=split_model_id(task.model_id)[1],
        prompt=task.prompt if task.prompt is not None else _prompt_file(task),
        output_type=task.output_type,
        system_prompt=task.system_prompt,
        prompt_params=task.prompt_params or {},
        request_params=task.request_params or {},
        max_tokens=task.max_tokens,
        endpoint=task.endpoint,
        cache_system_prompt=task.cache_system_prompt,
    )


def _prompt_file(task: "LLMTransformOperator") -> "PromptFile":
    from airflow_batch_llm.stage.settings import PromptFile

    assert task.prompt_file is not None, "one of the two is checked to be there"
    return PromptFile(Path(task.dag.fileloc).parent / task.prompt_file)


def _shape(task: "LLMTransformOperator", context: Context) -> "Shape":
    from airflow_batch_llm.stage.settings import Shape
    from airflow_batch_llm.warehouses.base import SchemaChange, WriteMode

    return Shape(
        target=task.target,
        failures_target=task.failures_target,
        carry=task.carry,
        columns=task.columns or {},
        output_column=task.output_column,
        write_mode=WriteMode(task.write_mode),
        on_schema_change=SchemaChange(task.on_schema_change),
        create_target=task.create_target,
        partition_by=task.partition_by,
        cluster_by=task.cluster_by,
        staging_schema=task.staging_schema,
        labels={"dag": task.dag_id, "task": task.task_id, "run": str(context["run_id"])},
        raw_excerpt=task.keep_raw_excerpt,
    )


def _guards(task: "LLMTransformOperator") -> "Guards":
    from airflow_batch_llm.core.selection import Only
    from airflow_batch_llm.stage.settings import BadRow, Guards, OverBudget

    return Guards(
        only=Only(task.only),
        retry_dead=task.retry_dead,
        max_rows=None if _is_unset(task.max_rows) else number("max_rows", task.max_rows, int),
        max_cost_usd=_budget(task.max_cost_usd),
        on_over_budget=OverBudget(task.on_over_budget),
        on_bad_row=BadRow(task.on_bad_row),
        max_attempts=task.max_attempts,
        min_success_ratio=task.min_success_ratio,
        prices=task.prices or {},
        plan_only=task.plan_only,
    )


def _is_unset(given: float | str | None) -> bool:
    """A limit may have been a template; an empty one is none."""
    return given is None or given == ""


def _budget(given: float | str | None) -> float | None:
    if _is_unset(given):
        budget = conf.getfloat("batch_llm", "default_max_cost_usd", fallback=25.0)
    else:
        budget = number("max_cost_usd", given, float)
    return None if math.isinf(budget) else budget


def pace_of(task: "LLMTransformOperator") -> "Pace":
    """How fast and how long, also for whoever collects the run."""
    from airflow_batch_llm.stage.settings import Pace

    return Pace(
        rows_per_batch=task.rows_per_batch,
        max_active_batches=task.max_active_batches,
        timeout_seconds=seconds(task.timeout),
        min_round_seconds=seconds(task.min_round_time) or 0.0,
        poll_interval=task.poll_interval,
        cancel_on_timeout=task.cancel_on_timeout,
    )
