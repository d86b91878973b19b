"""Ask, look at the answer, and ask on: the follow-up question that one batch cannot ask itself.

The first stage finds out what is missing in a ticket. The second drafts a question to the customer, only where
something is missing: the condition between them is the WHERE of its query.
"""

import os
from datetime import timedelta
from typing import Any

import pendulum
from airflow.sdk import DAG, task
from pydantic import BaseModel

from airflow_batch_llm import Shape
from airflow_batch_llm.operators.llm_transform import LLMTransformOperator

MODEL_ID = os.environ.get("BATCH_LLM_MODEL_ID", "anthropic:claude-haiku-4-5")
LLM_CONN_ID = os.environ.get("BATCH_LLM_CONN_ID")  # None: the default one of the model's provider
WAREHOUSE_CONN_ID = os.environ.get("BATCH_LLM_WAREHOUSE_CONN_ID", "warehouse")


class Gap(BaseModel):
    """What an agent would have to ask before being able to help."""

    is_complete: bool
    missing: str | None


@task.short_circuit
def something_new(report: dict[str, Any]) -> bool:
    """Whether any ticket was looked at; otherwise there is nothing to draft."""
    return bool(report["requests"])


with DAG(
    "two_stages",
    schedule="@daily",
    start_date=pendulum.datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={
        "retries": 3,
        "retry_delay": timedelta(minutes=1),
        "model_id": MODEL_ID,
        "llm_conn_id": LLM_CONN_ID,
        "source_conn_id": WAREHOUSE_CONN_ID,
        "key": "ticket_id",
        "deferrable": True,
    },
    doc_md=__doc__,
    tags=["batch-llm"],
):
    find_gaps = LLMTransformOperator(
        task_id="find_gaps",
        source_sql="SELECT * FROM support.tickets WHERE body IS NOT NULL",
        prompt="Does this ticket say all that is needed to help?\n\n{{ body }}",
        output_type=Gap,
        target="support.gaps",
    )
    draft_questions = LLMTransformOperator(
        task_id="draft_questions",
        source_sql="""
            SELECT ticket_id, t.body, g.missing
            FROM support.tickets t JOIN support.gaps g USING (ticket_id)
            WHERE NOT g.is_complete AND g.missing IS NOT NULL
        """,
        prompt="Ask the customer, in one friendly sentence, for: {{ missing }}\n\nThe ticket:\n{{ body }}",
        shape=Shape(output_column="question"),
        target="support.questions",
    )
    something_new(find_gaps.output) >> draft_questions
