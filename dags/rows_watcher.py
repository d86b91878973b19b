"""A watcher starts the Dag when 500 tickets wait, or one has waited for a day.

The triggerer counts them. The query leaves out what the target has, so a run that finds its rows answered sends nothing.
"""

import os
from datetime import timedelta

import pendulum
from airflow.sdk import DAG, Asset, AssetWatcher

from airflow_batch_llm import Shape
from airflow_batch_llm.operators.llm_transform import LLMTransformOperator
from airflow_batch_llm.triggers.pending_rows import EnoughRowsTrigger

MODEL_ID = os.environ.get("BATCH_LLM_MODEL_ID", "anthropic:claude-haiku-4-5")
LLM_CONN_ID = os.environ.get("BATCH_LLM_CONN_ID")  # None: the default one of the model's provider
WAREHOUSE_CONN_ID = os.environ.get("BATCH_LLM_WAREHOUSE_CONN_ID", "warehouse")

UNANSWERED = """
    SELECT t.ticket_id, t.day, t.subject, t.body
    FROM support.tickets t
    WHERE NOT EXISTS (SELECT 1 FROM support.summaries s WHERE s.ticket_id = t.ticket_id)
"""

waiting = EnoughRowsTrigger(
    conn_id=WAREHOUSE_CONN_ID, sql=UNANSWERED, min_rows=500, since="day", max_age=timedelta(days=1)
)
tickets = Asset("waiting_tickets", watchers=[AssetWatcher(name="enough_tickets", trigger=waiting)])

with DAG(
    "rows_watcher",
    schedule=tickets,
    start_date=pendulum.datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=1)},
    doc_md=__doc__,
    tags=["batch-llm"],
):
    LLMTransformOperator(
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
