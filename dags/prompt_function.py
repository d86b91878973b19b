"""A Python function of the row as the prompt, once for each product area.

The function leaves out what a ticket does not say, which would be long as a template. The task is mapped: one run for each
area, with a table of its own.
"""

import os
from collections.abc import Mapping
from datetime import timedelta

import pendulum
from airflow.sdk import DAG, task

from airflow_batch_llm import Shape

MODEL_ID = os.environ.get("BATCH_LLM_MODEL_ID", "anthropic:claude-haiku-4-5")
LLM_CONN_ID = os.environ.get("BATCH_LLM_CONN_ID")  # None: the default one of the model's provider
WAREHOUSE_CONN_ID = os.environ.get("BATCH_LLM_WAREHOUSE_CONN_ID", "warehouse")

AREAS = {"app": "crash|error|slow", "money": "invoice|charge|refund"}

with DAG(
    "prompt_function",
    schedule="@daily",
    start_date=pendulum.datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=1)},
    doc_md=__doc__,
    tags=["batch-llm"],
):

    @task.llm_transform(
        source_conn_id=WAREHOUSE_CONN_ID,
        key="ticket_id",
        output_type=["praise", "question", "complaint"],
        shape=Shape(output_column="tone"),
        model_id=MODEL_ID,
        llm_conn_id=LLM_CONN_ID,
        deferrable=True,
    )
    def judge_tone(row: Mapping[str, object]) -> str:
        """Say what a ticket is: praise, a question or a complaint."""
        said = [f"{name}: {row[name]}" for name in ("subject", "body") if row[name]]
        return "\n".join(["Is this ticket praise, a question or a complaint?", *said])

    judge_tone.expand_kwargs(
        [
            {
                "source_sql": f"SELECT * FROM support.tickets WHERE regexp_matches(lower(body), '{words}')",
                "target": f"support.tones_{area}",
            }
            for area, words in AREAS.items()
        ]
    )
