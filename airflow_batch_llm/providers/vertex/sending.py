"""Keeping a creation inside its lease where the client below is `requests`.

The body is handed over only once a connection stands and the lease still runs; a body that is refused leaves the
server with half a request, which it never executes. The watchdog learns of each connection as it is opened.
"""

from typing import Any

from airflow_batch_llm.providers.lease import Sending


def keep_inside(session: Any, sending: Sending) -> None:
    """Whatever this session (of `requests`) sends from now on is sent inside the lease."""
    from requests.adapters import HTTPAdapter
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

    class Plain(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            sending.note(self.sock)

    class Secure(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            sending.note(self.sock)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    class Leased(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            super().init_poolmanager(*args, **kwargs)
            self.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}

        def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
            whole = request.body.encode() if isinstance(request.body, str) else request.body
            request.body = sending.body((), whole)
            return super().send(request, *args, **kwargs)

    for scheme in ("https://", "http://"):
        session.mount(scheme, Leased())
