"""Keep the SDKs' and drivers' own log records to warnings: at DEBUG they hold keys, whole requests and answers.

The level is no protection: a deployment that runs at DEBUG, or an SDK's environment variable, sets it behind our back.
So the records are stopped where they leave the library's logger.
"""

import logging
from contextvars import ContextVar

from airflow_batch_llm.providers import PROVIDERS
from airflow_batch_llm.store.remote import KINDS
from airflow_batch_llm.warehouses import LOGGERS as DRIVER_LOGGERS

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
