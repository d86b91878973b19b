"""Begin at 22:00 in batches, and have the table complete at six in the morning.

An hour before the end, the run cancels the batches that still run and asks their open rows in real time. What a
cancelled batch has answered stays. Airflow's own deadline alert sends a mail if the run has not ended at six.
"""

import os
from datetime import timedelta

import pendulum
from airflow.sdk import DAG

from airflow_batch_llm import Escalation, Pace, Route, Shape
from airflow_batch_llm.operators.llm_transform import LLMTransformOperator

try:
    from airflow.sdk import AsyncCallback, DeadlineAlert, DeadlineReference
except ImportError:  # Airflow 3.1
    from airflow.sdk.definitions.deadline import AsyncCallback, DeadlineAlert, DeadlineReference

MODEL_ID = os.environ.get("BATCH_LLM_MODEL_ID", "anthropic:claude-haiku-4-5")
LLM_CONN_ID = os.environ.get("BATCH_LLM_CONN_ID")  # None: the default one of the model's provider
WAREHOUSE_CONN_ID = os.environ.get("BATCH_LLM_WAREHOUSE_CONN_ID", "warehouse")
NIGHT = timedelta(hours=8)
IN_REAL_TIME = timedelta(seconds=float(os.environ.get("BATCH_LLM_REAL_TIME_SECONDS", "3600")))

mail = AsyncCallback(
    "airflow.providers.smtp.notifications.smtp.SmtpNotifier",
    kwargs={
        "from_email": "airflow@example.com",
        "to": "on-call@example.com",
        "subject": "{{ dag_run.dag_id }} is not complete at six",
        "html_content": "The run {{ dag_run.dag_run_id }} still runs, or has failed.",
    },
)

with DAG(
    "complete_by_six",
    schedule="0 22 * * *",
    start_date=pendulum.datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=1)},
    deadline=DeadlineAlert(reference=DeadlineReference.DAGRUN_LOGICAL_DATE, interval=NIGHT, callback=mail),
    doc_md=__doc__,
    tags=["batch-llm"],
):
    LLMTransformOperator(
        task_id="rate_tickets",
        source_sql="SELECT ticket_id, subject, body FROM support.tickets WHERE body IS NOT NULL",
        source_conn_id=WAREHOUSE_CONN_ID,
        key="ticket_id",
        prompt="How severe is this problem for the customer?\n\n{{ subject or '' }}\n{{ body }}",
        output_type=["none", "low", "high"],
        shape=Shape(output_column="severity"),
        model_id=MODEL_ID,
        llm_conn_id=LLM_CONN_ID,
        target="support.severities",
        pace=Pace(timeout=NIGHT),
        routes={"urgent": Route(way="now")},
        escalate=[Escalation(to="urgent", left=IN_REAL_TIME)],
        max_cost_usd=25,
        deferrable=True,
    )
