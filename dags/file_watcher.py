"""A watcher starts the Dag when files arrive. No task waits for them, and no run is open while the inbox is empty.

The triggerer lists the inbox. It starts a run with the URIs of new files, and `new_uris` makes them the source: a retry
reads the same files, whatever has arrived meanwhile. The files may stay where they are.
"""

import os
from datetime import timedelta
from pathlib import Path

import pendulum
from airflow.sdk import DAG, Asset, AssetWatcher

from airflow_batch_llm import Shape
from airflow_batch_llm.operators.llm_transform import LLMTransformOperator
from airflow_batch_llm.triggers.new_files import NewFilesTrigger, new_uris

MODEL_ID = os.environ.get("BATCH_LLM_MODEL_ID", "anthropic:claude-haiku-4-5")
LLM_CONN_ID = os.environ.get("BATCH_LLM_CONN_ID")  # None: the default one of the model's provider
WAREHOUSE_CONN_ID = os.environ.get("BATCH_LLM_WAREHOUSE_CONN_ID", "warehouse")
INBOX = os.environ.get(
    "BATCH_LLM_WATCHED_INBOX", str(Path(os.environ.get("AIRFLOW_HOME", "~/airflow"), "watched").expanduser())
)

new_reviews = AssetWatcher(
    name="new_reviews", trigger=NewFilesTrigger(uri=f"{Path(INBOX).as_uri()}/*.jsonl", poll_interval=10)
)
reviews = Asset(name="review_files", uri=Path(INBOX).as_uri(), watchers=[new_reviews])

with DAG(
    "file_watcher",
    schedule=reviews,
    start_date=pendulum.datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=1)},
    doc_md=__doc__,
    tags=["batch-llm"],
):
    LLMTransformOperator(
        task_id="summarise",
        source_uri=new_uris,
        key="review_id",
        prompt="What does this customer praise, and what not? Answer in one sentence.\n\n{{ text }}",
        shape=Shape(output_column="summary", carry=["_llm_source_uri"]),
        model_id=MODEL_ID,
        llm_conn_id=LLM_CONN_ID,
        target="shop.watched_reviews",
        target_conn_id=WAREHOUSE_CONN_ID,
        deferrable=True,
    )
