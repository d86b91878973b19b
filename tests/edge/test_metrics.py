"""The metrics of real runs, as Airflow's own StatsD client sends them."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_batch_llm.core.settings import Guards, Request, Route
from airflow_batch_llm.hooks.monitoring import gauge_open_since, metric_tags
from airflow_batch_llm.operators.llm_evaluate import LLMEvaluateOperator
from tests.edge.conftest import TICKETS, World
from tests.edge.dag_runs import xcom
from tests.edge.statsd import Receiver, Sample, receiving
from tests.edge.tasks import arguments, transform

Run = Callable[..., Any]

_ABOUT = {"dag_id": "measured", "task_id": "label", "provider": "anthropic", "model": "claude-haiku-4-5"}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiving(monkeypatch) as receiver:
        yield receiver


def _last(samples: list[Sample], **tags: str) -> dict[str, float]:
    """The last value of each metric with exactly these tags."""
    return {one.name.removeprefix("airflow.batch_llm."): one.value for one in samples if one.tags == tags}


def test_a_run_sends_its_rows_tokens_dollars_and_waiting_time(
    world: World, run: Run, sent: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets = '{"support": {"usd": 0.5, "per": "all"}}'
    monkeypatch.setenv("AIRFLOW__BATCH_LLM__BUDGETS", budgets)
    with DAG("measured", schedule=None) as dag:
        transform(budget="support", max_cost_usd=0.25)

    report = xcom(run(dag), "label")

    samples = sent.samples()
    values, usd = _last(samples, **_ABOUT), report["cost"]["usd"]
    assert usd > 0
    assert values == {
        "rows.succeeded": len(TICKETS),
        "reasons.new": len(TICKETS),
        "requests": len(TICKETS),
        "tokens.input": report["usage"]["input_tokens"],
        "tokens.cached": 0,
        "tokens.output": report["usage"]["output_tokens"],
        "cost_usd": pytest.approx(usd, abs=1e-6),
        "spent_micro_usd": pytest.approx(usd * 1e6, abs=1),
        "saved_usd": pytest.approx(report["cost"]["saved_usd"], abs=1e-6),
        "stray_usd": 0,
        "run_budget_used": pytest.approx(usd / 0.25, abs=1e-5),
        "batch_wait_seconds": values["batch_wait_seconds"],
        "completion_ratio": 1,
    }
    held, used = [one.value for one in samples if one.tags == {"budget": "support"}]
    assert held > used == pytest.approx(usd / 0.5, abs=1e-5), "a run holds more than it costs in the end"


def test_the_open_run_is_told_while_the_task_waits_and_no_longer(
    world: World, run: Run, sent: Receiver
) -> None:
    with DAG("open", schedule=None) as dag:
        transform()

    report = xcom(run(dag), "label")

    told = [(one.tags, one.value) for one in sent.samples() if one.name == "airflow.batch_llm.open_since"]
    task = {"dag_id": "open", "task_id": "label"}
    assert told[-1] == (task, 0.0)
    assert {moment for _, moment in told[:-1]} == {told[0][1]}
    assert datetime.fromtimestamp(told[0][1], UTC).isoformat() == report["submitted_at"]


def test_a_plan_that_is_only_looked_at_has_no_numbers(world: World, run: Run, sent: Receiver) -> None:
    with DAG("looked_at", schedule=None) as dag:
        transform(plan_only=True)

    run(dag)

    assert {one.name for one in sent.samples()} == {"airflow.batch_llm.open_since"}


def test_a_mapped_tasks_item_has_a_gauge_of_its_own(sent: Receiver) -> None:
    gauge_open_since(1.0, dag_id="dag", task_id="task", map_index=2)

    (one,) = sent.samples()
    assert one.tags == {"dag_id": "dag", "task_id": "task", "map_index": "2"}


def test_routes_packing_and_drift_have_metrics_where_there_are_some(
    world: World, run: Run, sent: Receiver
) -> None:
    world.execute("UPDATE tickets SET body = 'The app crashes'")
    with DAG("routed", schedule=None) as dag:
        transform(
            source_table=...,
            source_sql="SELECT *, CASE WHEN ticket_id <= 3 THEN 'urgent' END AS how FROM tickets",
            request=Request(rows_per_request=3),
            guards=Guards(min_agreement=None),
            routes={"urgent": Route(way="now")},
            route_column="how",
        )

    routes = xcom(run(dag), "label")["routes"]
    world.execute("UPDATE tickets SET body = body || '!'")
    run(dag)

    samples = sent.samples()
    task = {"dag_id": "routed", "task_id": "label"}
    for name, rows in (("default", len(TICKETS) - 3), ("urgent", 3)):
        first = next(one for one in samples if one.tags.get("route") == name)
        assert (first.name, first.value) == ("airflow.batch_llm.route.succeeded", rows)
        assert _last(samples, **task, route=name)["route.cost_usd"] == pytest.approx(
            routes[name]["usd"], rel=0.2
        )
    about = {**_ABOUT, **task}
    assert _last(samples, **about)["rows_per_request"] > 1
    assert _last(samples, **about, column="topic").keys() == {"drift"}


def test_an_evaluation_sends_the_accuracy_of_each_column(world: World, run: Run, sent: Receiver) -> None:
    world.execute("CREATE TABLE golden AS SELECT *, 'bug' AS expected_topic FROM tickets")
    with DAG("evaluated", schedule=None) as dag:
        LLMEvaluateOperator(
            **arguments(source_table="golden", target="evaluated", expected={"topic": "expected_topic"})
        )

    result = xcom(run(dag), "label")["columns"]["topic"]

    values = _last(sent.samples(), **{**_ABOUT, "dag_id": "evaluated", "column": "topic"})
    assert values == {
        "evaluation.accuracy": pytest.approx(result["right"] / result["rows"], abs=1e-4),
        "evaluation.accuracy_low": pytest.approx(result["low"], abs=1e-3),
        "evaluation.accuracy_high": pytest.approx(result["high"], abs=1e-3),
    }


def test_no_name_breaks_a_metric(sent: Receiver) -> None:
    model, task = "ft:gpt-4o:größe|1", "label=it,now"

    gauge_open_since(1.0, dag_id=model, task_id=task)

    (one,) = sent.samples()
    assert one.tags == metric_tags(dag_id=model, task_id=task)
    assert one.tags == {"dag_id": "ft_gpt-4o_gr__e_1", "task_id": "label_it_now"}
