"""Open an SDK's clients when they are needed, with the garbage collector paused meanwhile.

An SDK's import makes a hundred thousand objects that stay. A full collection on the way looks at every object of the
process, and holds the interpreter, and with it the loop, for a tenth of a second or more.
"""

import asyncio
import gc
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import orjson

from airflow_batch_llm.core.model import BatchStatus, Lease
from airflow_batch_llm.errors import InputError, Refused, Unavailable, UnknownFate, raise_alone
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.providers.creation import Creation, Line, send_once
from airflow_batch_llm.providers.failures import CallFailure, GeneratedSdk, saying
from airflow_batch_llm.providers.incoming import (
    DOWNLOAD,
    NotUnderstood,
    bounded,
    http_library,
    record,
    split_lines,
)
from airflow_batch_llm.providers.reach import check_base_url, keep_to
from airflow_batch_llm.providers.steps import CALL_TIMEOUT, Calls, Judge, Patience, patiently

T = TypeVar("T")

_ONE_AT_A_TIME = threading.Lock()

#: Set once objects are found that others have frozen: Python counts them one by one, two million in 0.13 s.
_frozen_by_others = threading.Event()


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pause the garbage collector in this block. Its objects then join the oldest generation without being scanned."""
    with _ONE_AT_A_TIME:
        collecting = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            # Otherwise the next collection, however young, would look at all of it. Objects that others have frozen
            # would be thawed by it.
            if not _frozen_by_others.is_set():
                if gc.get_freeze_count():
                    _frozen_by_others.set()
                else:
                    gc.freeze()
                    gc.unfreeze()
            if collecting:
                gc.enable()


#: Seconds without a byte after which moving a file has failed: it may pause for longer than a question.
TRANSFER_TIMEOUT = 300.0
#: Seconds to wait for an answer in real time.
ANSWER_TIMEOUT = 600.0

_BLOCK = 256 * 1024


def unknown_option(vendor: str, error: TypeError) -> InputError:
    """Return the error for a client option that is unknown. It names the option, and no value."""
    return InputError(
        f"{vendor}'s client does not take an option: {error}. Options are in llm_hook_params or in the connection's"
        " extra; in a spec file in provider.options."
    )


def checked(client: Any, access: Access) -> Any:
    """Return a new client after a check of its URL, which an SDK may take from the environment or from a hook."""
    check_base_url(str(client.base_url), allow_insecure=access.allow_insecure)
    return client


class Clients:
    """One synchronous and one asynchronous client. Each function makes a new client at every call."""

    def __init__(self, open_sync: Callable[[], Any], open_async: Callable[[], Any]) -> None:
        self._open_sync = open_sync
        self._open_async = open_async
        self._sync: Any = None
        self._async: Any = None
        self._creating: Any = None
        self._creations = threading.Lock()
        self._lock = threading.Lock()
        self._alock = asyncio.Lock()

    @property
    def sync(self) -> Any:
        with self._lock:
            if self._sync is None:
                with gc_paused():
                    self._sync = _patient(self._open_sync())
            return self._sync

    async def asynchronous(self) -> Any:
        """Return the asynchronous client. Importing an SDK takes seconds, so a thread does it."""
        async with self._alock:
            if self._async is None:
                self._async = _patient(await asyncio.to_thread(self._open_still))
            return self._async

    def _open_still(self) -> Any:
        with gc_paused():
            return self._open_async()

    @contextmanager
    def creating(self, *, again: bool) -> Iterator[Any]:
        """A client without an open connection, so that all it opens can be watched. One creation at a time.

        It serves `again` where that is allowed: `create` has its connection closed.
        """
        with self._creations:
            client, self._creating = self._creating or _patient(self._open_sync()), None
            try:
                yield client
            except BaseException:
                client.close()
                raise
            if again:
                self._creating = client
            else:
                client.close()

    def close(self) -> None:
        with self._lock:
            if self._sync is not None:
                self._sync.close()
                self._sync = None
        with self._creations:
            if self._creating is not None:
                self._creating.close()
                self._creating = None

    async def aclose(self) -> None:
        async with self._alock:
            if self._async is not None:
                await self._async.close()
                self._async = None
        self._alock = asyncio.Lock()  # a lock that was waited for belongs to its event loop


def _patient(client: Any) -> Any:
    keep_to(client._client, str(client.base_url))
    return bounded(client).with_options(max_retries=0, timeout=CALL_TIMEOUT)


def create(client: Any, creation: Creation, lease: Lease, judge: Judge) -> str:
    """Send a creation once, inside the lease, and return the batch's id. Raises what `send_once` raises."""

    def post(content: Iterator[bytes], headers: Mapping[str, str], seconds: float) -> Any:
        options = {"headers": headers, "timeout": seconds}
        return client.post(creation.path, cast_to=object, content=content, options=options)

    # The SDKs have no public way to watch a connection; what they send with is an httpx or httpx2 client.
    return send_once(creation, Line(http=client._client, post=post), lease, judge)


def get(
    sdk: GeneratedSdk, path: str, params: Mapping[str, object], patience: Patience, read: Callable[[Any], T]
) -> Calls[T]:
    """Fetch one object's JSON and return what `read` makes of it."""
    return patiently(
        lambda client: client.get(path, cast_to=object, options={"params": params}),
        sdk.judged,
        patience,
        read,
    )


def cancel(
    sdk: GeneratedSdk, path: str, patience: Patience, read: Callable[[Any], BatchStatus]
) -> Calls[None]:
    """Ask the batch at this path to end. A vendor may refuse that if it has ended, and then nothing is left to do."""

    def refused_or(error: Exception) -> Exception:
        failure = sdk.failure(error)
        if failure and failure.status == 409:
            batch_id = path.rpartition("/")[2]
            return saying(
                Refused(
                    f"{sdk.codes.name} did not cancel batch {batch_id}: {failure.code or 'no reason given'}."
                ),
                status=failure.status,
                detail=failure.message,
            )
        return sdk.judged(error)

    try:
        yield from patiently(
            lambda client: client.post(f"{path}/cancel", cast_to=object), refused_or, patience, read
        )
    except Refused:
        status = yield from get(sdk, path, {}, patience, read)
        if not status.state.is_over:
            raise


async def asked_now(
    client: Any,
    path: str,
    body: Mapping[str, Any],
    refused: Callable[[Exception], CallFailure],
    seconds: float = ANSWER_TIMEOUT,
) -> tuple[Mapping[str, Any] | CallFailure, Mapping[str, str]]:
    """Ask one request in real time, once: the answer's JSON, or the vendor's refusal of this request alone; and headers.

    An answer that is not a JSON object raises `UnknownFate`: the vendor's own answer may have been paid.
    """
    whole = http_library(client._client).Response
    try:
        answer = await client.post(path, cast_to=whole, body=body, options={"timeout": seconds})
    except Exception as error:  # noqa: BLE001 - whatever ends the call
        return refused(error), {}
    try:
        return record(orjson.loads(answer.content)), answer.headers
    except (TypeError, ValueError):
        raise_alone(UnknownFate("The answer is not one of the vendor's. It may have been paid."))


def open_stream(client: Any, stream_class: type[Any], url: str) -> Any:
    """Return a GET whose body has not been read yet: an SDK's `Stream`, of which only the raw response is used.

    Raises `NotUnderstood` for an HTML page.
    """
    stream = client.get(
        url,
        cast_to=object,
        options={"headers": {"Accept": DOWNLOAD}, "timeout": TRANSFER_TIMEOUT},
        stream=True,
        stream_cls=stream_class,
    )
    if stream.response.headers.get("content-type", "").startswith("text/html"):
        stream.response.close()
        raise NotUnderstood("a page in HTML")
    return stream


def stream_lines(response: Any, batch_id: str) -> Generator[bytes, None, None]:
    """Yield the lines of an open response. Raises `Unavailable` if it breaks off, and the caller begins the download again."""
    try:
        yield from split_lines(_chunks(response, batch_id))
    finally:
        response.close()


def _chunks(response: Any, batch_id: str) -> Iterator[bytes]:
    try:
        yield from response.iter_bytes(_BLOCK)
    except Exception as error:  # noqa: BLE001 - any way in which a stream breaks off
        broken = Unavailable(
            f"The results of batch {batch_id} broke off while they were read ({type(error).__name__}). "
            "The download is begun again."
        )
        raise_alone(broken)
