"""A creation and its lease, over real connections to a server that does not play along."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import google.cloud.aiplatform_v1  # noqa: F401  its import takes longer than the leases here
import pytest
from google.auth.credentials import AnonymousCredentials

from airflow_batch_llm.core.model import Call, Lease, ShardFile
from airflow_batch_llm.errors import Unavailable, UnknownFate
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.providers.vertex import VertexProvider

SHARD = ShardFile(path=Path("unread"), token="r01-0001", call=Call(model="gemini-x"), requests=1, bytes=1)
UPLOAD = "gs://bucket/stage/r01-0001/0/requests.jsonl"


class Deaf:
    """A server that takes one connection, keeps the bytes and never answers."""

    def __init__(self, listener: socket.socket) -> None:
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._listener = listener
        self._heard = b""
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        with connection:
            connection.settimeout(20)
            while piece := connection.recv(65536):
                self._heard += piece

    @property
    def heard(self) -> bytes:
        """Return all bytes until the client closed the connection."""
        self._thread.join()
        return self._heard


@contextmanager
def deaf_server() -> Iterator[Deaf]:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        listener.settimeout(20)
        yield Deaf(listener)


class SlowCredentials(AnonymousCredentials):
    """A token service that answers only when the lease is over."""

    def __init__(self, until: float) -> None:
        super().__init__()
        self._until = until

    def before_request(self, request: object, method: str, url: str, headers: object) -> None:
        while time.time() <= self._until:
            time.sleep(0.01)


def provider(url: str, **options: object) -> VertexProvider:
    return VertexProvider(
        Access(base_url=url, options={"project": "p", "staging": "gs://bucket/stage", **options})
    )


def test_a_server_that_never_answers_is_left_when_the_lease_ends_and_the_fate_is_open() -> None:
    with deaf_server() as server:
        with pytest.raises(UnknownFate, match="may exist"):
            provider(server.url).submit(SHARD, UPLOAD, Lease(expires_at=time.time() + 1))
        head, _, body = server.heard.partition(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}".encode() in head
        assert b'"displayName": "r01-0001"' in body


def test_what_became_ready_only_after_the_lease_is_never_sent_whole() -> None:
    expires_at = time.time() + 0.5
    with deaf_server() as server:
        slow = provider(server.url, credentials=SlowCredentials(expires_at))
        with pytest.raises(Unavailable, match=r"tried again|failed"):
            slow.submit(SHARD, UPLOAD, Lease(expires_at=expires_at))
        assert server.heard.partition(b"\r\n\r\n")[2] == b""


def test_a_lease_that_is_over_opens_no_connection() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(Unavailable, match="Nothing was sent"):
            provider(url).submit(SHARD, UPLOAD, Lease(expires_at=time.time() - 1))
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
