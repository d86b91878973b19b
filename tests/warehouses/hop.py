"""A hop in front of an HTTP server, which answers chosen requests itself, or lets them through and loses the answer."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import orjson

_REASONS = {403: "accessDenied", 429: "rateLimitExceeded", 500: "internalError", 503: "backendError"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request on its way."""

    method: str
    path: str
    body: bytes


@dataclass(slots=True, kw_only=True)
class Fault:
    """A fault that strikes the first `times` requests for which `to` is true."""

    to: Callable[[Request], bool]
    status: int | None = None  # answered instead of the server; None: the connection is closed
    times: int = 1
    after: bool = False  # the server has done its work, and its answer is lost


@dataclass(slots=True, kw_only=True)
class Hop:
    """The hop's address, its faults, and all that came by."""

    url: str = ""
    faults: list[Fault] = field(default_factory=list)
    seen: list[Request] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault_for(self, request: Request) -> Fault | None:
        """The fault that a request meets, counted down."""
        with self.lock:
            self.seen.append(request)
            for fault in self.faults:
                if fault.times and fault.to(request):
                    fault.times -= 1
                    return fault
        return None

    def count(self, to: Callable[[Request], bool]) -> int:
        """Return the number of requests that came by for which this is true."""
        with self.lock:
            return sum(to(request) for request in self.seen)


@contextmanager
def hopping(server: str) -> Iterator[Hop]:
    """A hop in front of `server`."""
    hop = Hop()
    listening = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hop, urlsplit(server).netloc))
    hop.url = f"http://127.0.0.1:{listening.server_port}"
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    try:
        yield hop
    finally:
        listening.shutdown()
        listening.server_close()


def _handler(hop: Hop, server: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else self._chunks()
            fault = hop.fault_for(Request(method=self.command, path=self.path, body=body))
            if fault is None or fault.after:
                status, headers, answer = self._pass_on(body)
            if fault is not None:
                if fault.status is None:
                    self.close_connection = True
                    return
                status, headers, answer = (
                    fault.status,
                    {"Content-Type": "application/json"},
                    _error(fault.status),
                )
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815  the names that the server calls

        def _chunks(self) -> bytes:
            pieces = []
            while self.headers.get("Transfer-Encoding") == "chunked":
                size = int(self.rfile.readline(), 16)
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
                if not size:
                    break
            return b"".join(pieces)

        def _pass_on(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            connection = HTTPConnection(server, timeout=120)
            own = {"host", "transfer-encoding", "accept-encoding", "content-length", "connection"}
            headers = {name: value for name, value in self.headers.items() if name.lower() not in own}
            try:
                connection.request(self.command, self.path, body or None, headers)
                answer = connection.getresponse()
                data = answer.read()
                kept = {
                    name: value.replace(f"http://{server}", hop.url)
                    for name, value in answer.getheaders()
                    if name.lower()
                    not in {"content-length", "transfer-encoding", "connection", "date", "server"}
                }
                return answer.status, kept, data
            finally:
                connection.close()

        def log_message(self, *_: object) -> None:
            """Tests are quiet."""

    return Handler


def _error(status: int) -> bytes:
    reason = _REASONS[status]
    error = {"reason": reason, "message": f"made by the hop: {reason}"}
    return orjson.dumps({"error": {"code": status, "message": error["message"], "errors": [error]}})
