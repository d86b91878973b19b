"""The table of providers by name: the module of each, the extra that installs it, and the loggers of its SDK."""

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import NamedTuple

from airflow_batch_llm.errors import InputError, MissingExtra
from airflow_batch_llm.providers.base import Access, Provider


class OwnProvider(NamedTuple):
    """A provider that this package brings."""

    module: str
    adapter: str
    """Name of the adapter's class in the module."""
    extra: str
    """Extra that installs its SDK."""
    loggers: tuple[str, ...]
    """Loggers below which its SDK logs keys, prompts and answers. Shared HTTP clients are known already."""


#: Others register in the entry-point group of the same name.
PROVIDERS: Mapping[str, OwnProvider] = MappingProxyType(
    {
        "anthropic": OwnProvider(
            "airflow_batch_llm.providers.anthropic", "AnthropicProvider", "anthropic", ("anthropic",)
        ),
        "openai": OwnProvider("airflow_batch_llm.providers.openai", "OpenAIProvider", "openai", ("openai",)),
        "vertex": OwnProvider(
            "airflow_batch_llm.providers.vertex",
            "VertexProvider",
            "google",
            ("google", "google_auth_httplib2", "google_genai", "googleapiclient"),
        ),
    }
)

ENTRY_POINT_GROUP = "airflow_batch_llm.providers"


def connect(name: str, access: Access) -> Provider:
    """Return the adapter of this name. Raises `MissingExtra` where its SDK is not installed."""
    if name in PROVIDERS:
        own = PROVIDERS[name]
        try:
            factory = getattr(import_module(own.module), own.adapter)
            provider: Provider = factory(access)
        except ModuleNotFoundError as error:
            raise MissingExtra(f"The provider {name!r}", own.extra, error) from error
        return provider
    for entry_point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        provider = entry_point.load()(access)
        return provider
    raise InputError(_unknown(name))


def known_names() -> list[str]:
    """Return the names of all providers, those of installed plug-ins included. Imports no provider."""
    return sorted({*PROVIDERS, *entry_points(group=ENTRY_POINT_GROUP).names})


def check_name(name: str) -> None:
    """Raise `InputError` if no provider has this name. Imports no provider."""
    if name not in PROVIDERS and not entry_points(group=ENTRY_POINT_GROUP, name=name):
        raise InputError(_unknown(name))


def _unknown(name: str) -> str:
    known = known_names()
    close = get_close_matches(name, known, n=1)
    meant = f" Is it {close[0]!r}?" if close else ""
    return f"No provider is called {name!r}.{meant} A model_id reads '<provider>:<model>', with one of: {', '.join(known)}."
