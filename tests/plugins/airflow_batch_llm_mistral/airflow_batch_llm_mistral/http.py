"""Clients of httpx that a key may be given to, and what their errors mean."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from airflow_batch_llm.errors import InputError, ProviderError
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.providers.failures import (
    CallFailure,
    VendorCodes,
    asked_to_wait,
    detail,
    judge,
    secrets_sent,
    unanswered,
    word,
)
from airflow_batch_llm.providers.incoming import ENCODINGS, bound_client
from airflow_batch_llm.providers.reach import check_base_url, keep_to

VENDOR = VendorCodes(name="Mistral", no_money=frozenset())
URL = "https://api.mistral.ai"

_OPTIONS = frozenset({"base_url", "default_headers", "timeout"})


def url_of(access: Access) -> str:
    """The root of the API."""
    return str(access.options.get("base_url") or access.base_url or URL).rstrip("/")


def host_of(access: Access) -> str | None:
    """The host that answers, where it is not Mistral's own."""
    host = urlsplit(url_of(access)).hostname
    return None if host == urlsplit(URL).hostname else host


def open_client(access: Access) -> Any:
    """A new synchronous client."""
    import httpx

    def check(response: httpx.Response) -> None:
        if response.is_error:
            response.read()
            response.raise_for_status()

    return _kept(httpx.Client(**_arguments(access)), access, check)


def open_async_client(access: Access) -> Any:
    """A new asynchronous client."""
    import httpx

    async def check(response: httpx.Response) -> None:
        if response.is_error:
            await response.aread()
            response.raise_for_status()

    return _kept(httpx.AsyncClient(**_arguments(access)), access, check)


def _kept(client: Any, access: Access, check: Any) -> Any:
    bound_client(client)
    keep_to(client, url_of(access))
    hooks = client.event_hooks
    client.event_hooks = {**hooks, "response": [*hooks["response"], check]}
    return client


def _arguments(access: Access) -> dict[str, Any]:
    if unknown := access.options.keys() - _OPTIONS:
        raise InputError(
            f"Mistral's client does not take {', '.join(sorted(unknown))}. It takes {', '.join(sorted(_OPTIONS))}."
        )
    if not access.api_key:
        raise InputError("There is no key for Mistral. Put it into the connection's password.")
    check_base_url(url_of(access), allow_insecure=access.allow_insecure)
    headers = {"Authorization": f"Bearer {access.api_key}", **(access.options.get("default_headers") or {})}
    return {
        "base_url": url_of(access),
        "headers": {**headers, "Accept-Encoding": ENCODINGS},
        "timeout": access.options.get("timeout", 60.0),
        "follow_redirects": True,
    }


def status_in(error: BaseException) -> int | None:
    """The status of an answer that was an error."""
    response = getattr(error, "response", None)
    return None if response is None else response.status_code


def judged(error: Exception, *, creating: bool = False) -> Exception:
    """An error of httpx in the package's tree; another's as it is."""
    import httpx

    if isinstance(error, ProviderError):
        return error
    if isinstance(error, httpx.HTTPStatusError):
        return judge(_answered(error), VENDOR, creating=creating)
    if isinstance(error, (httpx.TransportError, httpx.InvalidURL, UnicodeError)):
        return judge(unanswered(error), VENDOR, creating=creating)
    return error


def judged_creation(error: Exception) -> Exception:
    """The same for a creation."""
    return judged(error, creating=True)


def _answered(error: Any) -> CallFailure:
    response = error.response
    try:
        body = response.json()
    except ValueError:
        body = {}
    said: Mapping[str, Any] = body if isinstance(body, Mapping) else {}
    secrets = secrets_sent(error)
    return CallFailure(
        status=response.status_code,
        code=word(said.get("type") or said.get("code"), secrets),
        message=detail(said.get("message") or "", secrets),
        retry_after=asked_to_wait(response.headers),
    )
