"""Turn the e-mails that customers order by into typed columns.

The Pydantic model says what is looked for. Its nested parts become columns by their path, and an answer that does not
fit is no answer: it goes to `shop.order_lines__failures`, and is asked again before that.
"""

import os
from datetime import timedelta

import pendulum
from airflow.sdk import DAG
from pydantic import BaseModel, Field

from airflow_batch_llm import Shape
from airflow_batch_llm.operators.llm_transform import LLMTransformOperator

MODEL_ID = os.environ.get("BATCH_LLM_MODEL_ID", "anthropic:claude-haiku-4-5")
LLM_CONN_ID = os.environ.get("BATCH_LLM_CONN_ID")  # None: the default one of the model's provider
WAREHOUSE_CONN_ID = os.environ.get("BATCH_LLM_WAREHOUSE_CONN_ID", "warehouse")


class Buyer(BaseModel):
    """Who orders."""

    name: str
    city: str | None = Field(description="null where the e-mail names none")


class Order(BaseModel):
    """What an e-mail orders."""

    buyer: Buyer
    article: str = Field(description="the article's number, such as A-1021")
    quantity: int = Field(ge=1)
    is_complaint: bool


with DAG(
    "extract_orders",
    schedule="@hourly",
    start_date=pendulum.datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=1)},
    doc_md=__doc__,
    tags=["batch-llm"],
):
    LLMTransformOperator(
        task_id="extract",
        source_table="shop.orders",
        source_conn_id=WAREHOUSE_CONN_ID,
        key="order_id",
        prompt="Extract the order from this e-mail:\n\n{{ email }}",
        output_type=Order,
        shape=Shape(
            columns={
                "buyer_name": "buyer.name",
                "buyer_city": "buyer.city",
                "article": "article",
                "quantity": "quantity",
                "is_complaint": "is_complaint",
            }
        ),
        model_id=MODEL_ID,
        llm_conn_id=LLM_CONN_ID,
        target="shop.order_lines",
        deferrable=True,
    )
