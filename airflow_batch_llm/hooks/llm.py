"""From an Airflow connection to a provider.

The connection's type may be the vendor's own (`anthropic`, `openai`, `google_cloud_platform`), one of common.ai's, or
any other that holds a key and a host. What only an official hook knows to open (workload identity, other platforms) is
opened by that hook.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from airflow.sdk import Connection

from airflow_batch_llm.errors import InputError
from airflow_batch_llm.hooks.access import check_secrets, find_connection, plain_access
from airflow_batch_llm.hooks.anthropic import anthropic_access
from airflow_batch_llm.hooks.arguments import check_provider_params
from airflow_batch_llm.hooks.google import google_access, pydantic_vertex_access
from airflow_batch_llm.hooks.openai import openai_access
from airflow_batch_llm.providers import check_name, connect, known_names
from airflow_batch_llm.providers.base import Access, Provider
from airflow_batch_llm.providers.routed import routed

OpenAccess = Callable[[Connection, Mapping[str, Any]], Access]

#: Connection type -> the provider that it is for (None: any) and what opens it. Other types hold a key and a host.
_TYPES: Mapping[str, tuple[str | None, OpenAccess]] = MappingProxyType(
    {
        "anthropic": ("anthropic", anthropic_access),
        "openai": ("openai", openai_access),
        "google_cloud_platform": ("vertex", google_access),
        "pydanticai": (None, plain_access),
        "pydanticai_vertex": ("vertex", pydantic_vertex_access),
    }
)

#: common.ai's types for platforms that none of our providers reaches.
_UNSERVED = frozenset({"pydanticai_azure", "pydanticai_bedrock", "pydanticai_snowflake"})

_DEFAULT_CONN_IDS = MappingProxyType({"vertex": "google_cloud_default"})


def split_model_id(model_id: str) -> tuple[str, str]:
    """Return the provider and the model of a `model_id`. Raises `InputError` for an unknown provider."""
    provider, colon, model = model_id.partition(":")
    if not (provider and colon and model):
        known = ", ".join(known_names())
        raise InputError(
            f"model_id={model_id!r} must read '<provider>:<model>', with a provider such as {known};"
            " for example 'anthropic:claude-haiku-4-5'."
        )
    check_name(provider)
    return provider, model


def default_conn_id(provider: str) -> str:
    """The connection that is used where none is named: the one that the official hook uses."""
    return _DEFAULT_CONN_IDS.get(provider, f"{provider}_default")


def llm_provider(
    llm_conn_id: str | None,
    model_id: str,
    hook_params: Mapping[str, Any] | None = None,
    others: Mapping[str, Mapping[str, Any]] | None = None,
) -> Provider:
    """The provider behind a connection. It looks the connection up, and so blocks; no SDK is imported yet.

    `others`: `model_id` and `llm_conn_id` of the routes that have connections of their own, by name.
    """
    own = _provider(llm_conn_id, model_id, hook_params)
    return routed(
        own,
        {via: _provider(one["llm_conn_id"], one["model_id"], None) for via, one in (others or {}).items()},
    )


def _provider(llm_conn_id: str | None, model_id: str, hook_params: Mapping[str, Any] | None) -> Provider:
    name, _ = split_model_id(model_id)
    argument = "llm_conn_id" if llm_conn_id else "llm_conn_id (not given, so the default)"
    connection = find_connection(llm_conn_id or default_conn_id(name), argument)
    serves, open_access = _TYPES.get(connection.conn_type or "", (None, plain_access))
    if connection.conn_type in _UNSERVED or serves not in (None, name):
        raise InputError(
            f"The connection {connection.conn_id!r} of type {connection.conn_type!r} does not lead to {name!r},"
            f" which model_id={model_id!r} asks for. Name another llm_conn_id or another model_id."
        )
    check_provider_params(name, hook_params)
    check_secrets(connection)
    return connect(name, open_access(connection, hook_params or {}))
