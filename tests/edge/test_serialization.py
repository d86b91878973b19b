"""A Dag with our operators, as the scheduler and the API server see it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import airflow.sdk
import pytest
from airflow.sdk import DAG

from airflow_batch_llm.decorators import llm_transform_task
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.operators.llm_batch import CollectLLMBatchOperator, SubmitLLMBatchOperator
from airflow_batch_llm.operators.llm_transform_group import llm_transform_group
from airflow_batch_llm.sensors.llm_batch import LLMBatchSensor
from airflow_batch_llm.sensors.pending_rows import PendingRowsSensor
from tests.edge.dag_runs import read_dags
from tests.edge.serialization import DagSerialization
from tests.edge.tasks import arguments, transform

EXAMPLES = Path(__file__).resolve().parents[2] / "dags"


def by_row(row: Mapping[str, object]) -> str:
    return f"{row['subject']}"


def dag_of_all() -> DAG:
    with DAG("all", schedule=None) as dag:
        PendingRowsSensor(task_id="pending", conn_id="warehouse", table="tickets")
        transform()
        transform(partial=True, task_id="mapped", target=...).expand(target=["a", "b"])
        sent = SubmitLLMBatchOperator(**arguments(task_id="submit"))
        LLMBatchSensor(task_id="wait", handle=sent.output)
        CollectLLMBatchOperator(task_id="collect", handle=sent.output)
        llm_transform_group("large", plan_partitions=2, **arguments(task_id=...))
        by_function = llm_transform_task(**arguments(task_id=..., prompt=..., target=...))(by_row)
        by_function(target="by_row")
        by_function.override(task_id="by_rows").expand(target=["a", "b"])
    return dag


def test_every_operator_goes_to_the_database_and_back() -> None:
    stored = DagSerialization.to_dict(dag_of_all())

    again: Any = DagSerialization.from_dict(json.loads(json.dumps(stored)))

    by_function = {"by_row", "by_rows"}
    group = {f"large.{name}" for name in ("open", "read", "plan", "submit", "drive", "collect", "finish")}
    assert set(again.task_ids) == {
        "pending",
        "label",
        "mapped",
        "submit",
        "wait",
        "collect",
        *group,
        *by_function,
    }
    assert again.get_task("large.finish").upstream_task_ids == {"large.plan", "large.collect"}
    assert again.get_task("large.collect").is_mapped
    assert again.get_task("collect").upstream_task_ids == {"submit"}
    assert again.get_task("label").source_table == "tickets"
    assert again.get_task("mapped").is_mapped
    assert again.get_task("by_row").target == "by_row"
    assert again.get_task("by_rows").is_mapped


def test_every_example_is_read_by_this_airflow_and_goes_to_its_database(airflow_database: None) -> None:
    dags = read_dags(EXAMPLES, EXAMPLES)

    for dag in dags.values():
        stored = json.loads(json.dumps(DagSerialization.to_dict(dag)))
        assert DagSerialization.from_dict(stored).task_ids
    has_partitions = hasattr(airflow.sdk, "CronPartitionTimetable")
    assert dags["mood_of_day"].task_ids == (["judge"] if has_partitions else ["needs_a_newer_airflow"])


def test_a_dag_shows_no_prompt() -> None:
    with DAG("one", schedule=None) as dag:
        transform(
            system_prompt="You triage tickets.", output_type=["a", "b"], examples=[("Charged twice", "a")]
        )
        llm_transform_group(
            "spread", plan_partitions=2, **arguments(task_id=..., system_prompt="You triage.")
        )

    stored = json.dumps(DagSerialization.to_dict(dag))

    assert "{{ body }}" not in stored
    assert "You triage" not in stored
    assert "Charged twice" not in stored


def test_an_example_that_does_not_fit_is_refused_while_the_dag_is_read() -> None:
    with pytest.raises(InputError, match=r"examples\[0\]: the answer is none of the labels"):
        transform(output_type=["a", "b"], examples=[("Charged twice", "c")])
    with pytest.raises(InputError, match="examples must be pairs"):
        transform(examples=["Charged twice"])


def test_the_link_to_the_batch_is_on_every_task_that_has_one() -> None:
    task = transform()
    link, page = task.operator_extra_links

    assert link.get_link(task, ti_key=None) == "/llm-batches/"  # a link never leads nowhere
    task.console_url = "https://platform.claude.com/workspaces/default/batches/b"
    assert link.get_link(task, ti_key=None) == task.console_url
    assert page.get_link(task, ti_key=None) == "/llm-batches/"
