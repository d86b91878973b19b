"""The end-to-end tests' Dags: one stage, in one task, in three and as a group, over the table that the Dag run names."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pendulum
from airflow.sdk import DAG

from airflow_batch_llm.core.settings import Pace
from airflow_batch_llm.operators.llm_batch import CollectLLMBatchOperator, SubmitLLMBatchOperator
from airflow_batch_llm.operators.llm_transform import LLMTransformOperator
from airflow_batch_llm.operators.llm_transform_group import llm_transform_group
from airflow_batch_llm.sensors.llm_batch import LLMBatchSensor

PACE = Pace(poll_interval=0.5)
STAGE: dict[str, Any] = {
    "source_table": "{{ dag_run.conf['table'] }}",
    "source_conn_id": "warehouse",
    "key": "id",
    "prompt": "Which word is this? {{ text }}",
    "output_type": ["noun", "verb"],
    "model_id": "openai:gpt-5-mini",
    "target": "{{ dag_run.conf['table'] }}_labels",
    "pace": PACE,
}
RETRIES = {"retries": 4, "retry_delay": timedelta(seconds=1)}

with DAG("one_task", schedule=None, default_args=RETRIES):
    LLMTransformOperator(task_id="label", deferrable=True, **STAGE)

for twin in ("on_cron", "on_cron_too"):
    with DAG(
        twin,
        schedule="* * * * *",
        start_date=pendulum.datetime(2026, 1, 1),
        catchup=False,
        max_active_runs=1,
        default_args=RETRIES,
    ):
        ON_CRON = {**STAGE, "source_table": "on_cron", "target": "on_cron_labels"}
        LLMTransformOperator(task_id="label", deferrable=True, **ON_CRON)

with DAG("by_hand", schedule=None, default_args=RETRIES):
    send = SubmitLLMBatchOperator(task_id="send", **STAGE)
    wait = LLMBatchSensor(task_id="wait", handle=send.output, deferrable=True, poke_interval=0.5)
    collect = CollectLLMBatchOperator(task_id="collect", handle=send.output, deferrable=True)
    send >> wait >> collect

with DAG("as_group", schedule=None, default_args=RETRIES):
    llm_transform_group(
        "labels", max_workers=3, deferrable=True, **{**STAGE, "pace": replace(PACE, rows_per_batch=7)}
    )
