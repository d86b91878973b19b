"""Decide which addresses may receive a key and rows: those that the user named, encrypted, and no other.

A redirect to another host gets no body and no key, or a gateway could send both anywhere.

All HTTP clients of a process share one TLS context. Making one reads all certificates: 30 ms and 0.8 MB. A client that
gets the shared one opens in 0.2 ms.
"""

import asyncio
import ipaddress
import os
import ssl
import sys
import threading
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from airflow_batch_llm.errors import InputError, Refused

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PORTS = {"http": 80, "https": 443}
_METADATA_HOSTS = frozenset({"metadata", "metadata.google.internal", "instance-data"})

#: The headers that a request keeps when it is sent on to another host.
_KEPT_HEADERS = frozenset({"accept", "accept-encoding", "connection", "host", "user-agent"})


def check_base_url(url: str, *, allow_insecure: bool) -> None:
    """Refuse a base URL that would send keys and rows unencrypted, or that cannot be a vendor's."""
    parts = _split(url)
    if parts is None or parts.scheme not in _PORTS or not parts.hostname:
        raise InputError(
            "The base URL is no URL of the form https://host/path. Look at the connection's host."
        )
    if parts.username or parts.password:
        raise InputError(
            f"The base URL of {parts.hostname} holds a user or a password, which would stand in logs. Put the key into"
            " the connection's password."
        )
    if allow_insecure:
        return
    advice = (
        "If that is meant, say so: allow_insecure_base_url in the connection's extra (true), in the provider section of a"
        " spec file, or in [batch_llm] of Airflow's configuration."
    )
    if _is_metadata(parts.hostname):
        raise InputError(f"The base URL leads to {parts.hostname}, where a cloud keeps credentials. {advice}")
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        raise InputError(
            f"The base URL leads to {parts.hostname} over http://, so the key and all prompts would travel unencrypted."
            f" Use https://. {advice}"
        )


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_metadata(host: str) -> bool:
    if host.rstrip(".") in _METADATA_HOSTS:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    return mapped.is_link_local or address == ipaddress.ip_address("fd00:ec2::254")


def is_trusted(url: str, base: str) -> bool:
    """Return whether a message for `base` may go to this URL: the same host and port, or its encrypted twin."""
    there, here = urlsplit(url), urlsplit(base)
    if there.hostname != here.hostname:
        return False
    if (there.scheme, here.scheme) == ("https", "http"):
        return _port(there) in (443, _port(here))
    return there.scheme == here.scheme and _port(there) == _port(here)


def _port(parts: SplitResult) -> int | None:
    return parts.port or _PORTS.get(parts.scheme)


def refuse_redirect(method: str, url: str, status: int, location: str | None) -> None:
    """Raise `Refused` for a redirect that would carry a body to another host."""
    if status not in _REDIRECTS or not location or method.upper() in ("GET", "HEAD"):
        return
    target = urljoin(url, location)
    if is_trusted(target, url):
        return
    refused = Refused(
        f"{urlsplit(url).hostname} redirects to {urlsplit(target).hostname}, and neither a key nor a row is sent to a host"
        " that the connection does not name. If that host is the right one, name it in the connection."
    )
    refused.status = status
    raise refused


def keep_to(http_client: Any, base: str) -> None:
    """Hold an SDK's httpx or httpx2 client to the host of `base`, redirects included."""
    hooks = http_client.event_hooks
    is_async = hasattr(http_client, "aclose")
    request, response = (_awaited(_strip(base)), _awaited(_check)) if is_async else (_strip(base), _check)
    http_client.event_hooks = {
        **hooks,
        "request": [*hooks.get("request", ()), request],
        "response": [*hooks.get("response", ()), response],
    }


def keep_session(session: Any) -> None:
    """Hold a `requests` session of Google's clients to the host, too. It drops the key on a redirect by itself."""

    def check(response: Any, **_: Any) -> None:
        request = response.request
        try:
            refuse_redirect(
                request.method, request.url, response.status_code, response.headers.get("location")
            )
        except Refused:
            response.close()
            raise

    session.hooks["response"].append(check)


def _strip(base: str) -> Callable[[Any], None]:
    def strip(request: Any) -> None:
        if not is_trusted(str(request.url), base):
            for name in list(request.headers):
                if name.lower() not in _KEPT_HEADERS:
                    del request.headers[name]

    return strip


def _check(response: Any) -> None:
    request = response.request
    refuse_redirect(request.method, str(request.url), response.status_code, response.headers.get("location"))


def _awaited(hook: Callable[[Any], None]) -> Callable[[Any], Any]:
    async def awaited(message: Any) -> None:
        hook(message)

    return awaited


#: The variables by which a user names other certificates.
_NAMES = ("SSL_CERT_FILE", "SSL_CERT_DIR")

_contexts: dict[str, tuple[object, ssl.SSLContext]] = {}  # by library, with what the environment said
_one_at_a_time = threading.Lock()


def with_shared_tls(sdk: ModuleType, options: Mapping[str, Any], *, is_async: bool) -> dict[str, Any]:
    """Return options for a client of an SDK, with the SDK's own HTTP client on the shared context.

    An HTTP client that the user has given stays.
    """
    if options.get("http_client") is not None:
        return dict(options)
    kind = sdk.DefaultAsyncHttpxClient if is_async else sdk.DefaultHttpxClient
    library = next(base.__module__ for base in kind.__mro__ if base.__module__.startswith("httpx"))
    context = shared_context(sys.modules[library.partition(".")[0]])
    return {**options, "http_client": _closing(kind)(verify=context)}


@lru_cache(None)
def _closing(kind: type[Any]) -> type[Any]:
    """Return a class of HTTP client that is closed when no object holds it any more, as the SDK's own are."""

    class Closing(kind):  # type: ignore[misc]  # of a library that is loaded only when used
        def __del__(self) -> None:
            try:
                if not self.is_closed and hasattr(self, "aclose"):
                    asyncio.get_running_loop().create_task(self.aclose())
                elif not self.is_closed:
                    self.close()
            except Exception:  # noqa: BLE001 - also where the interpreter ends, and has let go of this module's names
                return

    return Closing


def shared_context(library: ModuleType) -> ssl.SSLContext:
    """Return the TLS context that httpx or httpx2 makes by default.

    It is made again when the environment names other certificates, or their file has changed.
    """
    environment = tuple((os.environ.get(name), _changed_at(name)) for name in _NAMES)
    with _one_at_a_time:
        known = _contexts.get(library.__name__)
        if known is not None and known[0] == environment:
            return known[1]
        made: ssl.SSLContext = library.create_ssl_context()
        # Truststore's context reads the system's certificates again for each connection, and keeps them all.
        if not type(made).__module__.startswith("truststore"):
            _contexts[library.__name__] = (environment, made)
        return made


def _changed_at(name: str) -> int:
    try:
        return Path(os.environ.get(name, "")).stat().st_mtime_ns
    except OSError:
        return 0
