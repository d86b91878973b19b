"""A table that one worker would take too long for: the stage as a group of tasks.

`plan` cuts the table into portions; `submit` and `collect` run once for each of them, side by side on as many workers;
`drive` waits in between and keeps the batches coming; `finish` merges everything at once and judges the run.
"""

import os
from datetime import timedelta

import pendulum
from airflow.sdk import DAG

from airflow_batch_llm import Pace, Shape
from airflow_batch_llm.operators.llm_transform_group import llm_transform_group

MODEL_ID = os.environ.get("BATCH_LLM_MODEL_ID", "anthropic:claude-haiku-4-5")
LLM_CONN_ID = os.environ.get("BATCH_LLM_CONN_ID")  # None: the default one of the model's provider
WAREHOUSE_CONN_ID = os.environ.get("BATCH_LLM_WAREHOUSE_CONN_ID", "warehouse")
ROWS_PER_BATCH = int(os.environ.get("BATCH_LLM_ROWS_PER_BATCH", "10000"))

with DAG(
    "large_table",
    schedule="@weekly",
    start_date=pendulum.datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=1)},
    doc_md=__doc__,
    tags=["batch-llm"],
):
    llm_transform_group(
        "find_products",
        max_workers=4,
        source_table="support.tickets",
        source_conn_id=WAREHOUSE_CONN_ID,
        key="ticket_id",
        prompt="Which of our products is this about? Say 'none' if it is about none.\n\n{{ subject }}\n{{ body }}",
        output_type=str,
        shape=Shape(output_column="product"),
        pace=Pace(rows_per_batch=ROWS_PER_BATCH, max_active_batches=20),
        model_id=MODEL_ID,
        llm_conn_id=LLM_CONN_ID,
        target="support.products",
        max_cost_usd=500,
        deferrable=True,
    )
