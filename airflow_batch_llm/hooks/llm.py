"""Build a provider from an Airflow connection.

The connection's type may be the vendor's own (`anthropic`, `openai`, `google_cloud_platform`), one of common.ai's, or
any other. Any other type holds a key as the password, and a host if it differs from the vendor's. Connections that only
an official hook can open (workload identity, other platforms) are opened by that hook. Of Google's connections,
`staging`, `location`, `project` and `base_url` may be in the extra; `hook_params` win over them.
"""

from collections.abc import Callable, Coroutine, Iterator, Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from airflow.providers.common.compat.sdk import AirflowNotFoundException, conf
from airflow.sdk import BaseHook, Connection

from airflow_batch_llm.errors import InputError, MissingExtra
from airflow_batch_llm.hooks.arguments import check_provider_params
from airflow_batch_llm.providers import check_name, connect, known_names
from airflow_batch_llm.providers.base import Access, Provider, is_sendable
from airflow_batch_llm.providers.routed import routed

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
    """Take a key and a host from a connection. `hook_params` are options of the SDK's client."""
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
    """Return the connection's host as the URL that SDKs want."""
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
    """Yield each text in nested mappings, with the path to it."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _texts(part, f"{name}.{key}".lstrip("."))


def anthropic_access(connection: Connection, hook_params: Mapping[str, Any]) -> Access:
    """Take Anthropic's access from a connection. `hook_params` and `anthropic_client_kwargs` are options of the SDK's client."""
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
        client=lambda: _anthropic_hook(connection.conn_id).get_conn(),
        async_client=lambda: _anthropic_async_client(connection.conn_id),
    )


def _anthropic_hook(conn_id: str) -> Any:
    try:
        from airflow.providers.anthropic.hooks.anthropic import AnthropicHook
    except ModuleNotFoundError:
        raise InputError(
            f"The connection {conn_id!r} names a platform or a workload identity, which Airflow's own provider opens."
            " Run: pip install apache-airflow-providers-anthropic"
        ) from None
    return AnthropicHook(conn_id)


def _anthropic_async_client(conn_id: str) -> Any:
    hook = _anthropic_hook(conn_id)
    _ = hook.platform  # looks the connection up here, in a thread, so that nothing below has to wait
    return _completed(hook.get_async_conn())


def _completed(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Return the result of a coroutine that never waits. On an event loop Airflow would refuse its blocking calls."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise RuntimeError("Airflow's hook waits for something while it opens a client.")


def openai_access(connection: Connection, hook_params: Mapping[str, Any]) -> Access:
    """Take OpenAI's access from a connection.

    `hook_params` and `openai_client_kwargs` are options of the client or the provider.
    """
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
        client=lambda: _openai_hook(connection.conn_id).get_conn(),
        async_client=lambda: _openai_async_client(connection),
    )


def _openai_hook(conn_id: str) -> Any:
    try:
        from airflow.providers.openai.hooks.openai import OpenAIHook
    except ModuleNotFoundError:
        raise InputError(
            f"The connection {conn_id!r} has an auth_type that Airflow's own provider reads."
            " Run: pip install apache-airflow-providers-openai"
        ) from None
    return OpenAIHook(conn_id)


def _openai_async_client(connection: Connection) -> Any:
    """Return an asynchronous client like the hook's synchronous one. The hook makes its own only on an event loop."""
    from openai import AsyncOpenAI

    opened = _openai_hook(connection.conn_id).get_conn()
    options = {
        name: value
        for name, value in connection.extra_dejson.get("openai_client_kwargs", {}).items()
        if name not in ("api_key", "base_url")
    }
    return AsyncOpenAI(workload_identity=opened.workload_identity, base_url=str(opened.base_url), **options)


_OPTIONS = ("staging", "location", "project", "base_url")


def google_access(connection: Connection, hook_params: Mapping[str, Any]) -> Access:
    """Take credentials and project from the official hook, with its impersonation and its secrets."""
    options = _google_options(connection, hook_params)
    url = options.pop("base_url", None)
    if url is None or (urlsplit(url).hostname or "").endswith(".googleapis.com"):
        credentials, project = _google_hook(connection, hook_params).get_credentials_and_project_id()
        options = {"project": project, **options, "credentials": credentials}
    return Access(base_url=url, options=options, allow_insecure=is_insecure_allowed(connection))


def pydantic_vertex_access(connection: Connection, hook_params: Mapping[str, Any]) -> Access:
    """Take project and location from common.ai's connection. The credentials are the environment's."""
    options = _google_options(connection, hook_params)
    url = options.pop("base_url", None)
    return Access(base_url=url, options=options, allow_insecure=is_insecure_allowed(connection))


def _google_options(connection: Connection, hook_params: Mapping[str, Any]) -> dict[str, Any]:
    extra = connection.extra_dejson
    long = {name: extra.get(f"extra__google_cloud_platform__{name}") for name in _OPTIONS}
    found = {name: hook_params.get(name) or extra.get(name) or long[name] for name in _OPTIONS}
    return {name: value for name, value in found.items() if value}


def _google_hook(connection: Connection, hook_params: Mapping[str, Any]) -> Any:
    try:
        from airflow.providers.google.common.hooks.base_google import GoogleBaseHook
    except ModuleNotFoundError as error:
        raise MissingExtra("The provider 'vertex'", "google", error) from error
    return GoogleBaseHook(
        gcp_conn_id=connection.conn_id, impersonation_chain=hook_params.get("impersonation_chain")
    )


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

#: common.ai's types for platforms that no provider of this package reaches.
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
    """Return the default connection, which is that of the official hook."""
    return _DEFAULT_CONN_IDS.get(provider, f"{provider}_default")


def llm_provider(
    llm_conn_id: str | None,
    model_id: str,
    hook_params: Mapping[str, Any] | None = None,
    others: Mapping[str, Mapping[str, Any]] | None = None,
) -> Provider:
    """Return the provider behind a connection. It looks the connection up, and so blocks; no SDK is imported yet.

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
