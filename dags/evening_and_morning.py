"""One Dag sends in the evening, another collects as soon as it hears of it; they share nothing but an asset.

The event of the asset carries the run's handle. The collector defers until the batches have ended, and lands them.
"""

import os
from datetime import timedelta
from typing import Any

import pendulum
from airflow.sdk import DAG, Asset, task

from airflow_batch_llm import Shape
from airflow_batch_llm.operators.llm_batch import CollectLLMBatchOperator, SubmitLLMBatchOperator

MODEL_ID = os.environ.get("BATCH_LLM_MODEL_ID", "anthropic:claude-haiku-4-5")
LLM_CONN_ID = os.environ.get("BATCH_LLM_CONN_ID")  # None: the default one of the model's provider
WAREHOUSE_CONN_ID = os.environ.get("BATCH_LLM_WAREHOUSE_CONN_ID", "warehouse")

SENT = Asset("x-batch-llm://support/priorities")
DEFAULTS = {"retries": 3, "retry_delay": timedelta(minutes=1)}

with DAG(
    "evening_sends",
    schedule="0 18 * * *",
    start_date=pendulum.datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    doc_md=__doc__,
    tags=["batch-llm"],
):
    SubmitLLMBatchOperator(
        task_id="send",
        source_table="support.tickets",
        source_conn_id=WAREHOUSE_CONN_ID,
        key="ticket_id",
        prompt="Give this ticket a priority.\n\n{{ subject or '' }}\n{{ body or '' }}",
        output_type=["now", "today", "this week", "some day"],
        shape=Shape(output_column="priority"),
        model_id=MODEL_ID,
        llm_conn_id=LLM_CONN_ID,
        target="support.priorities",
        outlets=[SENT],
    )


@task
def handles(triggering_asset_events: Any = None) -> list[dict[str, Any]]:
    """What the evening has sent; more than one, where a morning was missed."""
    return [event.extra["handle"] for event in triggering_asset_events[SENT]]


with DAG(
    "morning_collects",
    schedule=[SENT],
    start_date=pendulum.datetime(2026, 1, 1),
    max_active_runs=1,
    default_args=DEFAULTS,
    doc_md=__doc__,
    tags=["batch-llm"],
):
    CollectLLMBatchOperator.partial(task_id="collect", deferrable=True).expand(handle=handles())
