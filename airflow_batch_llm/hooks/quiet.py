"""One line per HTTP request would bury what a task has to say. A level that somebody has set is kept."""

import logging
from contextvars import ContextVar

#: What the SDKs send with. They log each request at INFO.
_LOGGERS = ("httpx", "httpx2")

_quiet: ContextVar[bool] = ContextVar("_quiet", default=False)


def quiet_http() -> None:
    """In a task's own process: let HTTP clients speak from WARNING on."""
    for logger in map(logging.getLogger, _LOGGERS):
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.WARNING)


def quiet_http_here() -> None:
    """The same in a triggerer, for this trigger alone: the process is not ours."""
    _quiet.set(True)
    for logger in map(logging.getLogger, _LOGGERS):
        logger.addFilter(_is_wanted)  # once: the same filter is not added again


def _is_wanted(record: logging.LogRecord) -> bool:
    set_by_somebody = logging.getLogger(record.name).level != logging.NOTSET
    return record.levelno >= logging.WARNING or set_by_somebody or not _quiet.get()
