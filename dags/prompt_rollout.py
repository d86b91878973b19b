"""Roll out a better prompt: measure it on golden tickets, and ask again about all tickets only if it is good enough.

Every night, `nightly_topics` sorts the tickets that are new or have changed, by the prompt that is live.
`prompt_rollout` is started by hand. `support.golden_tickets` holds tickets whose topic people have decided. The candidate
and the prompt that is live are both asked about them. If the candidate has fewer than 80 % right, or surely fewer than the
live prompt, the first task fails, and the table stays as it is. The report of the comparison lies in the run folder, as a
page. Afterwards, set `LIVE` to the candidate, so that the nights go on with it.
"""

import os
from datetime import timedelta
from typing import Any, Literal

import pendulum
from airflow.sdk import DAG
from pydantic import BaseModel

from airflow_batch_llm.operators.llm_evaluate import LLMEvaluateOperator
from airflow_batch_llm.operators.llm_transform import LLMTransformOperator

MODEL_ID = os.environ.get("BATCH_LLM_MODEL_ID", "anthropic:claude-haiku-4-5")
LLM_CONN_ID = os.environ.get("BATCH_LLM_CONN_ID")  # None: the default one of the model's provider
WAREHOUSE_CONN_ID = os.environ.get("BATCH_LLM_WAREHOUSE_CONN_ID", "warehouse")

LIVE = "Subject: {{ subject or '(none)' }}\n\n{{ (body or '(no text)')[:20] }}"
CANDIDATE = "Subject: {{ subject or '(none)' }}\n\n{{ body or '(no text)' }}"


class TicketTopic(BaseModel):
    """The team that answers."""

    topic: Literal["account", "billing", "bug", "cancellation", "delivery", "wish", "other"]


STAGE: dict[str, Any] = {
    "source_conn_id": WAREHOUSE_CONN_ID,
    "key": "ticket_id",
    "system_prompt": "You sort support tickets by topic.",
    "prompt": CANDIDATE,
    "output_type": TicketTopic,
    "model_id": MODEL_ID,
    "llm_conn_id": LLM_CONN_ID,
    "deferrable": True,
}

LABEL = {"task_id": "label_tickets", "source_table": "support.tickets", "target": "support.ticket_topics"}

DAG_SETTINGS: dict[str, Any] = {
    "start_date": pendulum.datetime(2026, 1, 1),
    "max_active_runs": 1,
    "default_args": {"retries": 3, "retry_delay": timedelta(minutes=1)},
    "doc_md": __doc__,
    "tags": ["batch-llm"],
}

with DAG("nightly_topics", schedule="0 2 * * *", catchup=False, **DAG_SETTINGS):
    LLMTransformOperator(**LABEL, **STAGE | {"prompt": LIVE})

with DAG("prompt_rollout", schedule=None, **DAG_SETTINGS):
    evaluate = LLMEvaluateOperator(
        task_id="evaluate",
        source_table="support.golden_tickets",
        target="support.topic_evaluation",
        against={"prompt": LIVE},
        min_accuracy=0.8,
        max_regression=0.0,
        **STAGE,
    )
    evaluate >> LLMTransformOperator(only="outdated", **LABEL, **STAGE)
