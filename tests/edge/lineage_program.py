"""Run Dags in a process of their own, whose OpenLineage provider emits events: `python -m tests.edge.lineage_program`.

The provider reads its settings when Airflow is imported, so a test cannot switch it on in its own process.
"""

from typing import Any

from airflow.sdk import DAG, Asset

from airflow_batch_llm.operators.llm_batch import CollectLLMBatchOperator, SubmitLLMBatchOperator
from airflow_batch_llm.sensors.llm_batch import LLMBatchSensor
from airflow_batch_llm.sensors.pending_rows import PendingRowsSensor
from tests.edge.dag_runs import run_dag, states
from tests.edge.tasks import arguments, transform

STAGE: dict[str, Any] = {"output_type": str, "model_id": "openai:gpt-5-mini"}


def whole() -> None:
    transform(**STAGE, target="whole", outlets=[Asset("x://labels")])


def in_steps() -> None:
    pending = PendingRowsSensor(task_id="pending", conn_id="warehouse", table="tickets", poke_interval=0.1)
    sent = SubmitLLMBatchOperator(**arguments(**STAGE, task_id="send"))
    wait = LLMBatchSensor(task_id="wait", handle=sent.output, poke_interval=0.1)
    pending >> sent
    wait >> CollectLLMBatchOperator(task_id="collect", handle=sent.output)


def refused() -> None:
    transform(target="refused")


def prompt_that_fails() -> None:
    transform(**STAGE, target="unprompted", prompt="{{ body.no_such_part.at_all }}")


if __name__ == "__main__":
    for make in (in_steps, refused, prompt_that_fails, whole):
        with DAG(make.__name__, schedule=None) as dag:
            make()
        print(states(run_dag(dag)))
