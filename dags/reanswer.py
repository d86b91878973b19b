"""After a better prompt: ask again about the tickets that an older one has answered.

The nightly Dag does not: an improved prompt serves new and changed tickets, and leaves old answers as they are. This
one is started by hand. Its first task says what it would cost and sends nothing; the second has a budget.
"""

import os
from datetime import timedelta
from typing import Literal

import pendulum
from airflow.sdk import DAG, Param
from pydantic import BaseModel, Field

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
    "reanswer",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1),
    max_active_runs=1,
    params={"max_cost_usd": Param(10.0, type="number", minimum=0)},
    default_args={
        "retries": 3,
        "retry_delay": timedelta(minutes=1),
        "source_sql": "SELECT ticket_id, day, subject, body FROM support.tickets",
        "source_conn_id": WAREHOUSE_CONN_ID,
        "key": "ticket_id",
        "system_prompt": "You triage support tickets. Threats to cancel are urgent, politeness is not.",
        "prompt": "Subject: {{ subject or '(none)' }}\n\n{{ body or '(no text)' }}",
        "output_type": TicketLabel,
        "only": "outdated",
        "model_id": MODEL_ID,
        "llm_conn_id": LLM_CONN_ID,
        "target": "support.ticket_labels",
        "shape": {"carry": ["day"]},
        "max_cost_usd": "{{ params.max_cost_usd }}",
        "deferrable": True,
    },
    doc_md=__doc__,
    tags=["batch-llm"],
):
    estimate = LLMTransformOperator(task_id="estimate", plan_only=True)
    estimate >> LLMTransformOperator(task_id="answer_again")
