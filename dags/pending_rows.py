"""Run on volume instead of on time: as soon as 500 tickets wait, or one has waited for a day.

The fuller a batch, the fewer of them wait at the provider; the second bound keeps a quiet week's tickets from waiting
for ever.
"""

import os
from datetime import timedelta

import pendulum
from airflow.sdk import DAG

from airflow_batch_llm import Shape
from airflow_batch_llm.operators.llm_transform import LLMTransformOperator
from airflow_batch_llm.sensors.pending_rows import PendingRowsSensor

MODEL_ID = os.environ.get("BATCH_LLM_MODEL_ID", "anthropic:claude-haiku-4-5")
LLM_CONN_ID = os.environ.get("BATCH_LLM_CONN_ID")  # None: the default one of the model's provider
WAREHOUSE_CONN_ID = os.environ.get("BATCH_LLM_WAREHOUSE_CONN_ID", "warehouse")

UNANSWERED = """
    SELECT t.ticket_id, t.day, t.subject, t.body
    FROM support.tickets t
    WHERE NOT EXISTS (SELECT 1 FROM support.summaries s WHERE s.ticket_id = t.ticket_id)
"""

with DAG(
    "pending_rows",
    schedule="@continuous",
    start_date=pendulum.datetime(2026, 1, 1),
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=1)},
    doc_md=__doc__,
    tags=["batch-llm"],
):
    enough = PendingRowsSensor(
        task_id="enough",
        conn_id=WAREHOUSE_CONN_ID,
        sql=UNANSWERED,
        min_rows=500,
        since="day",
        max_age=timedelta(days=1),
        poke_interval=60,
        deferrable=True,
    )
    summarize = LLMTransformOperator(
        task_id="summarize",
        source_sql=UNANSWERED,
        source_conn_id=WAREHOUSE_CONN_ID,
        key="ticket_id",
        prompt="Summarize in ten words:\n\n{{ subject or '' }}\n{{ body or '' }}",
        shape=Shape(
            output_column="summary",
            allow_source_as_target=True,  # the source reads the target only to leave out what it has
        ),
        model_id=MODEL_ID,
        llm_conn_id=LLM_CONN_ID,
        target="support.summaries",
        deferrable=True,
    )
    enough >> summarize
