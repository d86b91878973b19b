"""What most connections hold: a key as the password, and a host where it is not the vendor's own."""

from collections.abc import Mapping
from typing import Any

from airflow.sdk import Connection

from airflow_batch_llm.providers.base import Access


def plain_access(connection: Connection, hook_params: Mapping[str, Any]) -> Access:
    """A key and a host; `hook_params` are options of the SDK's client."""
    return Access(api_key=connection.password or None, base_url=base_url(connection), options=hook_params)


def base_url(connection: Connection) -> str | None:
    """The connection's host as the URL that SDKs want."""
    host = connection.host
    if not host or "://" in host:
        return host or None
    port = f":{connection.port}" if connection.port else ""
    return f"{connection.schema or 'https'}://{host}{port}"
