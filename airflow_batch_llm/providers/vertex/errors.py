"""Translate the exceptions of Google's clients, and of the HTTP libraries below them, into the package's errors.

The clients let transport errors through as they are. Their classes are recognised by module and name, so that judging
an error imports none of these libraries. A library that was not imported cannot have raised it.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from airflow_batch_llm.errors import (
    BatchLLMError,
    Later,
    MissingExtra,
    ProviderError,
    Refused,
    Unavailable,
    UnknownFate,
    raise_alone,
)
from airflow_batch_llm.providers.creation import LeaseExpired
from airflow_batch_llm.providers.failures import (
    FROM_A_GATEWAY,
    CallFailure,
    detail,
    file_refused,
    saying,
    secrets_sent,
    word,
)
from airflow_batch_llm.providers.incoming import NotUnderstood

_ADVICE = {
    400: "Correct what the message names; the same call will be refused again.",
    401: "Renew the Google credentials of the connection.",
    403: "Grant the connection's account the Vertex AI User role, and access to the staging bucket or dataset.",
    404: "Look whether the project, location, model and staging bucket or dataset are spelled right.",
}

# A time-out and an aborted call, which are no verdict although their status is below 500.
_UNDECIDED = frozenset({408, 499})
#: Statuses by which Google refuses a single request, and no other.
_OF_ONE_REQUEST = frozenset({400, 413, 422})
_ADDRESS = re.compile(r"^[A-Z]+ https?://\S+: ")
_TRANSPORT_MODULES = frozenset({"requests", "urllib3", "http", "httpx", "httpcore", "httpx2", "aiohttp"})


def judge(error: Exception) -> Exception:
    """Return the error of a call that is safe to repeat. An exception that is not a provider's failure comes back unchanged."""
    return _judged(error, sent=False, creating=False)


@contextmanager
def judged() -> Iterator[None]:
    """Judge the errors of calls in this block, which are safe to repeat."""
    try:
        yield
    except Exception as error:
        verdict = judge(error)
        if verdict is error:
            raise
        raise_alone(verdict)


@contextmanager
def judged_file() -> Iterator[None]:
    """Judge the errors of calls in this block, which upload one attachment."""
    try:
        yield
    except Refused as error:
        failure = CallFailure(status=error.status, message=error.detail)
        raise_alone(file_refused("Google", failure) or error)


@contextmanager
def needing_extra() -> Iterator[None]:
    """Turn a failed import in this block into an error that names the package's extra."""
    try:
        yield
    except ImportError as error:
        raise MissingExtra("The provider 'vertex'", "google", error) from error


def judge_creation(error: Exception, *, sent: bool) -> Exception:
    """Return the error of a creation. The job may exist only if all bytes were `sent`."""
    return _judged(error, sent=sent, creating=True)


def refused_now(error: Exception) -> Refused:
    """Return Google's refusal of this request alone. Raises every other error of a call in real time."""
    if isinstance(error, NotUnderstood):
        raise_alone(UnknownFate("The answer is not one of Google's. It may have been paid."))
    judgement = _judged(error, sent=True, creating=False)
    if isinstance(judgement, UnknownFate) or http_code(error) in FROM_A_GATEWAY:
        raise_alone(UnknownFate(f"Google gave no answer ({type(error).__name__}). It may have been paid."))
    if not isinstance(judgement, Refused) or judgement.status not in _OF_ONE_REQUEST:
        raise_alone(judgement)
    return judgement


def http_code(error: BaseException) -> int | None:
    """Return the HTTP status of an error answer, or None if there was no answer."""
    for code in (
        getattr(error, "code", None),
        getattr(getattr(error, "response", None), "status_code", None),
    ):
        if isinstance(code, int):
            return int(code)
    return None


def _judged(error: Exception, *, sent: bool, creating: bool) -> Exception:
    if isinstance(error, BatchLLMError):
        return error
    if isinstance(error, LeaseExpired):
        return Unavailable(f"{error} Nothing was created; it is tried again.")
    if type(error).__module__ == "google.auth.exceptions":
        return _unauthorised(error)
    origin = type(error).__module__.partition(".")[0]
    code = http_code(error) if origin == "google" else None
    if code is not None:
        return _answered(error, code, creating=creating)
    if origin == "google" or origin in _TRANSPORT_MODULES or isinstance(error, OSError):
        told = f"The connection to Google failed ({type(error).__name__})."
        return UnknownFate(f"{told} The job may exist.") if sent else Unavailable(told)
    return error


def _answered(error: Exception, code: int, *, creating: bool) -> ProviderError:
    secrets = secrets_sent(error)
    words = _ADDRESS.sub("", str(getattr(error, "message", None) or error))
    return saying(_meaning(error, code, creating=creating), status=code, detail=detail(words, secrets))


def _meaning(error: Exception, code: int, *, creating: bool) -> ProviderError:
    told = f"Google answered {code}: {word(getattr(error, 'status', None)) or type(error).__name__}."
    if code == 429:
        return (Later if creating else Unavailable)(told, retry_after=_retry_after(error))
    if code < 500 and code not in _UNDECIDED:
        return Refused(f"{told} {_ADVICE.get(code, _ADVICE[400])}")
    return (
        UnknownFate(f"{told} The job may exist.")
        if creating
        else Unavailable(told, retry_after=_retry_after(error))
    )


def _unauthorised(error: Exception) -> ProviderError:
    """Return the error of a token that could not be fetched. No request was sent, since the token is fetched first."""
    if getattr(error, "retryable", False) or type(error).__name__ == "TransportError":
        return Unavailable(f"Google's token service did not answer ({type(error).__name__}).")
    refused = Refused(f"Google credentials could not be used ({type(error).__name__}). {_ADVICE[401]}")
    return saying(refused, status=None, detail=detail(error))


def _retry_after(error: Exception) -> float | None:
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    try:
        return float(headers.get("Retry-After") or headers.get("retry-after") or "")
    except ValueError:
        return None
