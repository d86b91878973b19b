"""One creation inside its lease, against servers that do not keep up. All of them are real sockets."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path

import pytest

from airflow_batch_llm.core.model import Call, Lease, ShardFile
from airflow_batch_llm.errors import Unavailable, UnknownFate
from airflow_batch_llm.providers import connect
from airflow_batch_llm.providers.base import Access, Provider
from airflow_batch_llm.providers.creation import LeaseExpired, Sending
from tests.vendors import OVER_HTTPX

# An SDK is imported by the first verb that needs it, which would take its time from these short leases.
for sdk in OVER_HTTPX:
    import_module(sdk)

_MANY_BYTES = 48 << 20  # more than the buffers of two sockets hold

#: A batch, for either vendor.
BATCH = b'{"id":"batch_1","status":"validating","processing_status":"in_progress","request_counts":{"processing":1}}'


class Listener:
    """A server that never answers. It begins to read on request, and keeps the end of the bytes."""

    def __init__(self, server: socket.socket, *, reads: bool) -> None:
        self.url = f"http://127.0.0.1:{server.getsockname()[1]}"
        self.reading = threading.Event()
        self.tail = b""
        self.received = 0
        if reads:
            self.reading.set()
        self._server = server
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        connection, _ = self._server.accept()
        with connection:
            self.reading.wait(30)
            with suppress(OSError):
                while chunk := connection.recv(1 << 20):
                    self.received += len(chunk)
                    self.tail = (self.tail + chunk)[-64:]


@contextmanager
def listening(*, reads: bool) -> Iterator[Listener]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield Listener(server, reads=reads)


def shard_of(provider: Provider, folder: Path, size: int) -> ShardFile:
    call = Call(model="some-model")
    template = provider.encode(call)
    path = folder / "b1-0001.jsonl"
    path.write_bytes(template.line("b1-0001-000000", b'"%b"' % (b"x" * size)) + b"\n")
    return ShardFile(path=path, token="b1-0001", call=call, requests=1, bytes=path.stat().st_size)


def test_a_server_that_takes_the_body_too_slowly_never_gets_its_end(tmp_path: Path) -> None:
    with listening(reads=False) as server:
        provider = connect("anthropic", Access(api_key="any", base_url=server.url))
        shard = shard_of(provider, tmp_path, _MANY_BYTES)
        with pytest.raises(Unavailable):
            provider.submit(shard, "", Lease(expires_at=time.time() + 1))
        server.reading.set()
        server.thread.join(30)
    assert 0 < server.received < _MANY_BYTES
    assert not server.tail.endswith(b"]}")


@pytest.mark.parametrize("name", OVER_HTTPX)
def test_a_server_that_takes_all_and_never_answers_leaves_the_fate_open_when_the_lease_ends(
    name: str, tmp_path: Path
) -> None:
    with listening(reads=True) as server:
        provider = connect(name, Access(api_key="any", base_url=server.url))
        shard = shard_of(provider, tmp_path, 10)
        with pytest.raises(UnknownFate):
            provider.submit(shard, "file-1", Lease(expires_at=time.time() + 1))
        server.thread.join(30)
    assert server.tail.endswith(b"}")


def trickle(server: socket.socket) -> None:
    """Take a request and answer it well, a byte at a time: no single read takes long."""
    connection, _ = server.accept()
    body = BATCH
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    with connection, suppress(OSError):
        while not connection.recv(1 << 20).endswith(b"}"):
            pass
        for byte in head + body:
            connection.sendall(bytes([byte]))
            time.sleep(0.1)


@pytest.mark.parametrize("name", OVER_HTTPX)
def test_an_answer_that_trickles_past_the_lease_is_cut_off_by_the_watchdog(name: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=trickle, args=(server,), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        provider = connect(name, Access(api_key="any", base_url=url))
        shard = shard_of(provider, tmp_path, 10)
        with pytest.raises(UnknownFate):
            provider.submit(shard, "file-1", Lease(expires_at=time.time() + 1))
        thread.join(30)


def test_the_body_refuses_to_go_on_once_the_lease_is_over() -> None:
    sending = Sending(Lease(expires_at=time.time() + 0.05))
    body = sending.body((b"piece" for _ in range(10**9)), b"last")
    with pytest.raises(LeaseExpired):
        for _ in body:
            pass
    assert not sending.whole


def test_a_body_that_was_handed_over_to_its_last_byte_counts_as_sent() -> None:
    sending = Sending(Lease(expires_at=time.time() + 60))
    assert b"".join(sending.body([b"a", b"b"], b"c")) == b"abc"
    assert sending.whole


def test_a_lease_that_is_over_before_the_last_piece_leaves_the_body_open() -> None:
    sending = Sending(Lease(expires_at=time.time() - 1))
    with pytest.raises(LeaseExpired):
        list(sending.body([], b"last"))
    assert (sending.whole, sending.remaining) == (False, 0.0)


class Counting:
    """A server that answers every creation well, keeps connections open if it may, and counts them."""

    def __init__(self) -> None:
        counting = self
        self.connections = 0

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                counting.connections += 1
                super().setup()

            def do_POST(self) -> None:  # the name is the standard library's
                if "chunked" in self.headers.get("Transfer-Encoding", ""):
                    raise AssertionError("the body has a length")
                self.rfile.read(int(self.headers["Content-Length"]))
                answer = BATCH
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.mark.parametrize("name", OVER_HTTPX)
def test_each_creation_opens_a_connection_that_it_can_watch(name: str, tmp_path: Path) -> None:
    counting = Counting()
    provider = connect(name, Access(api_key="any", base_url=counting.url))
    shard = shard_of(provider, tmp_path, 10)
    for _ in range(3):
        assert provider.submit(shard, "file-1", Lease(expires_at=time.time() + 10)) == "batch_1"
    provider.close()
    counting.server.shutdown()
    counting.server.server_close()
    assert counting.connections == 3
