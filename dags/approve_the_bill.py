"""Ask a person before a run that would cost more than a threshold, with Airflow's own `ApprovalOperator`.

The first task says what the answers would cost and sends nothing. A cheap run goes on by itself. For an expensive one
somebody approves or rejects under "Required Actions" in the UI. The run may then cost no more than the estimate's upper
bound: where many rows have arrived meanwhile it fails before it sends anything, and the person is asked again.
"""

import os
from datetime import timedelta
from typing import Any

import pendulum
from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import DAG, Param, task

from airflow_batch_llm.operators.llm_transform import LLMTransformOperator

MODEL_ID = os.environ.get("BATCH_LLM_MODEL_ID", "anthropic:claude-haiku-4-5")
LLM_CONN_ID = os.environ.get("BATCH_LLM_CONN_ID")  # None: the default one of the model's provider
WAREHOUSE_CONN_ID = os.environ.get("BATCH_LLM_WAREHOUSE_CONN_ID", "warehouse")

ESTIMATE = "{% set found = ti.xcom_pull(task_ids='estimate')['estimate'] %}"
STAGE: dict[str, Any] = {
    "source_table": "support.tickets",
    "source_conn_id": WAREHOUSE_CONN_ID,
    "key": "ticket_id",
    "prompt": "Does this customer want money back?\n\n{{ body or subject }}",
    "output_type": ["yes", "no"],
    "shape": {"output_column": "wants_refund"},
    "model_id": MODEL_ID,
    "llm_conn_id": LLM_CONN_ID,
    "target": "support.refunds",
}


@task.branch
def is_expensive(report: dict[str, Any], params: dict[str, Any] | None = None) -> str:
    """Choose the task that comes next. A cost that nobody can tell is expensive."""
    usd, most = report["estimate"]["usd"], (params or {})["approve_above_usd"]
    return "approve" if usd is None or usd > most else "label"


with DAG(
    "approve_the_bill",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1),
    max_active_runs=1,
    params={"approve_above_usd": Param(50.0, type="number", minimum=0)},
    default_args={"retries": 3, "retry_delay": timedelta(minutes=1)},
    doc_md=__doc__,
    tags=["batch-llm"],
):
    estimate = LLMTransformOperator(task_id="estimate", plan_only=True, **STAGE)
    approve = ApprovalOperator(
        task_id="approve",
        subject=ESTIMATE
        + "May this cost {{ 'an unknown amount' if found.usd is none else '$%.2f' % found.usd }}?",
        body="{{ ti.xcom_pull(task_ids='estimate')['verdict'] }}",
    )
    label = LLMTransformOperator(
        task_id="label",
        max_cost_usd=ESTIMATE + "{{ 'inf' if found.usd_high is none else found.usd_high }}",
        trigger_rule="none_failed_min_one_success",
        deferrable=True,
        **STAGE,
    )
    is_expensive(estimate.output) >> [approve, label]
    approve >> label
