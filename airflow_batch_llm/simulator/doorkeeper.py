"""Turns away what a web page could make a browser send, and control calls without the key.

A page on any site can reach loopback: by a name that it points there later (DNS rebinding), or by a plain request to
another origin. The first shows in `Host`, the second in `Origin`.
"""

import ipaddress
import secrets
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from airflow_batch_llm.simulator.settings import Settings


def is_loopback(host: str | None) -> bool:
    """Return whether a host name or address can only mean this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


class Doorkeeper:
    """Stands before the whole application."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            status, reason = refusal
            await JSONResponse({"error": reason}, status_code=status)(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._settings.allow_remote and not is_loopback(_hostname(f"//{host}")):
            return 403, "The Host header does not name this machine. Start the simulator with --allow-remote."
        if origin is not None and _netloc(origin) != host:
            return 403, "The simulator takes no calls from web pages of another origin."
        if scope["path"].startswith("/control") and not has_key(headers, self._settings.api_key):
            return 401, "The control endpoints want the simulator's key, as `Authorization: Bearer …`."
        return None


def has_key(headers: Headers, wanted: str | None) -> bool:
    """Return whether a call has the key, in any of the vendors' headers, or needs none."""
    if wanted is None:
        return True
    bearer = headers.get("authorization", "").removeprefix("Bearer ")
    given = bearer or headers.get("x-api-key") or headers.get("x-goog-api-key") or ""
    return secrets.compare_digest(given.encode(), wanted.encode())


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:  # not a URL, such as an address with a bracket that is not closed
        return None


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""
