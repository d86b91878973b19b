"""Connections of the type `openai`, as the official hook reads them.

A key and a host need no hook. Workload identity does: the hook reads it from the connection.
"""

from collections.abc import Mapping
from typing import Any

from airflow.sdk import Connection

from airflow_batch_llm.errors import InputError
from airflow_batch_llm.hooks.access import base_url, is_insecure_allowed
from airflow_batch_llm.providers.base import Access


def openai_access(connection: Connection, hook_params: Mapping[str, Any]) -> Access:
    """`hook_params` and the extra's `openai_client_kwargs` are options of the SDK's client, or of our provider."""
    extra = connection.extra_dejson
    options = {**extra.get("openai_client_kwargs", {}), **hook_params}
    api_key = options.pop("api_key", None) or connection.password or None
    url = options.pop("base_url", None) or base_url(connection)
    if extra.get("auth_type", "api_key") == "api_key":
        return Access(
            api_key=api_key,
            base_url=url,
            options=options,
            allow_insecure=is_insecure_allowed(connection),
        )
    return Access(
        base_url=url,
        allow_insecure=is_insecure_allowed(connection),
        options=options,
        client=lambda: _hook(connection.conn_id).get_conn(),
        async_client=lambda: _async_client(connection),
    )


def _hook(conn_id: str) -> Any:
    try:
        from airflow.providers.openai.hooks.openai import OpenAIHook
    except ModuleNotFoundError:
        raise InputError(
            f"The connection {conn_id!r} has an auth_type that Airflow's own provider reads."
            " Run: pip install apache-airflow-providers-openai"
        ) from None
    return OpenAIHook(conn_id)


def _async_client(connection: Connection) -> Any:
    """The twin of the hook's synchronous client: its own asynchronous one can only be had on an event loop."""
    from openai import AsyncOpenAI

    opened = _hook(connection.conn_id).get_conn()
    options = {
        name: value
        for name, value in connection.extra_dejson.get("openai_client_kwargs", {}).items()
        if name not in ("api_key", "base_url")
    }
    return AsyncOpenAI(workload_identity=opened.workload_identity, base_url=str(opened.base_url), **options)
