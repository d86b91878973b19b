"""One line per HTTP request would bury what a task has to say."""

import logging

#: What the SDKs send with. They log each request at INFO.
_LOGGERS = ("httpx", "httpx2")


def quiet_http() -> None:
    """Let HTTP clients speak from WARNING on, in a task's own process, unless somebody has set their level."""
    for logger in map(logging.getLogger, _LOGGERS):
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.WARNING)
