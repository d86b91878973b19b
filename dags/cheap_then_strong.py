"""Ask a cheap model first, and ask a strong model again only where the cheap one fails or is not sure.

The answer has a confidence. A row below 0.7 goes to the strong model, and so does a row whose answer is still invalid
after its attempts. The strong model has a budget of its own. The rows that it does not reach keep their first answer.
"""

import os
from datetime import timedelta
from typing import Literal

import pendulum
from airflow.sdk import DAG
from pydantic import BaseModel, Field

from airflow_batch_llm import Escalation, Guards, Route
from airflow_batch_llm.operators.llm_transform import LLMTransformOperator

CHEAP = os.environ.get("BATCH_LLM_MODEL_ID", "anthropic:claude-haiku-4-5")
STRONG = os.environ.get("BATCH_LLM_STRONG_MODEL_ID", "anthropic:claude-sonnet-4-6")
LLM_CONN_ID = os.environ.get("BATCH_LLM_CONN_ID")  # None: the default one of the model's provider
WAREHOUSE_CONN_ID = os.environ.get("BATCH_LLM_WAREHOUSE_CONN_ID", "warehouse")


class Routing(BaseModel):
    """The team that a ticket goes to."""

    team: Literal["accounts", "billing", "engineering", "logistics", "other"]
    confidence: float = Field(ge=0, le=1, description="the probability that the team is right")


with DAG(
    "cheap_then_strong",
    schedule="0 2 * * *",
    start_date=pendulum.datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=1)},
    doc_md=__doc__,
    tags=["batch-llm"],
):
    LLMTransformOperator(
        task_id="route_tickets",
        source_sql="SELECT ticket_id, subject, body FROM support.tickets WHERE body IS NOT NULL",
        source_conn_id=WAREHOUSE_CONN_ID,
        key="ticket_id",
        system_prompt="You route support tickets. Judge by the text alone.",
        prompt="Subject: {{ subject or '(none)' }}\n\n{{ body }}",
        output_type=Routing,
        model_id=CHEAP,
        llm_conn_id=LLM_CONN_ID,
        target="support.ticket_teams",
        routes={"strong": Route(model_id=STRONG, max_cost_usd=10)},
        escalate=[
            Escalation(to="strong", on={"invalid"}),
            Escalation(to="strong", below={"confidence": 0.7}),
        ],
        guards=Guards(max_attempts=2),
        max_cost_usd=25,
        deferrable=True,
    )
