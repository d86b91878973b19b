"""Trace the steps of a run, and keep the log records of SDKs and drivers down.

Spans belong to the trace of the caller: in a task that is Airflow's own. Without a tracer a step costs microseconds.
An attribute is a number or a name, never a text of a row, and an error leaves the name of its class alone.

The libraries' records are kept to warnings: at DEBUG they hold keys, whole requests and answers. A logger's level does
not protect them: a deployment that runs at DEBUG, or an SDK's environment variable, changes it. So the records are
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
    """Add attributes to a span."""
    known = {f"batch_llm.{name}": value for name, value in attributes.items() if value is not None}
    current.set_attributes(known)


def waited(model_id: str, watch: Watch) -> dict[str, str | int]:
    """Return a task's wait as attributes: numbers and names."""
    provider, _, model = model_id.partition(":")
    return {"provider": provider, "model": model, "batches": len(watch.batch_ids)}


#: The loggers of the HTTP clients that SDKs and drivers share.
_TRANSPORTS = ("aiohttp", "fsspec", "httpcore", "httpcore2", "httpx", "httpx2", "requests", "urllib3")

#: The loggers of the libraries that see a key, a prompt, a row or an answer.
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
    """Passes a library's records to the root's handlers: warnings always, others only if none of the package's code runs."""

    def __init__(self) -> None:
        super().__init__()
        self.everywhere = False

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING or not (self.everywhere or _here.get()):
            logging.getLogger().callHandlers(record)


_gate = _Gate()


def quiet_process() -> None:
    """Let the libraries log from WARNING on, for the rest of this process of a task or a command."""
    _install()
    _gate.everywhere = True


def quiet_context() -> None:
    """Do the same for the calling coroutine and the tasks that it starts, since a triggerer's process serves other triggers."""
    _install()
    _here.set(True)


def _install() -> None:
    for logger in map(logging.getLogger, LOGGERS):
        # A child logger may have its own level, but its records pass here.
        logger.addHandler(_gate)  # once: the same handler is not added again
        logger.propagate = False
