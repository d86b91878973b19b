"""Check the arguments of operators and sensors while a Dag is parsed, and read the settings that complete them.

The checks cost nothing, and an error says what to do.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import urlsplit

from airflow.providers.common.compat.sdk import conf

from airflow_batch_llm.errors import InputError
from airflow_batch_llm.warehouses import all_types, find_type, own_types
from airflow_batch_llm.warehouses.registration import COMMON_HOOK_PARAMS

N = TypeVar("N", int, float)
E = TypeVar("E", bound=StrEnum)

_KINDS: Mapping[type, str] = {int: "an int", float: "a number"}


def one_of(**arguments: object) -> None:
    """Raise `InputError` unless exactly one of these arguments is given."""
    given = [name for name, value in arguments.items() if value is not None]
    if len(given) != 1:
        names = ", ".join(arguments)
        raise InputError(f"Exactly one of {names} is needed, and there is {' and '.join(given) or 'none'}.")


def choice(name: str, value: str, choices: type[E]) -> E:
    """Return the member of an enumeration that has this value."""
    try:
        return choices(value)
    except ValueError:
        known = ", ".join(repr(one.value) for one in choices)
        raise InputError(f"{name} must be one of {known}, got {value!r}.") from None


def number(name: str, value: Any, kind: type[N]) -> N:
    """Return the number in an argument, which is text if it was a template."""
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise InputError(
            f"{name} must be {_KINDS[kind]}, got {value!r}. Check what its template renders to."
        ) from None


def deployment() -> str:
    """Return the name of this deployment in Airflow's configuration. Empty if it is the only one."""
    return str(conf.get("batch_llm", "deployment", fallback="") or "").strip()


def is_deferrable(given: bool | None) -> bool:
    """Return whether a task waits in the triggerer: by its argument, or by Airflow's configuration."""
    return conf.getboolean("operators", "default_deferrable", fallback=False) if given is None else given


def settling_seconds() -> float:
    """Return the seconds for which a deferred task is left alone before it may resume.

    The process that deferred may live for one heartbeat more. A scheduler that learns of its end when the task is already
    queued again can take that for a crash, and count a lost try. So the trigger begins to count when it starts, which is
    after the deferral, and counts longer where the machine is slow: see `settled`.
    """
    heartbeat: float = conf.getfloat("workers", "min_heartbeat_interval", fallback=5.0)
    return 1.2 * heartbeat


ENTRY_POINT_GROUP = "airflow_batch_llm.hook_params"

FILES = frozenset({"column_types", "delimiter", "format"})

#: Provider -> names. Other providers take those of `_ANY_PROVIDER`.
PROVIDERS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "anthropic": frozenset({"base_url", "max_retries", "timeout"}),
        "openai": frozenset(
            {
                "base_url", "input_expires_after", "max_retries", "organization", "output_expires_after", "project",
                "timeout",
            }
        ),
        "vertex": frozenset({"base_url", "impersonation_chain", "location", "project", "staging"}),
    }
)  # fmt: skip
_ANY_PROVIDER = frozenset({"base_url", "location", "max_retries", "project", "timeout"})


def check_params(**arguments: Mapping[str, Any] | None) -> None:
    """While a Dag is read: refuse names that no connection type takes. The type itself is not known yet."""
    for argument, given in arguments.items():
        if not given:
            continue
        if argument.startswith("llm"):
            allowed = _ANY_PROVIDER.union(*PROVIDERS.values())
        else:
            allowed = (COMMON_HOOK_PARAMS | FILES).union(*(kind.hook_params for kind in own_types()))
        _check(argument, given, allowed, kind=None)


def check_database_params(conn_type: str, given: Mapping[str, Any] | None) -> None:
    """Refuse names that this type of connection does not take."""
    if given:
        kind = find_type(conn_type)
        _check("hook_params", given, kind.hook_params if kind else COMMON_HOOK_PARAMS, kind=conn_type)


def check_provider_params(provider: str, given: Mapping[str, Any] | None) -> None:
    """Refuse names that this provider does not take."""
    _check("llm_hook_params", given, PROVIDERS.get(provider, _ANY_PROVIDER), kind=provider)


def _check(argument: str, given: Mapping[str, Any] | None, allowed: frozenset[str], kind: str | None) -> None:
    if not given:
        return
    unknown = [str(name) for name in given if name not in allowed]
    if unknown:
        allowed = allowed | _added(argument, kind)
        unknown = [name for name in unknown if name not in allowed]
    if unknown:
        raise InputError(
            f"{argument} has {', '.join(map(repr, sorted(unknown)))}{f' for {kind}' if kind else ''}. It may have"
            f" {', '.join(sorted(allowed))}. Others could read it in XCom and in the run folder. Put it into the"
            " connection. If it holds no secret, add its name to [batch_llm] hook_params."
        )
    for name, value in given.items():
        if any(_holds_password(text) for text in _texts(value)):
            raise InputError(
                f"{argument}[{name!r}] is a URL with a user or a password, which others could read in XCom and in the run"
                " folder. Put it into the connection."
            )


def _added(argument: str, kind: str | None) -> frozenset[str]:
    """Return the names that the configuration and installed packages add."""
    written = conf.get("batch_llm", "hook_params", fallback=None) or ""
    names = {name.strip() for name in written.split(",")} - {""}
    if kind is None and not argument.startswith("llm"):
        names.update(*(registered.hook_params for registered in all_types()))
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        if kind in (None, entry_point.name):
            names.update(entry_point.load())
    return frozenset(names)


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list | tuple | set):
        for part in value:
            yield from _texts(part)


def _holds_password(text: str) -> bool:
    """Return whether a text is a URL that holds a user name or a password."""
    return "://" in text and "@" in urlsplit(text).netloc
