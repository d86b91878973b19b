"""The same stage by hand, in three tasks: send, wait, collect.

The handle that the first task returns joins them: it is small, and the other two need neither prompt nor source. So
another Dag, another day, or another team can do the rest.
"""

import os
from datetime import timedelta

import pendulum
from airflow.sdk import DAG

from airflow_batch_llm import Pace, Shape
from airflow_batch_llm.operators.llm_batch import CollectLLMBatchOperator, SubmitLLMBatchOperator
from airflow_batch_llm.sensors.llm_batch import LLMBatchSensor

MODEL_ID = os.environ.get("BATCH_LLM_MODEL_ID", "anthropic:claude-haiku-4-5")
LLM_CONN_ID = os.environ.get("BATCH_LLM_CONN_ID")  # None: the default one of the model's provider
WAREHOUSE_CONN_ID = os.environ.get("BATCH_LLM_WAREHOUSE_CONN_ID", "warehouse")

with DAG(
    "three_tasks",
    schedule="@daily",
    start_date=pendulum.datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=1)},
    doc_md=__doc__,
    tags=["batch-llm"],
):
    send = SubmitLLMBatchOperator(
        task_id="send",
        source_table="support.tickets",
        source_conn_id=WAREHOUSE_CONN_ID,
        key="ticket_id",
        prompt="How does this customer feel?\n\n{{ body or subject }}",
        output_type=["angry", "neutral", "happy"],
        shape=Shape(output_column="mood"),
        pace=Pace(rows_per_batch=1_000),
        model_id=MODEL_ID,
        llm_conn_id=LLM_CONN_ID,
        target="support.moods",
    )
    wait = LLMBatchSensor(task_id="wait", handle=send.output, deferrable=True, poke_interval=30)
    collect = CollectLLMBatchOperator(task_id="collect", handle=send.output, deferrable=True)

    send >> wait >> collect
