"""What may be kept of a vendor's words: no key, no header's value, no echo of the request.

A gateway may repeat in its error whatever it was sent: the key, other headers, the prompt. Each provider passes a
vendor's text through here once, where the vendor's error becomes one of ours.
"""

import json
import re
from base64 import b64decode
from binascii import Error as NotBase64
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, urlsplit

from airflow_batch_llm.core.model import Result
from airflow_batch_llm.errors import ProviderError

E = TypeVar("E", bound=ProviderError)

_LONGEST = 300
_SHORTEST_SECRET = 6
_PREFIX = 16

_REDACTED = "[redacted]"

#: Headers whose values are no secret, and may be words of an ordinary sentence.
_HARMLESS = frozenset(
    {
        "accept", "accept-encoding", "accept-language", "anthropic-beta", "anthropic-version", "connection",
        "content-encoding", "content-length", "content-type", "expect", "host", "openai-beta", "retry-after",
        "transfer-encoding", "user-agent", "x-goog-api-client", "x-goog-request-params", "x-goog-user-project",
    }
)  # fmt: skip
_HARMLESS_PREFIX = "x-stainless-"

#: Keys as vendors make them. What a first group matches is kept.
_SHAPES = (
    re.compile(r"()\b(?:sk|pk|rk|gsk|xai|key)[-_][A-Za-z0-9_-]{12,}"),
    re.compile(r"()\b(?:AIza[A-Za-z0-9_-]{20,}|ya29\.[\w.-]+|eyJ[\w-]{8,}\.[\w.-]+)"),
    re.compile(r"(?i)\b((?:bearer|basic)\s+)(?=\S*\d)[^\s\"',;}]{8,}"),
    re.compile(
        r"(?i)((?:authorization|api[-_ ]?key|cookie|secret|passw(?:or)?d|(?:access|auth|bearer|id|refresh)[-_]token)"
        r"\\*[\"']?\s*[:=]\s*\\*[\"']?(?:(?:bearer|basic)\s+)?)(?!\[redacted\])[^\s\"',;}\\]{4,}"
    ),
)
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_ECHOED_JSON = re.compile(r"[{\[]\s*\\*[\"'{\[].*", re.DOTALL)
_LONG_QUOTE = re.compile(r"(['\"`])(?:(?!\1).){60,}\1", re.DOTALL)


def saying(error: E, *, status: int | None, detail: str = "") -> E:
    """The error with the vendor's status and, for logs only, the vendor's words."""
    error.status = status
    error.detail = detail
    return error


def word(text: object, secrets: Iterable[str] = ()) -> str:
    """A vendor's code, or "" if it is not a single short word: only such a one may travel in messages."""
    found = redacted(str(text or ""), secrets)
    return found if _WORD.fullmatch(found) else ""


def detail(text: object, secrets: Iterable[str] = ()) -> str:
    """A vendor's words for a log: one short line, without secrets and without what it echoes of a request."""
    found = redacted(str(text or ""), secrets)
    found = _LONG_QUOTE.sub("'…'", _ECHOED_JSON.sub("{…}", found))
    printable = "".join(char if char.isprintable() else " " for char in found)
    line = " ".join(printable.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


def without(result: Result, secrets: Iterable[str]) -> Result:
    """A row's result whose message holds none of these secrets."""
    if not result.error_message:
        return result
    return result._replace(error_message=redacted(result.error_message, secrets))


def redacted(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without these secrets, in any usual escape, and without anything that has the shape of a key."""
    for secret in sorted(secrets, key=len, reverse=True):
        for form in {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], quote(secret, safe="")}:
            text = text.replace(form, _REDACTED)
        if len(secret) > _PREFIX:  # some echo only how it begins
            text = re.sub(re.escape(secret[:_PREFIX]) + r"\S*", _REDACTED, text)
    for shape in _SHAPES:
        text = shape.sub(rf"\1{_REDACTED}", text)
    return text


def secrets_sent(error: BaseException) -> frozenset[str]:
    """The secrets of the request that an SDK's error is about: its headers, and keys in its URL."""
    found: set[str] = set()
    for request in _requests(error):
        headers = getattr(request, "headers", None)
        if headers is not None:
            found.update(secrets_in(headers))
        found.update(_secrets_of_url(str(getattr(request, "url", "") or "")))
    return frozenset(value for value in found if len(value) >= _SHORTEST_SECRET)


def secrets_in(headers: Mapping[str, Any]) -> Iterator[str]:
    """The values of headers that are not known to be harmless, and their parts."""
    for name, value in headers.items():
        lower = _text(name).lower()
        if lower in _HARMLESS or lower.startswith(_HARMLESS_PREFIX):
            continue
        whole = _text(value)
        scheme, _, rest = whole.partition(" ")
        yield from (whole, rest)
        if scheme.lower() == "basic":
            yield from _user_and_password(rest)


def _requests(error: BaseException) -> Iterator[Any]:
    """The request, wherever the libraries keep it."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("request", "request_info"):
            try:
                request = getattr(holder, name, None)
            except RuntimeError:  # httpx's response without one
                continue
            if request is not None:
                yield request


def _secrets_of_url(url: str) -> Iterator[str]:
    parts = urlsplit(url)
    yield from filter(None, (parts.username, parts.password))
    for name, value in parse_qsl(parts.query):
        if re.search(r"(?i)key|token|sig|secret", name):
            yield value


def _user_and_password(encoded: str) -> Iterator[str]:
    try:
        yield from b64decode(encoded, validate=True).decode(errors="replace").split(":", 1)
    except NotBase64:
        return


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
