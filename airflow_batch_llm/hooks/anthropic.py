"""Connections of the type `anthropic`, as the official hook reads them.

A key and a host need no hook. The other platforms and workload identity do: the hook opens their clients.
"""

from collections.abc import Coroutine, Mapping
from typing import Any

from airflow.sdk import Connection

from airflow_batch_llm.errors import InputError
from airflow_batch_llm.hooks.access import base_url, is_insecure_allowed
from airflow_batch_llm.providers.base import Access


def anthropic_access(connection: Connection, hook_params: Mapping[str, Any]) -> Access:
    """`hook_params` and the extra's `anthropic_client_kwargs` are options of the SDK's client."""
    extra = connection.extra_dejson
    if (extra.get("platform") or "anthropic").lower() == "anthropic" and not extra.get("workload_identity"):
        options = {**extra.get("anthropic_client_kwargs", {}), **hook_params}
        return Access(
            api_key=options.pop("api_key", None) or connection.password or None,
            base_url=options.pop("base_url", None) or base_url(connection),
            options=options,
            allow_insecure=is_insecure_allowed(connection),
        )
    if hook_params:
        raise InputError(
            f"llm_hook_params have no effect on the connection {connection.conn_id!r}, whose client the official hook"
            " opens. Put them into its extra as anthropic_client_kwargs."
        )
    return Access(
        allow_insecure=is_insecure_allowed(connection),
        client=lambda: _hook(connection.conn_id).get_conn(),
        async_client=lambda: _async_client(connection.conn_id),
    )


def _hook(conn_id: str) -> Any:
    try:
        from airflow.providers.anthropic.hooks.anthropic import AnthropicHook
    except ModuleNotFoundError:
        raise InputError(
            f"The connection {conn_id!r} names a platform or a workload identity, which Airflow's own provider opens."
            " Run: pip install apache-airflow-providers-anthropic"
        ) from None
    return AnthropicHook(conn_id)


def _async_client(conn_id: str) -> Any:
    hook = _hook(conn_id)
    _ = hook.platform  # looks the connection up here, in a thread, so that nothing below has to wait
    return _completed(hook.get_async_conn())


def _completed(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never waits. An event loop of its own would refuse Airflow's blocking calls."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise RuntimeError("Airflow's hook waits for something while it opens a client.")
