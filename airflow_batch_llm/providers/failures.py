"""Read what a failed HTTP call to a vendor means.

`GeneratedSdk` reads the SDKs of one generator, Anthropic's and OpenAI's.

A failed creation of a batch may have created it all the same: a lost answer, or one without a verdict, leaves that
open. To say "no" then would pay twice.
"""

import json
import re
import time
from base64 import b64decode
from binascii import Error as NotBase64
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import ModuleType
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, urlsplit

from airflow_batch_llm.core.model import Result
from airflow_batch_llm.errors import (
    FileRefused,
    Later,
    MissingExtra,
    ProviderError,
    Refused,
    Unavailable,
    UnknownFate,
    raise_alone,
)
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.providers.imports import import_sparingly

E = TypeVar("E", bound=ProviderError)

_LONGEST = 300
#: The most characters of a message about a row that are kept.
MESSAGE_LENGTH = 500
_SHORTEST_SECRET = 6
_PREFIX = 16

_REDACTED = "[redacted]"

#: Headers whose values are not secret, and may be ordinary words.
_HARMLESS = frozenset(
    {
        "accept", "accept-encoding", "accept-language", "anthropic-beta", "anthropic-version", "connection",
        "content-encoding", "content-length", "content-type", "expect", "host", "openai-beta", "retry-after",
        "transfer-encoding", "user-agent", "x-goog-api-client", "x-goog-request-params", "x-goog-user-project",
    }
)  # fmt: skip
_HARMLESS_PREFIX = "x-stainless-"

#: The forms of vendors' keys. The text that a first group matches is kept.
_SHAPES = (
    re.compile(r"()\b(?:sk|pk|rk|gsk|xai|key)[-_][A-Za-z0-9_-]{12,}"),
    re.compile(r"()\b(?:AIza[A-Za-z0-9_-]{20,}|ya29\.[\w.-]+|eyJ[\w-]{8,}\.[\w.-]+)"),
    re.compile(r"(?i)\b((?:bearer|basic)\s+)(?=\S*\d)[^\s\"',;}]{8,}"),
    re.compile(
        r"(?i)((?:authorization|api[-_ ]?key|cookie|secret|passw(?:or)?d|(?:access|auth|bearer|id|refresh)[-_]token)"
        r"\\*[\"']?\s*[:=]\s*\\*[\"']?(?:(?:bearer|basic)\s+)?)(?!\[redacted\])[^\s\"',;}\\]{4,}"
    ),
)
#: URIs, which a vendor may quote from a row. A signed URI opens the file to everyone who has it.
_URI = re.compile(r"(?i)\b(?:https?|gcs|gs|s3a?|abfss?|az)://[^\s\"'`<>\\]+|\bdata:[\w.+/-]*;base64,[\w+/=]*")
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_ECHOED_JSON = re.compile(r"[{\[]\s*\\*[\"'{\[].*", re.DOTALL)
_LONG_QUOTE = re.compile(r"(['\"`])(?:(?!\1).){60,}\1", re.DOTALL)


def saying(error: E, *, status: int | None, detail: str = "") -> E:
    """Return the error with the vendor's status and, for logs only, the vendor's words."""
    error.status = status
    error.detail = detail
    return error


def word(text: object, secrets: Iterable[str] = ()) -> str:
    """Return a vendor's code, or "" if it is not a single short word: only such a one may travel in messages."""
    found = redacted(str(text or ""), secrets)
    return found if _WORD.fullmatch(found) else ""


def detail(text: object, secrets: Iterable[str] = ()) -> str:
    """Return a vendor's words for a log: one short line, without secrets and without what it echoes of a request."""
    found = without_uris(redacted(str(text or ""), secrets))
    found = _LONG_QUOTE.sub("'…'", _ECHOED_JSON.sub("{…}", found))
    printable = "".join(char if char.isprintable() else " " for char in found)
    line = " ".join(printable.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


def without(result: Result, access: Access) -> Result:
    """Return a row's result with the connection's secrets taken out of its message."""
    if not result.error_message:
        return result
    return result._replace(error_message=redacted(result.error_message, access.secrets))


def redacted(text: str, secrets: Iterable[str] = ()) -> str:
    """Return the text without these secrets, in any usual escape, and without anything that looks like a key."""
    for secret in sorted(secrets, key=len, reverse=True):
        for form in {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], quote(secret, safe="")}:
            text = text.replace(form, _REDACTED)
        if len(secret) > _PREFIX:  # some echo only how it begins
            text = re.sub(re.escape(secret[:_PREFIX]) + r"\S*", _REDACTED, text)
    for shape in _SHAPES:
        text = shape.sub(rf"\1{_REDACTED}", text)
    return text


def without_uris(text: str) -> str:
    """Return the text without URIs and without data in base64, which may be attachments of a row."""
    return _URI.sub("[URI]", text)


def brief(message: object) -> str | None:
    """Return the part of a provider's message about a row that is kept, without keys and URIs. Returns None if there is none."""
    return without_uris(redacted(str(message)))[:MESSAGE_LENGTH] if message else None


def secrets_sent(error: BaseException) -> frozenset[str]:
    """Return the secrets of the request that an SDK's error is about: its headers, and keys in its URL."""
    found: set[str] = set()
    for request in _requests(error):
        headers = getattr(request, "headers", None)
        if headers is not None:
            found.update(secrets_in(headers))
        found.update(_secrets_of_url(str(getattr(request, "url", "") or "")))
    return frozenset(value for value in found if len(value) >= _SHORTEST_SECRET)


def secrets_in(headers: Mapping[str, Any]) -> Iterator[str]:
    """Yield the values of headers that are not known to be harmless, and their parts."""
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
    """Yield the request, wherever the libraries keep it."""
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


# The connection was never made, so nothing of the request was sent.
_NEVER_SENT = frozenset(
    {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"}
)


# The request could not be made: a header has a character that HTTP does not allow, or the URL is invalid.
_CANNOT_BE_SENT = frozenset({"InvalidURL", "LocalProtocolError", "UnicodeEncodeError", "UnsupportedProtocol"})


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorCodes:
    """The names that differ between two SDKs of the same generator."""

    name: str
    no_money: frozenset[str]  # codes that mean: a limit of spending is reached, which waiting does not heal
    full: frozenset[str] = frozenset()  # codes that mean: a quota of waiting work is full
    final: frozenset[str] = frozenset()  # codes of a 5xx that trying again does not heal
    no_money_words: re.Pattern[str] | None = (
        None  # the same as `no_money`, where the vendor has only words for it
    )

    def is_about_money(self, failure: "CallFailure") -> bool:
        """Return whether a limit of spending is reached, or the account has no credit: no request is answered then."""
        words = self.no_money_words
        return failure.code in self.no_money or bool(words and words.search(failure.message))


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFailure:
    """A failed call, in terms that do not depend on the SDK's release."""

    status: int | None  # None: no answer came
    code: str = ""  # the most specific word for the cause
    message: str = ""  # the vendor's words, without secrets
    retry_after: float | None = None
    sent: bool = True  # False: the connection never stood
    final: bool = False  # True: nothing was sent, and the same call cannot be sent later either


def failure_of(error: Exception, sdk: ModuleType) -> CallFailure | None:
    """Return the failure behind an SDK's exception, or None if it is not about a call to the provider."""
    if isinstance(error, sdk.APIConnectionError):
        return unanswered(error.__cause__ or error)
    if isinstance(error, UnicodeError):
        return unanswered(error)
    if isinstance(error, (ValueError, sdk.APIResponseValidationError)):
        return CallFailure(status=None, message="the answer is not JSON")
    if not isinstance(error, sdk.APIStatusError):
        return None
    # Anthropic's SDK keeps the whole body, OpenAI's only what is under "error".
    body: Any = error.body
    inner = body.get("error", body) if isinstance(body, dict) else body
    inner = inner if isinstance(inner, dict) else {"message": inner}
    details = inner.get("details")
    specific = details.get("error_code") if isinstance(details, dict) else None
    secrets = secrets_sent(error)
    return CallFailure(
        status=error.status_code,
        code=word(specific or inner.get("code") or inner.get("type"), secrets),
        message=detail(inner.get("message"), secrets),
        retry_after=asked_to_wait(error.response.headers),
    )


def unanswered(cause: BaseException) -> CallFailure:
    """Return the failure of a call without an answer. It keeps the system's messages only: a library's may quote a header."""
    kind = type(cause).__name__
    deeper: BaseException | None = cause
    while deeper is not None and not (isinstance(deeper, OSError) and deeper.strerror):
        deeper = deeper.__cause__ or deeper.__context__
    why = f": {deeper.strerror}" if isinstance(deeper, OSError) else ""
    return CallFailure(
        status=None,
        code=f"{kind}{why}",
        sent=kind not in _NEVER_SENT,
        final=kind in _CANNOT_BE_SENT,
    )


def asked_to_wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that the server asks to wait, from any of the headers that say it."""
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    wish = headers.get("retry-after")
    if wish is None or (seconds := _number(wish)) is not None:
        return None if wish is None else seconds
    try:
        return max(0.0, parsedate_to_datetime(wish).timestamp() - time.time())
    except ValueError:
        return None


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else max(0.0, float(text))
    except ValueError:
        return None


def judge(failure: CallFailure, vendor: VendorCodes, *, creating: bool = False) -> ProviderError:
    """Return the package's error for this failure."""
    return saying(_judged(failure, vendor, creating=creating), status=failure.status, detail=failure.message)


def _judged(failure: CallFailure, vendor: VendorCodes, *, creating: bool) -> ProviderError:
    words = failure.code.rstrip(".")
    said = f"{vendor.name} answered {failure.status or 'nothing'}: {words or 'no reason given'}"
    status = failure.status
    if failure.final:
        return Refused(
            f"The request to {vendor.name} cannot be sent ({words}). Check the URL, the key and the headers of the"
            " connection for characters that do not belong there."
        )
    if vendor.is_about_money(failure):
        return Refused(
            f"{said}. The account's limit of spending is reached, or it has no credit. Nothing more is sent, and what was"
            " answered is kept. Raise the limit or settle the bill at the vendor, then clear the task."
        )
    if status is None and not failure.sent:
        return Unavailable(f"{vendor.name} cannot be reached: {words}. Nothing was sent.")
    if status == 429:
        kind = Later if creating and failure.code in vendor.full else Unavailable
        return kind(said, retry_after=failure.retry_after)
    if status is None or status in (408, 409) or (status >= 500 and failure.code not in vendor.final):
        if creating:
            return UnknownFate(
                f"{said}. The batch may exist: it is searched for before anything is sent again."
            )
        return Unavailable(said, retry_after=failure.retry_after)
    advice = {401: _CHECK_KEY, 403: _CHECK_KEY, 413: " Make the shards smaller."}
    return Refused(said + "." + advice.get(status, ""))


#: Statuses by which a vendor refuses a single request, and no other.
_OF_ONE_REQUEST = frozenset({400, 404, 413, 422})


#: Statuses of a gateway that has given up on a call: the vendor may go on, and charge the answer.
FROM_A_GATEWAY = frozenset({408, 499, 502, 504, 520, 522, 524})


def judge_answer(failure: CallFailure, vendor: VendorCodes) -> ProviderError | None:
    """Return the error of a call in real time, or None if the vendor refuses this request alone."""
    if failure.status in _OF_ONE_REQUEST and not vendor.is_about_money(failure):
        return None
    is_cut = failure.status is None and failure.sent and not failure.final
    if is_cut or failure.status in FROM_A_GATEWAY:
        why = failure.code or failure.status or "it broke off"
        lost = f"{vendor.name} gave no answer ({why}). It may have been paid."
        return saying(UnknownFate(lost), status=failure.status, detail=failure.message)
    return judge(failure, vendor)


_CHECK_KEY = " Check the connection's key and what it may do."

#: Statuses by which a vendor refuses to store one file. 403 may also be about all files.
_OF_ONE_FILE = frozenset({400, 403, 413, 415, 422})
_FILE_ADVICE = {
    403: "Look what the connection's key may do, and how much the vendor stores.",
    413: "Make the attachment smaller.",
}


def file_refused(vendor: str, failure: CallFailure) -> FileRefused | None:
    """Return the error of a vendor that refuses to store this file, or None if the failure is not about the file."""
    if failure.status not in _OF_ONE_FILE:
        return None
    advice = _FILE_ADVICE.get(failure.status, "Look whether the attachment can be opened.")
    said = f"{vendor} answered {failure.status}: {failure.code.rstrip('.') or 'no reason given'}. {advice}"
    return saying(FileRefused(said), status=failure.status, detail=failure.message)


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedSdk:
    """An SDK of the generator that Anthropic and OpenAI use. Its module is imported when it is first needed."""

    name: str
    """Name of the module, of the provider and of the extra that installs it."""
    error: str
    """Name of the class of all of its errors."""
    codes: VendorCodes

    @property
    def module(self) -> Any:
        """The SDK. Raises `MissingExtra` if it is not installed."""
        try:
            return import_sparingly(self.name)
        except ModuleNotFoundError as error:
            raise MissingExtra(f"The provider {self.name!r}", self.name, error) from error

    def failure(self, error: Exception) -> CallFailure | None:
        """Return the failure behind an exception, or None if it is not about a call to the vendor."""
        return failure_of(error, self.module)

    def judged(self, error: Exception, *, creating: bool = False) -> Exception:
        """Return the package's error for an SDK's error, and any other error as it is."""
        if isinstance(error.__cause__, ProviderError):  # raised by us while the SDK was sending
            return error.__cause__
        if failure := self.failure(error):
            return judge(failure, self.codes, creating=creating)
        if isinstance(error, getattr(self.module, self.error)):
            # Raised by the SDK itself before it sent anything: no credentials, say, or a platform without the call.
            return Refused(f"{self.codes.name}'s SDK refuses the call: {detail(error)}")
        return error

    def judged_creation(self, error: Exception) -> Exception:
        """Return the package's error for a failed creation."""
        return self.judged(error, creating=True)

    def judged_file(self, error: Exception) -> Exception:
        """Return the package's error for the failed upload of an attachment."""
        failure = self.failure(error)
        is_of_file = failure is not None and not self.codes.is_about_money(failure)
        refused = file_refused(self.codes.name, failure) if failure is not None and is_of_file else None
        return refused or self.judged(error)

    def refused_now(self, error: Exception) -> CallFailure:
        """Return the vendor's refusal of this request alone. Raises every other error of a call in real time."""
        failure = self.failure(error)
        if failure is None:
            raise_alone(self.judged(error))
        judgement = judge_answer(failure, self.codes)
        if judgement is not None:
            raise_alone(judgement)
        return failure
