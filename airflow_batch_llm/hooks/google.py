"""Google's connections for Vertex: whose credentials, which project, and where requests are staged.

`staging`, `location`, `project` and `base_url` may stand in the connection's extra; `hook_params` win over them.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from airflow.sdk import Connection

from airflow_batch_llm.errors import MissingExtra
from airflow_batch_llm.hooks.access import is_insecure_allowed
from airflow_batch_llm.providers.base import Access

_OPTIONS = ("staging", "location", "project", "base_url")


def google_access(connection: Connection, hook_params: Mapping[str, Any]) -> Access:
    """Credentials and project through the official hook, with its impersonation and its secrets."""
    options = _options(connection, hook_params)
    url = options.pop("base_url", None)
    if url is None or (urlsplit(url).hostname or "").endswith(".googleapis.com"):
        credentials, project = _hook(connection, hook_params).get_credentials_and_project_id()
        options = {"project": project, **options, "credentials": credentials}
    return Access(base_url=url, options=options, allow_insecure=is_insecure_allowed(connection))


def pydantic_vertex_access(connection: Connection, hook_params: Mapping[str, Any]) -> Access:
    """common.ai's connection: project and location; the credentials are the environment's."""
    options = _options(connection, hook_params)
    url = options.pop("base_url", None)
    return Access(base_url=url, options=options, allow_insecure=is_insecure_allowed(connection))


def _options(connection: Connection, hook_params: Mapping[str, Any]) -> dict[str, Any]:
    extra = connection.extra_dejson
    long = {name: extra.get(f"extra__google_cloud_platform__{name}") for name in _OPTIONS}
    found = {name: hook_params.get(name) or extra.get(name) or long[name] for name in _OPTIONS}
    return {name: value for name, value in found.items() if value}


def _hook(connection: Connection, hook_params: Mapping[str, Any]) -> Any:
    try:
        from airflow.providers.google.common.hooks.base_google import GoogleBaseHook
    except ModuleNotFoundError as error:
        raise MissingExtra("The provider 'vertex'", "google", error) from error
    return GoogleBaseHook(
        gcp_conn_id=connection.conn_id, impersonation_chain=hook_params.get("impersonation_chain")
    )
