"""The application: each vendor at its own paths, the control endpoints, and `GET /healthz`."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from airflow_batch_llm.simulator.anthropic.routes import Anthropic
from airflow_batch_llm.simulator.control import Control
from airflow_batch_llm.simulator.doorkeeper import Doorkeeper
from airflow_batch_llm.simulator.gate import Gate
from airflow_batch_llm.simulator.openai.routes import OpenAI
from airflow_batch_llm.simulator.runner import Runner
from airflow_batch_llm.simulator.settings import Settings
from airflow_batch_llm.simulator.vendor import Vendor
from airflow_batch_llm.simulator.vertex.routes import Vertex
from airflow_batch_llm.simulator.world import World, open_world

#: Every vendor whose protocol is spoken. A new one also has a name in `record.Provider`.
VENDORS: Sequence[Callable[[World], Vendor]] = (Anthropic, OpenAI, Vertex)


def build_app(settings: Settings) -> Starlette:
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
