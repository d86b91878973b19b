"""The spans of real runs, as OpenTelemetry's own SDK exports them."""

import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from airflow.sdk import DAG
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from airflow_batch_llm.core.settings import Route
from tests.edge.conftest import TICKETS, World
from tests.edge.dag_runs import states, xcom
from tests.edge.tasks import transform

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def exporter() -> Iterator[InMemorySpanExporter]:
    """Yield the exporter of this process's tracer provider, as long as these tests run."""
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "_TRACER_PROVIDER", provider)
        yield exporter
    exporter.shutdown()  # not the provider: modules of Airflow keep tracers of it, and would warn at each span


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Callable[[], list[ReadableSpan]]:
    """Ours of this test, in the order of their ends."""
    exporter.clear()
    return lambda: [one for one in exporter.get_finished_spans() if one.name.startswith("batch_llm.")]


def _attributes(span: ReadableSpan) -> dict[str, Any]:
    return {name.removeprefix("batch_llm."): value for name, value in (span.attributes or {}).items()}


@pytest.mark.parametrize("deferrable", [True, False])
def test_a_run_is_traced_below_the_span_of_its_task(
    world: World, run: Run, spans: Callable[[], list[ReadableSpan]], deferrable: bool
) -> None:
    with DAG(f"traced_{deferrable}".lower(), schedule=None) as dag:
        transform(deferrable=deferrable)

    with trace.get_tracer("airflow").start_as_current_span("worker.label") as task:
        report = xcom(run(dag), "label")

    found = {one.name: one for one in spans()}
    about = {"provider": "anthropic", "model": "claude-haiku-4-5"}
    size = {**about, "way": "batch", "shards": 1, "rows": len(TICKETS), "requests": len(TICKETS)}
    assert {name: _attributes(one) for name, one in found.items()} == {
        "batch_llm.plan": {**size, "usd": pytest.approx(report["estimate"]["usd"], abs=1e-6)},
        "batch_llm.submit": size,
        "batch_llm.wait": {**about, "batches": 1},
        "batch_llm.land": {**size, "usd": pytest.approx(report["cost"]["usd"], abs=1e-6)},
    }
    assert {one.parent.span_id for one in found.values() if one.parent} == {task.get_span_context().span_id}
    assert {one.context.trace_id for one in found.values()} == {task.get_span_context().trace_id}


def test_what_is_asked_in_real_time_is_a_submission_too(
    world: World, run: Run, spans: Callable[[], list[ReadableSpan]]
) -> None:
    with DAG("traced_now", schedule=None) as dag:
        transform(way="now", routes={"hard": Route(model_id="openai:gpt-5-mini")}, deferrable=False)

    assert states(run(dag)) == {"label": "success"}
    names = [one.name for one in spans()]
    assert [name for name in names if name != "batch_llm.wait"] == [
        "batch_llm.plan",
        "batch_llm.submit",
        "batch_llm.land",
    ]
    (sent,) = [one for one in spans() if one.name == "batch_llm.submit"]
    assert _attributes(sent)["way"] == "now"


def test_a_step_that_fails_leaves_the_name_of_its_error_and_no_text(
    world: World, run: Run, spans: Callable[[], list[ReadableSpan]]
) -> None:
    row = uuid4().hex
    world.execute(f"UPDATE tickets SET body = '{row}', ticket_id = ticket_id + 770000")
    with DAG("traced_failure", schedule=None) as dag:
        transform(max_cost_usd=0.000001)

    assert states(run(dag)) == {"label": "failed"}
    (failed,) = spans()
    assert (failed.name, failed.status.description, list(failed.events), _attributes(failed)) == (
        "batch_llm.plan",
        "BudgetExceeded",
        [],
        {},
    )


def test_no_span_holds_a_key_a_prompt_or_an_answer(
    world: World, run: Run, exporter: InMemorySpanExporter
) -> None:
    exporter.clear()
    row = uuid4().hex
    world.execute(f"UPDATE tickets SET body = '{row}', ticket_id = ticket_id + 770000")
    world.simulator.fault(provider="anthropic", kind="refused", rows=[0])
    with DAG("traced_quietly", schedule=None) as dag:
        transform(output_type=str, deferrable=False)

    assert states(run(dag)) == {"label": "success"}
    told = json.dumps([json.loads(one.to_json()) for one in exporter.get_finished_spans()])
    answers = [text for (text,) in world.query("SELECT answer FROM labels")]
    assert len(answers) == len(TICKETS) - 1
    assert [text for text in (row, "77000", *answers) if text in told] == []
