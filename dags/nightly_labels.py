"""Every night, label the support tickets that are new or have changed.

The query looks three days back, so that a night that failed is made up for by the next. What has been labelled is not
sent again, and not paid again: the target table remembers what each label was made from.
"""

import os
from datetime import timedelta
from typing import Literal

import pendulum
from airflow.sdk import DAG
from pydantic import BaseModel, Field

from airflow_batch_llm import Shape
from airflow_batch_llm.operators.llm_transform import LLMTransformOperator

MODEL_ID = os.environ.get("BATCH_LLM_MODEL_ID", "anthropic:claude-haiku-4-5")
LLM_CONN_ID = os.environ.get("BATCH_LLM_CONN_ID")  # None: the default one of the model's provider
WAREHOUSE_CONN_ID = os.environ.get("BATCH_LLM_WAREHOUSE_CONN_ID", "warehouse")


class TicketLabel(BaseModel):
    """What the support team sorts its inbox by."""

    topic: Literal["account", "billing", "bug", "cancellation", "delivery", "wish", "other"]
    urgency: Literal["low", "normal", "high"] = Field(description="high: the customer cannot work")
    language: Literal["de", "en", "es", "fr", "ja", "other"]


with DAG(
    "nightly_labels",
    schedule="0 2 * * *",
    start_date=pendulum.datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=1)},
    doc_md=__doc__,
    tags=["batch-llm"],
):
    LLMTransformOperator(
        task_id="label_tickets",
        source_sql="""
            SELECT ticket_id, day, subject, body
            FROM support.tickets
            WHERE day BETWEEN DATE '{{ macros.ds_add(ds, -3) }}' AND DATE '{{ ds }}'
        """,
        source_conn_id=WAREHOUSE_CONN_ID,
        key="ticket_id",
        system_prompt="You triage support tickets. Judge by the text alone.",
        prompt="Subject: {{ subject or '(none)' }}\n\n{{ body or '(no text)' }}",
        output_type=TicketLabel,
        model_id=MODEL_ID,
        llm_conn_id=LLM_CONN_ID,
        target="support.ticket_labels",
        shape=Shape(carry=["day"]),
        max_cost_usd=25,
        deferrable=True,
    )
