"""Check the key, the faults, the latency and the count of calls for every call.

A dropped connection is a real one: the protocol class of the server puts the transport's `abort` into the scope, and
the client sees its socket closed.
"""

import asyncio
import ipaddress
import secrets
import tempfile
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import IO, Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from airflow_batch_llm.simulator.bodies import MEGABYTE
from airflow_batch_llm.simulator.controls import CallFault, Fault, SimulatorSettings
from airflow_batch_llm.simulator.vendor import Endpoint, Refusal, Vendor
from airflow_batch_llm.simulator.world import World


def is_loopback(host: str | None) -> bool:
    """Return whether a host name or address can only mean this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


class Doorkeeper:
    """Stands before the whole application."""

    def __init__(self, app: ASGIApp, settings: SimulatorSettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            status, reason = refusal
            await JSONResponse({"error": reason}, status_code=status)(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._settings.allow_remote and not is_loopback(_hostname(f"//{host}")):
            return 403, "The Host header does not name this machine. Start the simulator with --allow-remote."
        if origin is not None and _netloc(origin) != host:
            return 403, "The simulator takes no calls from web pages of another origin."
        if scope["path"].startswith("/control") and not has_key(headers, self._settings.api_key):
            return 401, "The control endpoints want the simulator's key, as `Authorization: Bearer …`."
        return None


def has_key(headers: Headers, wanted: str | None) -> bool:
    """Return whether a call has the key, in any of the vendors' headers, or needs none."""
    if wanted is None:
        return True
    bearer = headers.get("authorization", "").removeprefix("Bearer ")
    given = bearer or headers.get("x-api-key") or headers.get("x-goog-api-key") or ""
    return secrets.compare_digest(given.encode(), wanted.encode())


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:  # not a URL, such as an address with a bracket that is not closed
        return None


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


_ABORT = "simulator.abort"
_DROPPED = 0  # the status under which the ledger counts calls that got no answer
_STATUS_MESSAGE = "The simulator was told to answer this."


class AbortableProtocol(HttpToolsProtocol):
    """HTTP whose connections the application can break."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {_ABORT: {"abort": self.transport.abort}}


class Gate:
    """Applies key, faults and latency to the endpoints of one vendor."""

    def __init__(self, world: World, vendor: Vendor) -> None:
        self._world = world
        self._vendor = vendor

    def guard(self, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            response = await self._answer(endpoint, request)
            status = _DROPPED if isinstance(response, _NoAnswer) else response.status_code
            self._world.database.count_call(self._vendor.provider, endpoint.name, status)
            response.headers[self._vendor.request_id_header] = f"req_{secrets.token_hex(12)}"
            return response

        return guarded

    async def _answer(self, endpoint: Endpoint, request: Request) -> Response:
        fault = self._world.faults.for_call(self._vendor.provider, endpoint.name)
        if fault is None:
            return await self._handle(endpoint, request)
        match fault.kind, fault.effect:
            case CallFault.DROP, "before":
                return _NoAnswer(request)
            case CallFault.DROP, "after":
                await self._handle(endpoint, request)
                return _NoAnswer(request)
            case CallFault.STATUS, effect:
                if effect == "after":
                    await self._handle(endpoint, request)
                return self._status(fault)
            case ((CallFault.BODY | CallFault.BOMB), effect):
                if effect == "after":
                    await self._handle(endpoint, request)
                return _in_its_place(fault)
            case CallFault.DELAY, "before":
                return await self._late(endpoint, request, fault)
            case CallFault.DELAY, _:
                response = await self._handle(endpoint, request)
                await asyncio.sleep(fault.seconds)
                return response
            case CallFault.REPEAT, _:
                return await self._repeated(endpoint, request, fault)
            case _:
                return _cut(await self._handle(endpoint, request), request, fault)

    async def _handle(self, endpoint: Endpoint, request: Request) -> Response:
        if endpoint.about_state and self._world.knobs.latency:
            await asyncio.sleep(self._world.knobs.latency)
        try:
            self._check_key(request)
            return await endpoint.handle(request)
        except Refusal as refusal:
            response = self._vendor.error(refusal)
            response.headers.update(refusal.headers)
            return response
        except ClientDisconnect:
            return Response(status_code=499)

    async def _late(self, endpoint: Endpoint, request: Request, fault: Fault) -> Response:
        """Let the whole request take effect only after a while, even if the client no longer waits."""
        with tempfile.SpooledTemporaryFile(max_size=MEGABYTE) as body:
            await _keep(request, body)
            await asyncio.sleep(fault.seconds)
            return await self._handle(endpoint, _again(request, body))

    async def _repeated(self, endpoint: Endpoint, request: Request, fault: Fault) -> Response:
        """Let the request take effect twice. The client gets the second answer, or the first."""
        with tempfile.SpooledTemporaryFile(max_size=MEGABYTE) as body:
            await _keep(request, body)
            first = await self._handle(endpoint, _again(request, body))
            second = await self._handle(endpoint, _again(request, body))
        return second if fault.effect == "before" else first

    def _check_key(self, request: Request) -> None:
        if not has_key(request.headers, self._world.settings.api_key):
            raise Refusal(401, None, "The API key is not the one that the simulator was started with.")

    def _status(self, fault: Fault) -> Response:
        response = self._vendor.error(Refusal(fault.status, fault.code, fault.message or _STATUS_MESSAGE))
        if fault.retry_after is not None:
            response.headers["retry-after"] = f"{fault.retry_after:g}"
        response.headers.update(fault.headers)
        return response


async def _keep(request: Request, body: IO[bytes]) -> None:
    async for chunk in request.stream():
        body.write(chunk)


def _again(request: Request, body: IO[bytes]) -> Request:
    """Return the same request, with a body that is read from the kept bytes."""
    body.seek(0)

    async def receive() -> dict[str, Any]:
        chunk = body.read(MEGABYTE)
        return {"type": "http.request", "body": chunk, "more_body": bool(chunk)}

    return Request(request.scope, receive)


class _NoAnswer(Response):
    """Closes the connection instead of answering."""

    def __init__(self, request: Request) -> None:
        super().__init__()
        self._abort = request.scope["extensions"][_ABORT]["abort"]

    async def __call__(self, scope: object, receive: object, send: object) -> None:  # noqa: ARG002
        self._abort()


def _in_its_place(fault: Fault) -> Response:
    """Return an answer that no vendor gives."""
    if fault.kind is CallFault.BODY:
        return Response(fault.text, headers={"content-type": fault.content_type})
    headers = {"content-type": fault.content_type, "content-encoding": "gzip"}
    return Response(_compressed(fault.bytes or 0), headers=headers)


def _compressed(size: int) -> bytes:
    """Yield `count` equal bytes, compressed without holding them."""
    block = b"x" * MEGABYTE
    packer = zlib.compressobj(wbits=31)
    pieces = [packer.compress(block[: min(MEGABYTE, size - done)]) for done in range(0, size, MEGABYTE)]
    return b"".join([*pieces, packer.flush()])


def _cut(response: Response, request: Request, fault: Fault) -> Response:
    """Return the same answer, whose connection breaks after this many bytes or lines."""
    if response.status_code != 200:
        return response
    abort = request.scope["extensions"][_ABORT]["abort"]
    chunks = response.body_iterator if isinstance(response, StreamingResponse) else _whole(response)

    async def broken() -> AsyncIterator[bytes]:
        left = fault.bytes
        lines = fault.lines
        async for chunk in chunks:
            assert isinstance(chunk, bytes)
            if lines is not None:
                left = _end_of_lines(chunk, lines)
                lines -= chunk.count(b"\n")
            if left is not None and left < len(chunk):
                yield chunk[:left]
                await asyncio.sleep(0.05)  # what was written leaves before the connection breaks
                abort()
                return
            yield chunk
            left = None if left is None else left - len(chunk)

    headers = {key: value for key, value in response.headers.items() if key != "content-length"}
    return StreamingResponse(broken(), headers=headers)


async def _whole(response: Response) -> AsyncIterator[bytes]:
    yield bytes(response.body)


def _end_of_lines(chunk: bytes, lines: int) -> int:
    """Return the position a few bytes into the line after this many; beyond the chunk if it does not hold that many."""
    position = 0
    for _ in range(lines):
        found = chunk.find(b"\n", position)
        if found < 0:
            return len(chunk)
        position = found + 1
    return min(position + 10, len(chunk))
