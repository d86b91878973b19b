"""Read the fields that most connections have: a key as the password, and a host where it differs from the vendor's."""

from collections.abc import Iterator, Mapping
from typing import Any

from airflow.providers.common.compat.sdk import AirflowNotFoundException, conf
from airflow.sdk import BaseHook, Connection

from airflow_batch_llm.errors import InputError
from airflow_batch_llm.providers.base import Access, is_sendable

#: Parts of an extra that hold what is sent in headers.
_SENT_EXTRAS = ("api_key", "anthropic_client_kwargs", "openai_client_kwargs")


def find_connection(conn_id: str, argument: str) -> Connection:
    """Return a connection. Raises `InputError` if it does not exist, with the user's argument that names it."""
    try:
        return BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        missing = InputError(
            f"Airflow has no connection {conn_id!r}, which {argument} names. Correct the name, or create the connection:"
            f" airflow connections add {conn_id} --conn-type …"
        )
    raise missing


def plain_access(connection: Connection, hook_params: Mapping[str, Any]) -> Access:
    """A key and a host; `hook_params` are options of the SDK's client."""
    return Access(
        api_key=connection.password or None,
        base_url=base_url(connection),
        options=hook_params,
        allow_insecure=is_insecure_allowed(connection),
    )


def is_insecure_allowed(connection: Connection) -> bool:
    """Return whether the connection, or Airflow's configuration, allows keys and rows to travel unencrypted."""
    given = connection.extra_dejson.get("allow_insecure_base_url")
    if given is None or given == "":
        return bool(conf.getboolean("batch_llm", "allow_insecure_base_url", fallback=False))
    return str(given).lower() in ("1", "t", "true", "yes")


def base_url(connection: Connection) -> str | None:
    """The connection's host as the URL that SDKs want."""
    host = connection.host
    if not host or "://" in host:
        return host or None
    port = f":{connection.port}" if connection.port else ""
    return f"{connection.schema or 'https'}://{host}{port}"


def check_secrets(connection: Connection) -> None:
    """Refuse a key or a header that HTTP cannot carry, by the field's name and without its value."""
    extra = connection.extra_dejson
    fields = {"password": connection.password, "host": connection.host}
    fields |= {f"extra.{name}": extra[name] for name in _SENT_EXTRAS if name in extra}
    for name, text in _texts(fields, ""):
        if not is_sendable(text):
            raise InputError(
                f"The connection {connection.conn_id!r} holds a control character, white space at an end, or a letter that"
                f" HTTP does not allow, in its field {name}. Often a line end was copied with a key. Enter the field again."
            )


def _texts(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Each text in nested mappings, with the path to it."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _texts(part, f"{name}.{key}".lstrip("."))
