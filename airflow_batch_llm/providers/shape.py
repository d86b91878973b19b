"""The types that a vendor's JSON must have where it is read.

A gateway may answer in the vendor's place, and a wrong type that slips through fails far from here. What these
functions raise becomes `Unavailable` in `patiently`, and `UnknownFate` where a batch was being created.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from airflow_batch_llm.errors import Unavailable, UnknownFate, raise_alone


class NotUnderstood(ValueError):
    """The vendor cannot have given this answer. The message is the name of the error that reading it raised."""


@contextmanager
def understood() -> Iterator[None]:
    """An answer is read in this block: whatever it does to its reader is `NotUnderstood`."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise_alone(error if isinstance(error, NotUnderstood) else NotUnderstood(type(error).__name__))


def not_understood(error: ValueError) -> Unavailable:
    """The error of a call that is safe to repeat. It quotes nothing of the answer."""
    return Unavailable(
        f"The answer is not one that the provider's API gives ({_kind(error)}). A gateway, a proxy or a login page may "
        "have answered in its place: look at the connection's host if this stays."
    )


def fate_unknown(error: Exception) -> UnknownFate:
    """The error of a creation whose answer is not a batch."""
    return UnknownFate(
        f"The answer to the creation is not a batch ({_kind(error)}): a gateway or a proxy may have given it. "
        "The batch may exist: it is searched for before anything is sent again."
    )


def _kind(error: Exception) -> str:
    return str(error) if isinstance(error, NotUnderstood) else type(error).__name__


def text(value: Any) -> str:
    """A text that is not empty."""
    if not isinstance(value, str):
        raise TypeError
    if not value:
        raise ValueError
    return value


def count(value: Any) -> int:
    """A whole number, not below zero."""
    if type(value) is not int:
        raise TypeError
    if value < 0:
        raise ValueError
    return value


def count_or_zero(value: Any) -> int:
    """The same, or 0 where there is none."""
    return 0 if value is None else count(value)


def record(value: Any) -> Mapping[str, Any]:
    """An object."""
    if not isinstance(value, Mapping):
        raise TypeError
    return value


def entries(value: Any) -> Sequence[Any]:
    """A list."""
    if not isinstance(value, list):
        raise TypeError
    return value


def following(page: Mapping[str, Any], ids: Sequence[str], after: str | None) -> str | None:
    """The cursor that leads to the next page of a list; None: this is the last. Raises for one that leads nowhere."""
    if not page.get("has_more"):
        return None
    cursor = text(page.get("last_id") or (ids[-1] if ids else None))
    if cursor == after:
        raise ValueError
    return cursor
