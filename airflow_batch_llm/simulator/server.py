"""Runs the application on a socket of its own and says where once it answers."""

import gc
import socket
from collections.abc import Callable

import uvicorn

from airflow_batch_llm.simulator.app import build_app
from airflow_batch_llm.simulator.doorkeeper import is_loopback
from airflow_batch_llm.simulator.gate import AbortableProtocol
from airflow_batch_llm.simulator.settings import Settings


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()


def serve(settings: Settings, announce: Callable[[str], None]) -> None:
    """Serve until interrupted. `announce` gets the URL when calls are answered."""
    if not (settings.allow_remote or is_loopback(settings.host)):
        raise ValueError(
            f"host must be on loopback, got {settings.host!r}: any machine could reach the simulator."
            " Use 127.0.0.1, or add --allow-remote and set a key."
        )
    app = build_app(settings)
    # A row makes some fifty objects and no cycles: looking for cycles every 700 objects costs a quarter of the time.
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((settings.host, settings.port))
    url = f"http://{settings.host}:{listener.getsockname()[1]}"
    config = uvicorn.Config(
        app,
        http=AbortableProtocol,
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=2,
    )
    _Server(config, lambda: announce(url)).run(sockets=[listener])
