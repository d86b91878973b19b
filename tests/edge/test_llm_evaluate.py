"""Golden tickets are asked in a real task, and a gate that fails ends it for good."""

from collections.abc import Callable
from typing import Any

import pytest
from airflow.sdk import DAG
from fastapi.testclient import TestClient

from airflow_batch_llm.errors import InputError
from airflow_batch_llm.operators.llm_evaluate import LLMEvaluateOperator
from airflow_batch_llm.operators.llm_transform import LLMTransformOperator
from airflow_batch_llm.simulator.responder import truth
from tests.edge.conftest import World
from tests.edge.dag_runs import failures, states, xcom
from tests.edge.tasks import Label, arguments
from tests.edge.test_page import PAGE, Reader, api

Run = Callable[..., Any]

__all__ = ["api"]

ROWS = 60
WEAK, STRONG = "claude-haiku-4-5", "claude-sonnet-4-6"


@pytest.fixture
def golden(world: World) -> World:
    """Sixty golden tickets with the answers of a model without errors."""
    rows = []
    for number in range(ROWS):
        subject = f"Golden {number}"
        right = truth(subject, Label.model_json_schema())
        rows.append(f"({number}, '{subject}', 'text', '{right['topic']}', {right['urgent']})")
    world.execute(
        "CREATE TABLE golden (ticket_id INTEGER, subject VARCHAR, body VARCHAR, expected_topic VARCHAR, is_urgent BOOLEAN)"
    )
    world.execute(f"INSERT INTO golden VALUES {', '.join(rows)}")
    world.simulator.turn(wrong_share={WEAK: 0.4, STRONG: 0.05}, truth_find="Golden [0-9]+")
    return world


def evaluate(**changes: Any) -> LLMEvaluateOperator:
    return LLMEvaluateOperator(
        **arguments(
            **{
                "task_id": "evaluate",
                "source_table": "golden",
                "target": "evaluated",
                "expected": {"topic": "expected_topic", "urgent": "is_urgent"},
                **changes,
            }
        )
    )


def test_the_rollout_waits_for_a_good_evaluation(golden: World, run: Run) -> None:
    with DAG("rollout", schedule=None) as dag:
        evaluate(min_accuracy=0.8, model_id=f"anthropic:{STRONG}") >> LLMTransformOperator(**arguments())

    done = run(dag)

    assert set(states(done).values()) == {"success"}
    told = xcom(done, "evaluate")
    for name, expected in (("topic", "expected_topic"), ("urgent", "is_urgent")):
        right = golden.query(
            f"SELECT count(*) FROM golden JOIN evaluated USING (ticket_id) WHERE {name} = {expected}"
        )
        assert right == [(told["columns"][name]["right"],)]
        assert told["columns"][name]["rows"] == ROWS
        recorded = (
            "SELECT right_rows, golden_rows, min_accuracy, passed FROM evaluated__results WHERE column_name"
        )
        assert golden.query(f"{recorded} = '{name}'") == [(*right[0], ROWS, "passed", True)]
    assert told["passed"]
    assert golden.rows_charged() == ROWS + 12


def test_a_gate_that_fails_ends_the_task_without_another_try(golden: World, run: Run) -> None:
    with DAG("blocked", schedule=None) as dag:
        blocked = evaluate(
            against={"model_id": f"anthropic:{STRONG}"}, max_regression=0.05, retries=3, deferrable=True
        )
        blocked >> LLMTransformOperator(**arguments())

    with failures() as errors:
        done = run(dag)

    assert states(done) == {"evaluate": "failed", "label": "upstream_failed"}
    assert [type(error).__name__ for error in errors] == ["AirflowFailException"]
    assert "EvaluationFailed: topic: " in str(errors[0])
    assert "worse than the baseline" in str(errors[0])
    told = xcom(done, "evaluate", "evaluation")
    assert not told["passed"]
    assert golden.rows_charged() == 2 * ROWS  # both candidates, and each row once
    assert golden.query("SELECT count(*) FROM evaluated__against") == [(ROWS,)]


def test_the_page_of_an_evaluation_is_shown_to_those_who_may_read_its_dag(
    golden: World, run: Run, api: TestClient
) -> None:
    with DAG("page_a", schedule=None) as dag:
        evaluate(min_accuracy=0.1)
    run(dag)
    anna = Reader(api, "anna")
    (link,) = anna.links()
    view = link.replace("/run?", "/evaluation?")

    assert view.replace("&", "&amp;") in anna.get(link).text
    shown = anna.get(view)
    assert "True accuracy between" in shown.text
    assert "script" not in shown.headers["content-security-policy"]
    refused = {Reader(api, "bert").get(view).status_code, api.get(f"{PAGE}{view}").status_code}
    assert refused == {401, 403}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_regression": 0.02}, "needs something to compare with"),
        ({"min_accuracy": 95}, "min_accuracy must be 1 or less"),
        ({"against": {"modelid": "x"}}, "modelid is unknown; is it model_id?"),
        ({"against": {"prompt": "x"}, "baseline": "labels"}, "Both baseline and against are given"),
        ({"expected": {"topic": {"column": "x", "metric": "fuzzy"}}}, "metric must be one of"),
    ],
)
def test_mistakes_are_told_while_the_dag_is_read(changes: dict[str, Any], words: str) -> None:
    with DAG("mistaken", schedule=None), pytest.raises(InputError, match=words):
        evaluate(**changes)
