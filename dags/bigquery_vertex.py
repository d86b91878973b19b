"""From BigQuery to BigQuery through Vertex AI, with one Google connection for all of it.

The connection's extra names the project, and `staging`, a folder in Cloud Storage or a dataset (`bq://project.dataset`)
that the requests pass through.
"""

import os
from datetime import timedelta
from typing import Literal

import pendulum
from airflow.sdk import DAG
from pydantic import BaseModel

from airflow_batch_llm import Shape
from airflow_batch_llm.operators.llm_transform import LLMTransformOperator

MODEL_ID = os.environ.get("BATCH_LLM_VERTEX_MODEL_ID", "vertex:gemini-2.5-flash")
GOOGLE_CONN_ID = os.environ.get("BATCH_LLM_GOOGLE_CONN_ID", "google_cloud_default")


class Review(BaseModel):
    """What a review says."""

    sentiment: Literal["positive", "neutral", "negative"]
    about: list[str]


with DAG(
    "bigquery_vertex",
    schedule="0 3 * * *",
    start_date=pendulum.datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=1)},
    doc_md=__doc__,
    tags=["batch-llm"],
):
    LLMTransformOperator(
        task_id="read_reviews",
        source_sql="SELECT review_id, day, text FROM shop.reviews WHERE text IS NOT NULL",
        source_conn_id=GOOGLE_CONN_ID,
        key="review_id",
        prompt="{{ text }}",
        system_prompt="Say how the customer feels, and about what.",
        output_type=Review,
        model_id=MODEL_ID,
        llm_conn_id=GOOGLE_CONN_ID,
        target="shop.review_sentiments",
        shape=Shape(carry=["day"], partition_by="day", cluster_by=["review_id"]),
        deferrable=True,
    )
