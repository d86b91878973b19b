"""Send one creation of a batch once, inside its lease, over any client of httpx or httpx2."""

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from airflow_batch_llm.core.model import Lease
from airflow_batch_llm.errors import BatchLLMError, Unavailable, UnknownFate, raise_alone
from airflow_batch_llm.providers.incoming import NotUnderstood, fate_unknown, understood
from airflow_batch_llm.providers.steps import Judge

_OPENED = (".connect_tcp.complete", ".connect_unix_socket.complete", ".start_tls.complete")


class LeaseExpired(Exception):
    """The lease ended before the creation was sent whole."""


class Sending:
    """The sending of one creation. Use it once."""

    def __init__(self, lease: Lease) -> None:
        self._expires_at = lease.expires_at
        # The wall clock may be set back during the sending, and the monotonic clock stops while a machine sleeps.
        self._monotonic_end = time.monotonic() + max(0.0, lease.expires_at - time.time())
        self._sockets: list[socket.socket] = []
        self._cut = False
        self.whole = False  # the last byte was handed over: from here on a batch may exist

    @property
    def remaining(self) -> float:
        """Seconds left, never less than 0."""
        return max(0.0, min(self._expires_at - time.time(), self._monotonic_end - time.monotonic()))

    def body(self, pieces: Iterable[bytes], last: bytes) -> Iterator[bytes]:
        """Yield the pieces and then `last`, without which the server cannot act. Raises `LeaseExpired` after the lease's end."""
        for piece in pieces:
            self._hold()
            yield piece
        self._hold()
        self.whole = True
        yield last

    def _hold(self) -> None:
        if self._cut or self.remaining <= 0:
            raise LeaseExpired("The lease to create this batch ran out while it was being sent.")

    @contextmanager
    def watchdog(self) -> Iterator[None]:
        """Shut all noted connections when the lease ends in this block, also those that are noted later."""
        timer = threading.Timer(self.remaining, self._shut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def note(self, opened: socket.socket) -> None:
        """Note a connection over which this creation may be sent."""
        self._sockets.append(opened)
        if self._cut:
            self._shut()

    @contextmanager
    def watched(self, http_client: Any) -> Iterator[None]:
        """Watch the connections that `http_client` (httpx or httpx2) opens in this block."""
        hooks = http_client.event_hooks
        http_client.event_hooks = {**hooks, "request": [*hooks.get("request", ()), self._trace]}
        try:
            with self.watchdog():
                yield
        finally:
            http_client.event_hooks = hooks

    def _trace(self, request: Any) -> None:
        request.extensions = {**request.extensions, "trace": self._note_connection}

    def _note_connection(self, event: str, info: dict[str, Any]) -> None:
        if event.endswith(_OPENED):  # through a proxy, its word stands before
            opened = info["return_value"].get_extra_info("socket")
            if opened is not None:
                self.note(opened)

    def _shut(self) -> None:
        self._cut = True
        for opened in self._sockets:
            try:
                # Closing the descriptor would not wake a thread that waits for it; shutting it down does.
                opened.shutdown(socket.SHUT_RDWR)
            except OSError:  # closed already
                continue


#: Posts this content, with these headers and this time-out in seconds, and returns the answer. It never retries.
Post = Callable[[Iterator[bytes], Mapping[str, str], float], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Creation:
    """A request that creates a batch. Without `last` the server has nothing that it could act on."""

    path: str
    pieces: Iterable[bytes]
    last: bytes
    size: int  # of the pieces and `last` together
    read: Callable[[Any], str]
    """Takes the batch's id from the answer. Raises for an answer that is not a batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The way to the server. `http` opens no connection before, so that each one it opens can be watched."""

    http: Any
    post: Post


def send_once(creation: Creation, line: Line, lease: Lease, judge: Judge) -> str:
    """Send a creation once, inside the lease, and return the batch's id.

    Raises the judged error. It is `UnknownFate` only if a batch may exist, also after an answer that a gateway may have given.
    """
    sending = Sending(lease)
    if sending.remaining <= 0:
        raise Unavailable("The lease to create this batch is over. Nothing was sent.")
    headers = {"Content-Length": str(creation.size), "Connection": "close"}
    with sending.watched(line.http):
        try:
            body = sending.body(creation.pieces, creation.last)
            answer = line.post(body, headers, sending.remaining)
        except Exception as error:
            judged = judge(error)
            if isinstance(judged, UnknownFate) and not sending.whole:
                judged = Unavailable("The creation broke off before it was sent whole, so no batch exists.")
            if judged is error and (isinstance(error, BatchLLMError) or not sending.whole):
                raise
            raise_alone(fate_unknown(error) if judged is error else judged)
    try:
        with understood():
            return creation.read(answer)
    except NotUnderstood as error:
        raise_alone(fate_unknown(error))
