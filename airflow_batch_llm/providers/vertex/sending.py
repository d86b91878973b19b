"""Keeping a creation inside its lease where the client below is `requests`.

The body is handed over only once a connection stands and the lease still runs; a body that is refused leaves the
server with half a request, which it never executes. A watchdog shuts the socket of an answer that does not come.
"""

from typing import Any

from airflow_batch_llm.providers.lease import Sending


def keep_inside(session: Any, sending: Sending) -> None:
    """From now on what this session (of `requests`) sends is sent inside the lease. Use the session for nothing else."""
    from requests.adapters import HTTPAdapter

    class Leased(HTTPAdapter):
        def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(request.body, str):
                request.body = request.body.encode()
            request.body = sending.body((), request.body)
            return super().send(request, *args, **kwargs)

    for scheme in ("https://", "http://"):
        session.mount(scheme, Leased())
