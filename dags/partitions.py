"""One partition of a table at a time: a day's run asks about that day's rows, and a backfill about each day once.

The partition key is a parameter of the query. It is never written into the SQL, so a key that a user types when starting
a run can bound the query and do nothing else. Needs Airflow 3.2; before that the Dag says so when it is run.
"""

import os
from datetime import timedelta

import pendulum
from airflow.sdk import DAG, Asset, task

from airflow_batch_llm import Shape
from airflow_batch_llm.operators.llm_transform import LLMTransformOperator

try:
    from airflow.sdk import CronPartitionTimetable, PartitionedAssetTimetable
except ImportError:  # Airflow 3.1
    CronPartitionTimetable = None

MODEL_ID = os.environ.get("BATCH_LLM_MODEL_ID", "anthropic:claude-haiku-4-5")
LLM_CONN_ID = os.environ.get("BATCH_LLM_CONN_ID")  # None: the default one of the model's provider
WAREHOUSE_CONN_ID = os.environ.get("BATCH_LLM_WAREHOUSE_CONN_ID", "warehouse")

OF_DAG = {
    "start_date": pendulum.datetime(2026, 1, 1),
    "catchup": False,
    "max_active_runs": 1,
    "default_args": {
        "retries": 3,
        "retry_delay": timedelta(minutes=1),
        "source_conn_id": WAREHOUSE_CONN_ID,
        "source_parameters": {"day": "{{ dag_run.partition_key }}"},  # $day in DuckDB, %(day)s in PostgreSQL
        "key": "ticket_id",
        "model_id": MODEL_ID,
        "llm_conn_id": LLM_CONN_ID,
        "deferrable": True,
    },
    "doc_md": __doc__,
    "tags": ["batch-llm"],
}
moods = Asset("ticket_moods")

if CronPartitionTimetable is None:
    with DAG("mood_of_day", schedule=None, **OF_DAG):

        @task(retries=0)
        def needs_a_newer_airflow() -> None:
            """Say what is missing."""
            raise RuntimeError(
                "Asset partitions need Airflow 3.2. Use data intervals: see dags/nightly_labels.py."
            )

        needs_a_newer_airflow()
else:
    nightly = CronPartitionTimetable("0 2 * * *", timezone="UTC", run_offset=-1, key_format="%Y-%m-%d")
    with DAG("mood_of_day", schedule=nightly, **OF_DAG):
        LLMTransformOperator(
            task_id="judge",
            source_sql="SELECT ticket_id, day, subject, body FROM support.tickets WHERE day = CAST($day AS DATE)",
            prompt="How does this customer feel?\n\n{{ body or subject }}",
            output_type=["angry", "neutral", "happy"],
            shape=Shape(output_column="mood", carry=["day"]),
            target="support.day_moods",
            outlets=[moods],
        )

    with DAG("apologies_of_day", schedule=PartitionedAssetTimetable(assets=moods), **OF_DAG):
        LLMTransformOperator(
            task_id="apologise",
            source_sql="""
                SELECT ticket_id, body FROM support.tickets JOIN support.day_moods m USING (ticket_id)
                WHERE m.day = CAST($day AS DATE) AND m.mood = 'angry' AND body IS NOT NULL
            """,
            prompt="Apologise to this customer in one sentence.\n\n{{ body }}",
            shape=Shape(output_column="apology"),
            target="support.day_apologies",
        )
