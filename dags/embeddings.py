"""Keep an embedding beside each ticket, for search: half the price of real time, and only for what has changed."""

import os
from datetime import timedelta

import pendulum
from airflow.sdk import DAG

from airflow_batch_llm import Embedding, Request
from airflow_batch_llm.operators.llm_transform import LLMTransformOperator

MODEL_ID = os.environ.get("BATCH_LLM_EMBEDDING_MODEL_ID", "openai:text-embedding-3-small")
LLM_CONN_ID = os.environ.get("BATCH_LLM_EMBEDDING_CONN_ID")  # None: the default one of the model's provider
WAREHOUSE_CONN_ID = os.environ.get("BATCH_LLM_WAREHOUSE_CONN_ID", "warehouse")

with DAG(
    "embeddings",
    schedule="@daily",
    start_date=pendulum.datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=1)},
    doc_md=__doc__,
    tags=["batch-llm"],
):
    LLMTransformOperator(
        task_id="embed",
        source_sql="SELECT ticket_id, subject, body FROM support.tickets WHERE body IS NOT NULL",
        source_conn_id=WAREHOUSE_CONN_ID,
        key="ticket_id",
        prompt="{{ subject or '' }}\n{{ body }}",
        output_type=Embedding(dimensions=256),
        request=Request(endpoint="/v1/embeddings", max_tokens=None),
        model_id=MODEL_ID,
        llm_conn_id=LLM_CONN_ID,
        target="support.ticket_embeddings",
        deferrable=True,
    )
