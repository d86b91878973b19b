"""The control endpoints: the clock, the knobs, faults, single batches, the ledger, and a fresh start."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from typing import Literal

import anyio.to_thread
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import iterate_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from airflow_batch_llm.simulator import ledger
from airflow_batch_llm.simulator.database import LIVE, Batch, BatchPhase, RowFate
from airflow_batch_llm.simulator.execution import Runner
from airflow_batch_llm.simulator.faults import Fault
from airflow_batch_llm.simulator.knobs import Knobs
from airflow_batch_llm.simulator.world import World

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
        return JSONResponse(await anyio.to_thread.run_sync(ledger.report, self._world.database, providers))

    async def rows(self, request: Request) -> Response:
        lines = ledger.charges(self._world.database, dict(request.query_params))
        return StreamingResponse(iterate_in_threadpool(lines), media_type="application/x-jsonl")

    async def reset(self, request: Request) -> Response:  # noqa: ARG002
        """Forget batches, files, faults and the ledger; knobs return to where they were at the start."""
        await self._runner.idle()
        self._world.database.wipe()
        self._world.limits.clear()
        self._world.prefixes.clear()
        for name in ("batches", "files", "incoming"):
            shutil.rmtree(self._world.settings.data_dir / name, ignore_errors=True)
        seconds = self._world.settings.batch_seconds
        self._world.turn(Knobs() if seconds is None else Knobs(batch_seconds=seconds))
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
