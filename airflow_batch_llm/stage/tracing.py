"""Spans of a run, in the trace of whoever runs it: in a task that is Airflow's own.

Where nobody traces, a step costs microseconds. An attribute is a number or a name, never a text of a row, and an error leaves the
name of its class alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import Span, Status, StatusCode

from airflow_batch_llm.core.waiting import Watch

_tracer = trace.get_tracer("airflow_batch_llm")


@contextmanager
def span(step: str, **attributes: str | float | None) -> Iterator[Span]:
    """Record a step of a run. None: the attribute is not known."""
    name = f"batch_llm.{step}"
    with _tracer.start_as_current_span(
        name, record_exception=False, set_status_on_exception=False
    ) as current:
        describe(current, **attributes)
        try:
            yield current
        except Exception as error:
            current.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise


def describe(current: Span, **attributes: str | float | None) -> None:
    """Give a span attributes."""
    known = {f"batch_llm.{name}": value for name, value in attributes.items() if value is not None}
    current.set_attributes(known)


def waited(model_id: str, watch: Watch) -> dict[str, str | int]:
    """Return what a task waits for, in numbers and names."""
    provider, _, model = model_id.partition(":")
    return {"provider": provider, "model": model, "batches": len(watch.batch_ids)}
