"""A prompt that is tried on a few tickets before it is asked of all of them.

The canary is asked in real time. If too few of its answers are good, or the rest would cost more than the budget by its
tokens, the task fails and nothing else is sent.
"""

import os
from datetime import timedelta

import pendulum
from airflow.sdk import DAG

from airflow_batch_llm import Canary, Shape
from airflow_batch_llm.operators.llm_transform import LLMTransformOperator

MODEL_ID = os.environ.get("BATCH_LLM_MODEL_ID", "anthropic:claude-haiku-4-5")
LLM_CONN_ID = os.environ.get("BATCH_LLM_CONN_ID")  # None: the default one of the model's provider
WAREHOUSE_CONN_ID = os.environ.get("BATCH_LLM_WAREHOUSE_CONN_ID", "warehouse")

with DAG(
    "canary",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=1)},
    doc_md=__doc__,
    tags=["batch-llm"],
):
    LLMTransformOperator(
        task_id="find_teams",
        source_sql="SELECT ticket_id, subject, body FROM support.tickets",
        source_conn_id=WAREHOUSE_CONN_ID,
        key="ticket_id",
        prompt="Which team answers this ticket?\n\n{{ subject }}\n{{ body }}",
        output_type=["accounts", "engineering", "sales"],
        shape=Shape(output_column="team"),
        model_id=MODEL_ID,
        llm_conn_id=LLM_CONN_ID,
        target="support.teams",
        canary=Canary(rows=10, min_success_ratio=0.9),
        max_cost_usd=10,
        deferrable=True,
    )
