"""The operator in a real Airflow, against the simulator and a DuckDB file."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
from airflow.sdk import DAG
from pydantic import BaseModel

from airflow_batch_llm.operators.llm_transform import LLMTransformOperator
from tests.edge.conftest import TICKETS, World
from tests.edge.dag_runs import states, xcom


class Label(BaseModel):
    topic: Literal["bug", "billing"]
    urgent: bool


def transform(**changes: Any) -> LLMTransformOperator:
    arguments: dict[str, Any] = {
        "task_id": "label",
        "source_table": "tickets",
        "source_conn_id": "warehouse",
        "key": "ticket_id",
        "prompt": "{{ subject }}\n\n{{ body }}",
        "output_type": Label,
        "model_id": "anthropic:claude-haiku-4-5",
        "target": "labels",
        "poll_interval": 0.1,
        **changes,
    }
    return LLMTransformOperator(**{name: value for name, value in arguments.items() if value is not ...})


@pytest.mark.parametrize("deferrable", [True, False])
def test_a_table_becomes_a_labelled_table(world: World, run: Callable[..., Any], deferrable: bool) -> None:
    with DAG(f"labels_{deferrable}".lower(), schedule=None) as dag:
        transform(deferrable=deferrable)

    done = run(dag)

    assert states(done) == {"label": "success"}
    rows = world.query("SELECT ticket_id, topic, urgent FROM labels ORDER BY ticket_id")
    assert [row[0] for row in rows] == [ticket[0] for ticket in TICKETS]
    assert {row[1] for row in rows} <= {"bug", "billing"}
    assert world.rows_charged() == len(TICKETS)
    assert xcom(done, "label")["outcomes"] == {"succeeded": len(TICKETS)}
