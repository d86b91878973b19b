"""What a failed call to a vendor over HTTP means. `failure_of` reads the SDKs of one generator, Anthropic's and OpenAI's.

While a batch is being created the question is whether it may exist all the same: an answer that was lost, or that is
no verdict, leaves that open, and saying "no" then would pay twice.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import ModuleType
from typing import Any

from airflow_batch_llm.errors import Later, ProviderError, Refused, Unavailable, UnknownFate
from airflow_batch_llm.providers.redaction import detail, saying, secrets_sent, word

# The connection never stood, so nothing of the request was sent.
_NEVER_SENT = frozenset(
    {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"}
)


# The request could not be formed: a header has a character that HTTP does not allow, or the URL is none.
_CANNOT_BE_SENT = frozenset({"InvalidURL", "LocalProtocolError", "UnicodeEncodeError", "UnsupportedProtocol"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """How a vendor says what the other says too."""

    name: str
    no_money: frozenset[str]  # codes that mean: a limit of spending is reached, which waiting does not heal
    full: frozenset[str] = frozenset()  # codes that mean: a quota of waiting work is full
    final: frozenset[str] = frozenset()  # codes of a 5xx that trying again does not heal


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A call that did not work, in terms that do not depend on the SDK's release."""

    status: int | None  # None: no answer came
    code: str = ""  # the most specific word for the cause
    message: str = ""  # the vendor's words, without secrets
    retry_after: float | None = None
    sent: bool = True  # False: the connection never stood
    final: bool = False  # True: nothing was sent, and the same call cannot be sent later either


def failure_of(error: Exception, sdk: ModuleType) -> Failure | None:
    """What an SDK's exception says; None for one that is not about a call to the provider."""
    if isinstance(error, sdk.APIConnectionError):
        return unanswered(error.__cause__ or error)
    if isinstance(error, UnicodeError):
        return unanswered(error)
    if isinstance(error, (ValueError, sdk.APIResponseValidationError)):
        return Failure(status=None, message="the answer is not JSON")
    if not isinstance(error, sdk.APIStatusError):
        return None
    # Anthropic's SDK keeps the whole body, OpenAI's only what is under "error".
    body: Any = error.body
    inner = body.get("error", body) if isinstance(body, dict) else body
    inner = inner if isinstance(inner, dict) else {"message": inner}
    details = inner.get("details")
    specific = details.get("error_code") if isinstance(details, dict) else None
    secrets = secrets_sent(error)
    return Failure(
        status=error.status_code,
        code=word(specific or inner.get("code") or inner.get("type"), secrets),
        message=detail(inner.get("message"), secrets),
        retry_after=asked_to_wait(error.response.headers),
    )


def unanswered(cause: BaseException) -> Failure:
    """A call that got no answer. The libraries' own messages may quote a header, so only the system's are kept."""
    kind = type(cause).__name__
    deeper: BaseException | None = cause
    while deeper is not None and not (isinstance(deeper, OSError) and deeper.strerror):
        deeper = deeper.__cause__ or deeper.__context__
    why = f": {deeper.strerror}" if isinstance(deeper, OSError) else ""
    return Failure(
        status=None,
        code=f"{kind}{why}",
        sent=kind not in _NEVER_SENT,
        final=kind in _CANNOT_BE_SENT,
    )


def asked_to_wait(headers: Mapping[str, str]) -> float | None:
    """The seconds that the server asks to wait, in any spelling of the wish."""
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


def judge(failure: Failure, vendor: Vendor, *, creating: bool = False) -> ProviderError:
    """The error of the package's tree that this failure is."""
    return saying(_judged(failure, vendor, creating=creating), status=failure.status, detail=failure.message)


def _judged(failure: Failure, vendor: Vendor, *, creating: bool) -> ProviderError:
    words = failure.code.rstrip(".")
    said = f"{vendor.name} answered {failure.status or 'nothing'}: {words or 'no reason given'}"
    status = failure.status
    if failure.final:
        return Refused(
            f"The request to {vendor.name} cannot be sent ({words}). Check the URL, the key and the headers of the"
            " connection for characters that do not belong there."
        )
    if failure.code in vendor.no_money:
        return Refused(f"{said}. Raise the limit or settle the bill, then clear the task.")
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


_CHECK_KEY = " Check the connection's key and what it may do."
