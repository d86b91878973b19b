"""The log of tasks and triggers. Airflow's logs are structlog's, which pytest does not see."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from structlog.testing import capture_logs


class Told:
    """The messages so far."""

    def __init__(self, entries: list[Any]) -> None:
        self._entries = entries

    @property
    def messages(self) -> list[str]:
        return [_message(**entry) for entry in self._entries]

    def tells(self, words: str) -> bool:
        return any(words in message for message in self.messages)

    def warns(self, words: str) -> bool:
        return any(words in _message(**one) for one in self._entries if one["log_level"] == "warning")


def _message(event: Any, positional_args: tuple[Any, ...] = (), **_: Any) -> str:
    return event % positional_args if positional_args else str(event)


@contextmanager
def told() -> Iterator[Told]:
    with capture_logs() as entries:
        yield Told(entries)


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def root_messages() -> Iterator[list[str]]:
    """The standard library's records at any level, as the root's handlers get them.

    Pytest's own handler is of no use here: it is put on every logger that hands nothing on.
    """
    root, kept = logging.getLogger(), _Kept()
    level = root.level
    root.addHandler(kept)
    root.setLevel(logging.DEBUG)
    try:
        yield kept.messages
    finally:
        root.setLevel(level)
        root.removeHandler(kept)
