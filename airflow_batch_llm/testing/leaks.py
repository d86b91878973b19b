"""Search an error for what it must not hold: in its own text, in its chain, and in all that a formatter may print."""

import traceback
from collections.abc import Iterator
from typing import Any

#: The depth to which attributes of attributes are followed (a driver's error holds a result, a response or a request).
_DEPTH = 4


def text_of(error: BaseException) -> str:
    """Return all text that an error and its chain hold, hidden contexts included."""
    chain = list(_chain(error))
    parts = ["".join(traceback.format_exception(one, chain=False)) for one in chain]
    parts += [text for one in chain for text in _texts(one, _DEPTH)]
    return "\n".join(parts)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error, and every cause and context behind it, whether a traceback shows it or not."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions


def _texts(value: Any, depth: int) -> Iterator[str]:
    """Yield a value as text, and the same of its parts and attributes."""
    if isinstance(value, str | bytes | int | float | type) or value is None or depth == 0:
        yield value.decode(errors="replace") if isinstance(value, bytes) else repr(value)
        return
    yield _shown(value)
    if isinstance(value, dict):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        parts = list(value)
    else:
        parts = _attributes(value)
    for part in parts:
        yield from _texts(part, depth - 1)


def _attributes(value: Any) -> list[Any]:
    names = [name for name in dir(value) if not name.startswith("__") or name == "__notes__"]
    found = []
    for name in names:
        try:
            attribute = getattr(value, name)
        except Exception:  # noqa: BLE001, S112 - a property that cannot be had prints nothing
            continue
        if not callable(attribute):
            found.append(attribute)
    return found


def _shown(value: Any) -> str:
    try:
        return f"{value} {value!r}"
    except Exception as error:  # noqa: BLE001 - nor does a value that cannot be shown
        return type(error).__name__
