"""A canary in each form of the operators: one task, a group of tasks, and three tasks."""

from collections.abc import Callable
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_batch_llm import Canary, Pace, Request
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.operators.llm_batch import CollectLLMBatchOperator, SubmitLLMBatchOperator
from airflow_batch_llm.operators.llm_transform import LLMTransformOperator
from airflow_batch_llm.operators.llm_transform_group import llm_transform_group
from tests.edge.conftest import TICKETS, World
from tests.edge.dag_runs import states, xcom
from tests.edge.tasks import arguments

Run = Callable[..., Any]

SIZE = 3
BROKEN = {"request": Request(max_tokens=1)}  # every answer is cut off
PACE = Pace(rows_per_batch=2, poll_interval=0.1)


def one_task(**changes: Any) -> str:
    LLMTransformOperator(**arguments(task_id="label", pace=PACE, deferrable=True, **changes))
    return "label"


def group(**changes: Any) -> str:
    llm_transform_group("labels", **arguments(task_id=..., pace=PACE, deferrable=True, **changes))
    return "labels.finish"


def three_tasks(**changes: Any) -> str:
    sent = SubmitLLMBatchOperator(**arguments(task_id="send", pace=PACE, **changes))
    CollectLLMBatchOperator(task_id="collect", handle=sent.output, deferrable=True)
    return "collect"


@pytest.mark.parametrize(
    ("form", "way"), [(one_task, "batch"), (group, "now"), (group, "batch"), (three_tasks, "batch")]
)
def test_the_rest_follows_a_good_canary_and_no_bad_one(
    world: World, run: Run, form: Callable[..., str], way: str
) -> None:
    canary = {"rows": SIZE, "way": way}
    with DAG(f"bad_{form.__name__}_{way}", schedule=None) as dag:
        last = form(canary=canary, **BROKEN)
    done = run(dag)
    assert [name for name, state in states(done).items() if state == "failed"] == [last]
    assert xcom(done, last, "report")["canary"]["not_sent"] == len(TICKETS) - SIZE
    assert world.rows_charged() == SIZE

    with DAG(f"good_{form.__name__}_{way}", schedule=None) as dag:
        last = form(canary=canary)
    done = run(dag)
    assert set(states(done).values()) == {"success"}
    assert xcom(done, last)["canary"]["ruling"] == "go"
    assert world.query("SELECT count(*) FROM labels") == [(len(TICKETS),)]
    assert world.rows_charged() == SIZE + len(TICKETS)


def test_a_canary_is_a_number_a_mapping_or_an_object() -> None:
    given = [5, {"rows": 5}, Canary(rows=5)]
    with DAG("forms", schedule=None):
        made = [LLMTransformOperator(**arguments(task_id=f"t{n}", canary=one)) for n, one in enumerate(given)]
        none = LLMTransformOperator(**arguments(task_id="none", canary=0))
        with pytest.raises(InputError, match="canary must be a Canary, got a bool"):
            LLMTransformOperator(**arguments(task_id="odd", canary=True))
    assert {task.canary for task in made} == {Canary(rows=5)}
    assert none.canary is None
