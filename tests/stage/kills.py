"""Killing a run at a chosen point: the verbs of all its parts are counted, and one of them is the last.

The parts are wrapped in tests only. A point is the moment before or after the n-th verb; between two verbs nothing
happens that another process could see, so these are all the states in which a run can be left.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from airflow_batch_llm.stage.parts import Parts

# Verbs that leave a trace outside of the process. The other ones look.
EFFECTS = frozenset(
    {
        "create", "append", "put", "write", "collect", "delete", "delete_folder",
        "upload", "submit", "cancel", "discard",
        "prepare", "load", "copy", "publish", "drop_loaded", "prepare_reviews", "refresh_reviews",
        "select_rows", "leave_out", "number_requests", "forget_rows", "write_requests", "keep_answers",
        "judge_answers", "drop_plan",
    }
)  # fmt: skip

# Pure verbs, and one that only says what a part is called: not points.
_NOT_COUNTED = frozenset({"encode", "decode", "console_url"})

# Verbs that are asked as often as it takes: in a row they are one point, for a slow machine asks once more.
_REPEATED = frozenset({"check"})

# Whatever these return has verbs of its own.
_PARTS = frozenset({"stage_tables"})

# Verbs whose answer is a stream: its first items are points as well.
_STREAMS = frozenset({"results"})
_ITEMS = 2


@dataclass(frozen=True, slots=True)
class Kill:
    """Before or after the n-th verb, counted from 1."""

    point: int
    after: bool
    call: tuple[str, int] | None = None
    """The verb, and the number of its call. Threads change the order of verbs, so with it `point` is only a name."""


@dataclass(slots=True)
class Meter:
    """Counts the verbs of one process, and ends it at its point."""

    kill: Kill | None = None
    look: Callable[[], object] | None = None
    """Looks at the world from outside, after each verb. Verbs then come one at a time."""
    traces: set[str] = field(default_factory=set)
    """The verbs that are said to leave no trace and have left one."""
    verbs: list[str] = field(default_factory=list)
    _calls: list[tuple[str, int]] = field(default_factory=list)
    _counting: threading.Lock = field(default_factory=threading.Lock)  # shards are worked on side by side
    _one: threading.RLock = field(default_factory=threading.RLock)
    _seen: object = None

    def count(self, verb: str) -> int:
        with self._counting:
            if verb.rpartition(".")[2] in _REPEATED and self.verbs[-1:] == [verb]:
                return len(self.verbs)
            self.verbs.append(verb)
            self._calls.append((verb, self.verbs.count(verb)))
            number = len(self.verbs)
        self._end(number, after=False)
        return number

    @contextmanager
    def watching(self, verb: str) -> Iterator[None]:
        """Note the verb if the world is another one than after the verb before, and verbs of its kind only look."""
        if self.look is None:
            yield
            return
        with self._one:
            before = self._seen or self.look()
            try:
                yield
            finally:
                self._seen = self.look()
                if self._seen != before and verb.rpartition(".")[2] not in EFFECTS:
                    self.traces.add(verb)

    def done(self, number: int) -> None:
        self._end(number, after=True)

    def _end(self, number: int, *, after: bool) -> None:
        kill = self.kill
        if kill is None or kill.after != after:
            return
        if kill.point == number if kill.call is None else kill.call == self._calls[number - 1]:
            os.kill(os.getpid(), signal.SIGKILL)


def watched(parts: Parts, meter: Meter) -> Parts:
    """The same parts, counted."""
    target = _wrapped(parts.target, "warehouse", meter)
    return replace(
        parts,
        provider=_wrapped(parts.provider, "provider", meter),
        source=target if parts.source is parts.target else _wrapped(parts.source, "source", meter),
        target=target,
        workspace=_wrapped(parts.workspace, "workspace", meter),
    )


def _wrapped(part: Any, name: str, meter: Meter) -> Any:
    """An object with the part's own attributes. Its verbs are real methods, for optional abilities are looked up."""
    members: dict[str, Any] = {}
    for verb in dir(type(part)):
        if verb.startswith("_"):
            continue
        if callable(getattr(part, verb)) and verb not in _NOT_COUNTED:
            members[verb] = _counted(part, verb, name, meter)
        else:
            members[verb] = property(lambda _, verb=verb: getattr(part, verb))
    members["__getattr__"] = lambda _, verb: getattr(part, verb)
    return type(f"Watched{type(part).__name__}", (), members)()


def _counted(part: Any, verb: str, name: str, meter: Meter) -> Callable[..., Any]:
    def call(_: Any, *arguments: Any, **named: Any) -> Any:
        if verb in _PARTS:
            return _wrapped(getattr(part, verb)(*arguments, **named), verb, meter)
        number = meter.count(f"{name}.{verb}")
        try:
            with meter.watching(f"{name}.{verb}"):
                answer = getattr(part, verb)(*arguments, **named)
            return _stream(answer, f"{name}.{verb}", meter) if verb in _STREAMS else answer
        finally:
            meter.done(number)

    return call


def _stream(items: Iterator[Any], verb: str, meter: Meter) -> Iterator[Any]:
    for position, item in enumerate(items):
        if position < _ITEMS:
            meter.done(meter.count(f"{verb}[{position}]"))
        yield item
