"""One creation inside its lease: after the deadline not a byte more is sent.

An SDK's time-out counts from one read or write to the next, so a slow connection can outlive any of them. Here the
body refuses to go on once the lease is over, and a watchdog shuts the socket under a send or a wait that hangs.
"""

import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from airflow_batch_llm.core.model import Lease

_OPENED = (".connect_tcp.complete", ".connect_unix_socket.complete", ".start_tls.complete")


class LeaseExpired(Exception):
    """The lease ended before the creation was sent whole."""


class Sending:
    """The sending of one creation. Use it once."""

    def __init__(self, lease: Lease) -> None:
        self._expires_at = lease.expires_at
        # The wall clock may be set back while we send, and the monotonic one stands still while a machine sleeps.
        self._monotonic_end = time.monotonic() + max(0.0, lease.expires_at - time.time())
        self._sockets: list[socket.socket] = []
        self._cut = False
        self.whole = False  # the last byte was handed over: from here on a batch may exist

    @property
    def remaining(self) -> float:
        """Seconds left, never less than 0."""
        return max(0.0, min(self._expires_at - time.time(), self._monotonic_end - time.monotonic()))

    def body(self, pieces: Iterable[bytes], last: bytes) -> Iterator[bytes]:
        """The pieces and then `last`, without which the server has nothing; `LeaseExpired` once it is over."""
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
        """Shut the connections that were noted, and those that will be, when the lease ends in this block."""
        timer = threading.Timer(self.remaining, self._shut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def note(self, opened: socket.socket) -> None:
        """A connection over which this creation may be sent."""
        self._sockets.append(opened)
        if self._cut:
            self._shut()

    @contextmanager
    def watched(self, http_client: Any) -> Iterator[None]:
        """The watchdog over the connections that `http_client` (httpx or httpx2) opens in this block."""
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
