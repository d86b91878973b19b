"""When files arrive, ask about their rows, and put the files away.

A sensor waits for the files without a worker. The task after it names them, so that the same files are read again if a
later task is retried, whatever has arrived meanwhile. Nothing here leans on the Dag run's date.

The sensor asks for the connection `fs_default`, which a new Airflow may not have. Create it once:
`airflow connections add fs_default --conn-type fs`
"""

import os
from datetime import timedelta
from pathlib import Path

import pendulum
from airflow.providers.standard.sensors.filesystem import FileSensor
from airflow.sdk import DAG, task

from airflow_batch_llm import Shape
from airflow_batch_llm.operators.llm_transform import LLMTransformOperator

MODEL_ID = os.environ.get("BATCH_LLM_MODEL_ID", "anthropic:claude-haiku-4-5")
LLM_CONN_ID = os.environ.get("BATCH_LLM_CONN_ID")  # None: the default one of the model's provider
WAREHOUSE_CONN_ID = os.environ.get("BATCH_LLM_WAREHOUSE_CONN_ID", "warehouse")
INBOX = os.environ.get(
    "BATCH_LLM_INBOX", str(Path(os.environ.get("AIRFLOW_HOME", "~/airflow"), "inbox").expanduser())
)


@task
def name_files() -> list[str]:
    """The files that are there now."""
    return sorted(path.as_uri() for path in Path(INBOX).glob("*.jsonl"))


@task
def put_away(uris: list[str]) -> None:
    """Move what has been answered out of the inbox."""
    done = Path(INBOX, "done")
    done.mkdir(exist_ok=True)
    for uri in uris:
        path = Path(INBOX, Path(uri).name)
        if path.exists():  # an earlier try may have moved it
            path.rename(done / path.name)


with DAG(
    "file_arrival",
    schedule="@continuous",
    start_date=pendulum.datetime(2026, 1, 1),
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=1)},
    doc_md=__doc__,
    tags=["batch-llm"],
):
    arrived = FileSensor(task_id="arrived", filepath=f"{INBOX}/*.jsonl", deferrable=True, poke_interval=10)
    files = name_files()
    ask = LLMTransformOperator(
        task_id="ask",
        source_uri=files,
        key="review_id",
        prompt="What does this customer praise, and what not? Answer in one sentence.\n\n{{ text }}",
        shape=Shape(output_column="summary", carry=["_llm_source_uri"]),
        model_id=MODEL_ID,
        llm_conn_id=LLM_CONN_ID,
        target="shop.review_summaries",
        target_conn_id=WAREHOUSE_CONN_ID,
        deferrable=True,
    )
    arrived >> files >> ask >> put_away(files)
