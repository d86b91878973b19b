"""What operators and sensors do with their arguments while a Dag is read: it costs nothing, and refuses with advice."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar

from airflow.providers.common.compat.sdk import conf

from airflow_batch_llm.errors import InputError

N = TypeVar("N", int, float)
E = TypeVar("E", bound=StrEnum)

_KINDS: Mapping[type, str] = {int: "an int", float: "a number"}


def one_of(**arguments: object) -> None:
    """Refuse none, and more than one, of several arguments."""
    given = [name for name, value in arguments.items() if value is not None]
    if len(given) != 1:
        names = ", ".join(arguments)
        raise InputError(f"Exactly one of {names} is wanted, and there is {' and '.join(given) or 'none'}.")


def choice(name: str, value: str, choices: type[E]) -> E:
    """Return the member of an enumeration that has this value."""
    try:
        return choices(value)
    except ValueError:
        known = ", ".join(repr(one.value) for one in choices)
        raise InputError(f"{name} must be one of {known}, got {value!r}.") from None


def number(name: str, value: Any, kind: type[N]) -> N:
    """What may have been a template, and is text then."""
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise InputError(
            f"{name} must be {_KINDS[kind]}, got {value!r}. Check what its template renders to."
        ) from None


def is_deferrable(given: bool | None) -> bool:
    """Whether a task waits in the triggerer: as its argument says, or Airflow's configuration."""
    return conf.getboolean("operators", "default_deferrable", fallback=False) if given is None else given


def settling_seconds() -> float:
    """How long a deferred task is left alone before it may be woken.

    The process that deferred may live for one heartbeat more. A scheduler that hears of its end when the task is already
    queued again can take that for a crash, and count a lost try.
    """
    heartbeat: float = conf.getfloat("workers", "min_heartbeat_interval", fallback=5.0)
    return 1.2 * heartbeat
