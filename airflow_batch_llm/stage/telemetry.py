"""Spans of a run, and the log records of the SDKs and drivers that it calls.

Spans belong to the trace of the caller: in a task that is Airflow's own. Without a tracer a step costs microseconds.
An attribute is a number or a name, never a text of a row, and an error leaves the name of its class alone.

The libraries' records are kept to warnings: at DEBUG they hold keys, whole requests and answers. The level is no
protection: a deployment that runs at DEBUG, or an SDK's environment variable, sets it behind our back. So the records are
stopped where they leave the library's logger.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from opentelemetry import trace
from opentelemetry.trace import Span, Status, StatusCode

from airflow_batch_llm.core.waiting import Watch
from airflow_batch_llm.providers import PROVIDERS
from airflow_batch_llm.store.remote import KINDS
from airflow_batch_llm.warehouses import LOGGERS as DRIVER_LOGGERS

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


#: The loggers below which the HTTP clients log that SDKs and drivers share.
_TRANSPORTS = ("aiohttp", "fsspec", "httpcore", "httpcore2", "httpx", "httpx2", "requests", "urllib3")

#: The loggers below which the libraries log that see a key, a prompt, a row or an answer.
LOGGERS = frozenset(
    {
        *_TRANSPORTS,
        *(name for provider in PROVIDERS.values() for name in provider.loggers),
        *(name for kind in KINDS.values() for name in kind.loggers),
        *DRIVER_LOGGERS,
    }
)

_here: ContextVar[bool] = ContextVar("_here", default=False)


class _Gate(logging.Handler):
    """Pass a library's records to the root's handlers: warnings always, others only where none of our code runs."""

    def __init__(self) -> None:
        super().__init__()
        self.everywhere = False

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING or not (self.everywhere or _here.get()):
            logging.getLogger().callHandlers(record)


_gate = _Gate()


def quiet_process() -> None:
    """Let the libraries speak from WARNING on, for the rest of this process: a task's or a command's."""
    _install()
    _gate.everywhere = True


def quiet_context() -> None:
    """The same for the coroutine that calls this and what it starts: the process is a triggerer's, and serves others."""
    _install()
    _here.set(True)


def _install() -> None:
    for logger in map(logging.getLogger, LOGGERS):
        # A child may have a level of its own, but what it logs passes here.
        logger.addHandler(_gate)  # once: the same handler is not added again
        logger.propagate = False
