"""Let people answer the tickets that the model could not, and merge their answers.

What has no good answer after all attempts waits in `support.reviewed__review`. Somebody is asked to look at it, with
Airflow's own `HITLOperator`. Who answers fills `topic`, `reviewed_by` and `reviewed_at` there. The last task merges these
answers at no cost; what is answered later is merged by the next run.
"""

import os
from datetime import timedelta
from typing import Any

import pendulum
from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import DAG, task

from airflow_batch_llm import Guards, Shape, Source
from airflow_batch_llm.hooks.warehouse import warehouse
from airflow_batch_llm.operators.llm_transform import LLMTransformOperator

MODEL_ID = os.environ.get("BATCH_LLM_MODEL_ID", "anthropic:claude-haiku-4-5")
LLM_CONN_ID = os.environ.get("BATCH_LLM_CONN_ID")  # None: the default one of the model's provider
WAREHOUSE_CONN_ID = os.environ.get("BATCH_LLM_WAREHOUSE_CONN_ID", "warehouse")

ANSWERED, LATER = "The tickets are answered", "Later"


@task.short_circuit
def count_waiting() -> int:
    """Count the tickets that wait. Without one, nobody is asked."""
    database = warehouse(WAREHOUSE_CONN_ID, argument="WAREHOUSE_CONN_ID")
    try:
        waiting = Source(sql="SELECT ticket_id FROM support.reviewed__review WHERE reviewed_by IS NULL")
        return sum(batch.num_rows for batch in database.read(waiting))
    finally:
        database.close()


@task.short_circuit
def is_answered(response: dict[str, Any]) -> bool:
    """Whether there is something to merge today."""
    return ANSWERED in response["chosen_options"]


STAGE: dict[str, Any] = {
    "source_table": "support.tickets",
    "source_conn_id": WAREHOUSE_CONN_ID,
    "key": "ticket_id",
    "prompt": "What is this ticket about?\n\n{{ body or subject }}",
    "output_type": ["account", "billing", "bug", "other"],
    "shape": Shape(output_column="topic", carry=["subject", "body"]),
    "guards": Guards(on_exhausted="review", min_success_ratio=0.9),
    "model_id": MODEL_ID,
    "llm_conn_id": LLM_CONN_ID,
    "target": "support.reviewed",
}

with DAG(
    "human_review",
    schedule="@daily",
    start_date=pendulum.datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=1)},
    doc_md=__doc__,
    tags=["batch-llm"],
):
    label = LLMTransformOperator(task_id="label", deferrable=True, **STAGE)
    ask = HITLOperator(
        task_id="ask",
        subject="Tickets that wait for a person: {{ ti.xcom_pull(task_ids='count_waiting') }}",
        body="Fill `topic`, `reviewed_by` and `reviewed_at` in `support.reviewed__review`.",
        options=[ANSWERED, LATER],
        defaults=LATER,
        response_timeout=timedelta(hours=12),
    )
    merge = LLMTransformOperator(task_id="merge", deferrable=True, **STAGE)
    label >> count_waiting() >> ask
    is_answered(ask.output) >> merge
