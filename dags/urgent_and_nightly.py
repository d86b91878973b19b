"""Every night, answer all tickets: the urgent ones at once at the full price, the others in batches at half of it.

The query names the route of each row. NULL means the stage's own way, which is to ask in batches. The urgent tickets
are in the target within minutes, while the batches still run.
"""

import os
from datetime import timedelta

import pendulum
from airflow.sdk import DAG

from airflow_batch_llm import Route, Shape
from airflow_batch_llm.operators.llm_transform import LLMTransformOperator

MODEL_ID = os.environ.get("BATCH_LLM_MODEL_ID", "anthropic:claude-haiku-4-5")
LLM_CONN_ID = os.environ.get("BATCH_LLM_CONN_ID")  # None: the default one of the model's provider
WAREHOUSE_CONN_ID = os.environ.get("BATCH_LLM_WAREHOUSE_CONN_ID", "warehouse")

with DAG(
    "urgent_and_nightly",
    schedule="0 22 * * *",
    start_date=pendulum.datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=1)},
    doc_md=__doc__,
    tags=["batch-llm"],
):
    LLMTransformOperator(
        task_id="draft_replies",
        source_sql="""
            SELECT ticket_id, subject, body,
                   CASE WHEN lower(body) LIKE '%urgent%' OR lower(body) LIKE '%as soon as possible%'
                        THEN 'urgent' END AS how
            FROM support.tickets
        """,
        source_conn_id=WAREHOUSE_CONN_ID,
        key="ticket_id",
        prompt="Draft a reply to this ticket in two sentences.\n\n{{ subject or '' }}\n{{ body or '' }}",
        shape=Shape(output_column="reply"),
        model_id=MODEL_ID,
        llm_conn_id=LLM_CONN_ID,
        target="support.replies",
        routes={"urgent": Route(way="now", max_cost_usd=5)},
        route_column="how",
        max_cost_usd=25,
        deferrable=True,
    )
