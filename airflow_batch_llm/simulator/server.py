"""Runs the application on a socket of its own and says where once it answers."""

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from airflow_batch_llm.simulator.anthropic.routes import Anthropic
from airflow_batch_llm.simulator.control import Control
from airflow_batch_llm.simulator.execution import Runner
from airflow_batch_llm.simulator.gate import AbortableProtocol, Doorkeeper, Gate, is_loopback
from airflow_batch_llm.simulator.knobs import SimulatorSettings
from airflow_batch_llm.simulator.openai.routes import OpenAI
from airflow_batch_llm.simulator.vendor import Vendor
from airflow_batch_llm.simulator.vertex.routes import Vertex
from airflow_batch_llm.simulator.world import World, open_world

#: Every vendor whose protocol is spoken. A new one is named here, and nowhere else.
VENDORS: Sequence[Callable[[World], Vendor]] = (Anthropic, OpenAI, Vertex)


def build_app(settings: SimulatorSettings) -> Starlette:
    """The ASGI application. Raises ValueError for settings that cannot work."""
    world = open_world(settings)
    vendors = [vendor(world) for vendor in VENDORS]
    runner = Runner(world, {vendor.provider: vendor for vendor in vendors})
    world.poke = runner.poke

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        running = asyncio.create_task(runner.run())
        yield
        running.cancel()
        await runner.idle()
        world.database.close()

    doorkeeper = Middleware(Doorkeeper, settings=settings)
    return Starlette(routes=_routes(world, vendors, runner), lifespan=lifespan, middleware=[doorkeeper])


def _routes(world: World, vendors: list[Vendor], runner: Runner) -> list[Route]:
    routes = [Route("/healthz", _healthz), *Control(world, runner).routes()]
    for vendor in vendors:
        gate = Gate(world, vendor)
        # Fixed paths before those with a placeholder: /v1/messages/batches is not a message called "batches".
        endpoints = sorted(vendor.endpoints(), key=lambda endpoint: "{" in endpoint.path)
        routes.extend(Route(each.path, gate.guard(each), methods=[each.method]) for each in endpoints)
    return routes


async def _healthz(_: Request) -> Response:
    return JSONResponse({"status": "ok"})


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()


def serve(settings: SimulatorSettings, announce: Callable[[str], None]) -> None:
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
