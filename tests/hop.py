"""A hop on the way to a server, which forwards requests and, where it is told to, spoils the answer.

What matters about a lost answer is that the request took effect: the hop waits for the server's answer, and only then
breaks the connection to the client.
"""

import http.client
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_OF_ONE_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}


class Fault(StrEnum):
    LOSE_ANSWER = "lose answer"  # the request takes effect, the connection breaks before a byte comes back
    CUT_ANSWER = (
        "cut answer"  # the request takes effect, the connection breaks in the middle of the answer's body
    )
    REFUSE = "refuse"  # 503, and nothing takes effect
    FORBID = "forbid"  # 403, and nothing takes effect


@dataclass(kw_only=True)
class Rule:
    """Spoil the first `times` requests whose `METHOD /path?query` matches; None: all of them."""

    fault: Fault
    pattern: str
    times: int | None = 1
    hits: int = 0

    def applies(self, request: str) -> bool:
        if not re.search(self.pattern, request) or (self.times is not None and self.hits >= self.times):
            return False
        self.hits += 1
        return True


@dataclass(kw_only=True)
class Hop:
    endpoint: str
    rules: list[Rule] = field(default_factory=list)
    removed_headers: set[str] = field(default_factory=set)  # lower case: a server that never heard of them
    requests: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def spoil(self, fault: Fault, pattern: str, times: int | None = 1) -> Rule:
        rule = Rule(fault=fault, pattern=pattern, times=times)
        self.rules.append(rule)
        return rule

    def meet(self, request: str) -> Fault | None:
        with self._lock:
            self.requests.append(request)
            return next((rule.fault for rule in self.rules if rule.applies(request)), None)


@contextmanager
def hop_to(upstream: str) -> Iterator[Hop]:
    """Run a hop before the server at `upstream` (http://host:port)."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Forwarding)
    server.daemon_threads = True
    hop = Hop(endpoint=f"http://127.0.0.1:{server.server_port}")
    server.hop, server.upstream = hop, upstream  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hop
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Forwarding(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None: ...

    def _forward(self) -> None:
        body = self._body()
        hop: Hop = self.server.hop  # type: ignore[attr-defined]
        fault = hop.meet(f"{self.command} {self.path}")
        if fault is Fault.REFUSE:
            self._answer(503, "Service Unavailable", [], b"")
        elif fault is Fault.FORBID:
            self._answer(403, "Forbidden", [], b"")
        else:
            self._relay(hop, body, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = _forward  # noqa: N815

    def _relay(self, hop: Hop, body: bytes, fault: Fault | None) -> None:
        upstream = urlsplit(self.server.upstream)  # type: ignore[attr-defined]
        connection = http.client.HTTPConnection(upstream.netloc, timeout=60)
        try:
            left_out = _OF_ONE_CONNECTION | hop.removed_headers
            headers = {name: value for name, value in self.headers.items() if name.lower() not in left_out}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if fault is Fault.LOSE_ANSWER:
            self._break_off()
            return
        kept = [
            (name, value.replace(upstream.netloc, urlsplit(hop.endpoint).netloc))
            for name, value in answer.getheaders()
            if name.lower() not in _OF_ONE_CONNECTION
        ]
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self._answer(
            answer.status, answer.reason, kept, content, length=length, cut=fault is Fault.CUT_ANSWER
        )

    def _answer(
        self,
        status: int,
        reason: str,
        headers: list[tuple[str, str]],
        content: bytes,
        *,
        length: str | None = None,
        cut: bool = False,
    ) -> None:
        self.send_response_only(status, reason)
        for name, value in headers:
            self.send_header(name, value)
        if status not in {204, 304}:
            self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self._break_off()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _break_off(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
