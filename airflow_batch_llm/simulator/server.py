"""Run the application on a socket of its own: the vendors' endpoints, and those that control the simulator.

The endpoints below /control move the clock, turn knobs, set faults, steer single batches, and report the ledger: what
was bought, over all ways to ask, and divided among them.
"""

import asyncio
import gc
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from typing import Any, Literal

import anyio.to_thread
import orjson
import uvicorn
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Match, Route
from starlette.types import Scope

from airflow_batch_llm.simulator.anthropic.routes import Anthropic
from airflow_batch_llm.simulator.controls import Fault, Knobs, SimulatorSettings
from airflow_batch_llm.simulator.database import (
    LIVE,
    SUM_OF_TOKENS,
    Batch,
    BatchPhase,
    BilledUsage,
    BilledWay,
    Charge,
    Database,
    RowFate,
    open_connection,
)
from airflow_batch_llm.simulator.execution import Runner
from airflow_batch_llm.simulator.gate import AbortableProtocol, Doorkeeper, Gate, is_loopback
from airflow_batch_llm.simulator.openai.routes import OpenAI
from airflow_batch_llm.simulator.vendor import Endpoint, Vendor
from airflow_batch_llm.simulator.vertex.routes import Vertex
from airflow_batch_llm.simulator.world import World, open_world

_LOOK_SECONDS = 0.01


class _Advance(BaseModel):
    model_config = ConfigDict(extra="forbid")
    advance_seconds: float = Field(ge=0)
    settle: bool = False  # and wait until all that is due by then has happened


class _Command(BaseModel):
    model_config = ConfigDict(extra="forbid")
    action: Literal["end", "expire", "hold"]
    share: float = Field(default=0.0, ge=0, le=1)


class Control:
    """The endpoints below /control."""

    def __init__(self, world: World, runner: Runner) -> None:
        self._world = world
        self._runner = runner

    def routes(self) -> list[Route]:
        return [
            Route("/control/clock", _checked(self.clock), methods=["GET", "POST"]),
            Route("/control/knobs", _checked(self.knobs), methods=["GET", "POST"]),
            Route("/control/faults", _checked(self.faults), methods=["GET", "POST", "DELETE"]),
            Route("/control/batches/{id:path}", _checked(self.batch), methods=["GET", "POST"]),
            Route("/control/ledger", self.ledger),
            Route("/control/ledger/rows", self.rows),
            Route("/control/reset", self.reset, methods=["POST"]),
        ]

    async def clock(self, request: Request) -> Response:
        if request.method == "POST":
            wish = _Advance.model_validate_json(await request.body())
            self._world.advance(wish.advance_seconds)
            if wish.settle:
                await self._runner.caught_up()
        return JSONResponse({"now": self._world.clock.now(), "offset": self._world.clock.offset})

    async def knobs(self, request: Request) -> Response:
        """Turn the knobs that the body names; the others stay."""
        if request.method == "POST":
            changes = orjson.loads(await request.body())
            self._world.turn(Knobs.model_validate({**self._world.knobs.model_dump(), **changes}))
        return JSONResponse(self._world.knobs.model_dump())

    async def faults(self, request: Request) -> Response:
        if request.method == "POST":
            fault = Fault.model_validate_json(await request.body())
            if fault.provider not in ("any", *self._runner.vendors):
                return JSONResponse({"error": f"there is no provider {fault.provider}"}, status_code=400)
            number = self._world.faults.add(fault)
            return JSONResponse({"id": number})
        if request.method == "DELETE":
            self._world.faults.clear()
        known = self._world.database.faults()
        return JSONResponse(
            [{"id": number, "seen": seen, **orjson.loads(text)} for number, text, seen in known]
        )

    async def batch(self, request: Request) -> Response:
        """A batch, by its id or the last part of its name."""
        database = self._world.database
        batch_id = request.path_params["id"].rpartition("/")[2]
        batch = database.batch(batch_id)
        if batch is None:
            return JSONResponse({"error": f"there is no batch {batch_id}"}, status_code=404)
        if request.method == "POST":
            command = _Command.model_validate_json(await request.body())
            if batch.phase not in LIVE and command.action != "end":
                return JSONResponse({"error": f"batch {batch_id} is {batch.phase}"}, status_code=409)
            batch = self._steered(batch, command)
        while request.query_params.get("until_ended") and batch is not None and batch.phase in LIVE:
            await asyncio.sleep(_LOOK_SECONDS)
            batch = database.batch(batch_id)
        assert batch is not None
        live = batch.phase in LIVE
        known = {
            "id": batch.id,
            "provider": batch.provider,
            "phase": batch.phase,
            "live": live,
            "facts": batch.facts,
        }
        return JSONResponse(known)

    def _steered(self, batch: Batch, command: _Command) -> Batch:
        if batch.phase not in LIVE or batch.phase is BatchPhase.FINISHING:
            return batch
        now = self._world.clock.now()
        change = self._world.database.change_batch
        match command.action:
            case "hold":
                wake = batch.wake_at if batch.phase is BatchPhase.ACCEPTED else batch.facts["expires_at"]
                batch = change(batch.id, batch.phase, wake, ends_at=None)
            case "expire":
                ending = {"outcome": RowFate.EXPIRED, "share": command.share}
                batch = change(batch.id, batch.phase, now, ends_at=now, ending=ending)
            case _:
                batch = change(batch.id, batch.phase, now, ends_at=now)
        self._runner.poke()
        return batch

    async def ledger(self, request: Request) -> Response:  # noqa: ARG002
        providers = self._runner.vendors
        return JSONResponse(await anyio.to_thread.run_sync(report_ledger, self._world.database, providers))

    async def rows(self, request: Request) -> Response:
        lines = charge_lines(self._world.database, dict(request.query_params))
        return StreamingResponse(iterate_in_threadpool(lines), media_type="application/x-jsonl")

    async def reset(self, request: Request) -> Response:
        """Forget batches, files, faults and the ledger; knobs return to where they were at the start, and with `clock` it."""
        await self._runner.idle()
        self._world.database.wipe()
        self._world.limits.clear()
        self._world.prefixes.clear()
        for name in ("batches", "files", "incoming"):
            shutil.rmtree(self._world.settings.data_dir / name, ignore_errors=True)
        seconds = self._world.settings.batch_seconds
        self._world.turn(Knobs() if seconds is None else Knobs(batch_seconds=seconds))
        if "clock" in request.query_params:
            self._world.set_ahead(0.0)
        return JSONResponse({})


def _checked(
    handle: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    async def checked(request: Request) -> Response:
        try:
            return await handle(request)
        except (ValidationError, orjson.JSONDecodeError) as error:
            return JSONResponse({"error": str(error)}, status_code=400)

    return checked


def report_ledger(database: Database, providers: Iterable[str]) -> dict[str, Any]:
    """Return the ledger of each provider."""
    with closing(open_connection(database.path)) as connection:
        return {provider: _provider(connection, provider) for provider in providers}


def _provider(connection: Any, provider: str) -> dict[str, Any]:
    def ask(sql: str) -> list[Any]:
        return connection.execute(sql, (provider,)).fetchall()  # type: ignore[no-any-return]

    batches = ask("SELECT id, phase FROM batches WHERE provider = ? ORDER BY seq")
    outcomes = dict(ask("SELECT outcome, sum(n) FROM counts WHERE provider = ? GROUP BY outcome"))
    charged = ask(
        f"SELECT way, model, sum(n), {SUM_OF_TOKENS} FROM counts WHERE provider = ? AND charged GROUP BY way, model"
    )
    bill = _bill(charged)
    contents, surplus = ask(
        "SELECT count(*), coalesce(sum(n - 1), 0) FROM "
        "(SELECT count(*) AS n FROM answers WHERE provider = ? AND charged GROUP BY content HAVING n > 1)"
    )[0]
    calls: dict[str, dict[str, int]] = {}
    for endpoint, status, n in ask("SELECT endpoint, status, n FROM calls WHERE provider = ?"):
        calls.setdefault(endpoint, {})[str(status)] = n
    executed = sum(outcomes.get(outcome, 0) for outcome in ("succeeded", "errored"))
    return {
        "batches": [batch_id for batch_id, _ in batches],
        "running": [batch_id for batch_id, phase in batches if BatchPhase(phase) in LIVE],
        "rows": {"executed": executed, "charged": bill["rows"], **outcomes},
        "tokens": bill["tokens"],
        "by_model": bill["by_model"],
        "ways": {way.value: _bill(line for line in charged if line[0] == way) for way in BilledWay},
        "duplicates": {"contents": contents, "surplus_charges": surplus},
        "calls": {endpoint: sum(statuses.values()) for endpoint, statuses in calls.items()},
        "answers": calls,
    }


def _bill(charged: Iterable[Sequence[Any]]) -> dict[str, Any]:
    """Rows and tokens, in sum and per model, of lines of way, model, rows and tokens."""
    by_model: dict[str, dict[str, int]] = {}
    for _, model, rows, *tokens in charged:
        part = by_model.setdefault(model, dict.fromkeys(("rows", *BilledUsage._fields), 0))
        for name, count in zip(part, (rows, *tokens), strict=True):
            part[name] += count
    return {
        "rows": sum(part["rows"] for part in by_model.values()),
        "tokens": {name: sum(part[name] for part in by_model.values()) for name in BilledUsage._fields},
        "by_model": by_model,
    }


def charge_lines(database: Database, filters: Mapping[str, str]) -> Iterator[bytes]:
    """The answers as JSON lines: all, or by `provider`, `way`, `batch`, `custom_id`, `outcome` or `content`.

    `duplicates` leaves those whose content was charged more than once.
    """
    where, values = _condition(filters)
    names = ("provider", "batch", "way", *Charge._fields)
    with closing(open_connection(database.path)) as connection:
        for fields in connection.execute(f"SELECT {', '.join(names)} FROM answers {where}", values):
            row = dict(zip(names, fields, strict=True))
            row["content"] = row["content"].hex()
            yield orjson.dumps(row) + b"\n"


def _condition(filters: Mapping[str, str]) -> tuple[str, Sequence[Any]]:
    known = [name for name in filters if name in ("provider", "way", "batch", "custom_id", "outcome")]
    parts = [f"{name} = ?" for name in known]
    values: list[Any] = [filters[name] for name in known]
    if "content" in filters:
        parts.append("content = ?")
        values.append(bytes.fromhex(filters["content"]))
    if filters.get("duplicates") == "true":
        parts.append(
            "charged AND content IN (SELECT content FROM answers WHERE charged GROUP BY content HAVING count(*) > 1)"
        )
    return ("WHERE " + " AND ".join(parts) if parts else ""), values


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
        routes.extend(_VendorRoute(each, gate) for each in endpoints)
    return routes


class _VendorRoute(Route):
    """Takes the calls to one path that are meant for its vendor."""

    def __init__(self, endpoint: Endpoint, gate: Gate) -> None:
        super().__init__(endpoint.path, gate.guard(endpoint), methods=[endpoint.method])
        self._header = endpoint.header.encode()

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if self._header and self._header not in dict(scope["headers"]):
            return Match.NONE, {}
        return super().matches(scope)


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
