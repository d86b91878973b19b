"""Serve Anthropic's Message Batches over HTTP.

A creation's body is split while it arrives. Only the custom_ids are checked here, because the vendor checks only these at
once.
"""

import math
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

import anyio.to_thread
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from airflow_batch_llm.core.attachment import media_type_of
from airflow_batch_llm.simulator.anthropic import PROVIDER, rows
from airflow_batch_llm.simulator.anthropic.rows import ERROR_TYPES, RESULTS, VERSIONS, AnthropicRows
from airflow_batch_llm.simulator.bodies import (
    MEGABYTE,
    ArraySplitter,
    BodyError,
    Element,
    copy_file,
    file_chunks,
)
from airflow_batch_llm.simulator.controls import rfc3339
from airflow_batch_llm.simulator.database import Batch, BatchPhase, BilledUsage, BilledWay, StoredFile
from airflow_batch_llm.simulator.execution import INPUT, Asked, RealTime
from airflow_batch_llm.simulator.meters import LimitStanding
from airflow_batch_llm.simulator.request import AskedRequest, Reply, content_digest
from airflow_batch_llm.simulator.vendor import BatchTally, Endpoint, Prepared, Refusal, json_object
from airflow_batch_llm.simulator.world import ANTHROPIC_FILE, World

_DAY = 86_400.0
_MOST_BYTES = 256 * MEGABYTE
_MOST_REQUESTS = 100_000
_MOST_FILE_BYTES = 500 * MEGABYTE
_SHORTEST, _LONGEST = 3600, 90 * 86_400
#: The header that each call to Anthropic has.
_VERSION = "anthropic-version"
_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_SPEND_LIMITS = ("enforced_spend_limit_reached", "contract_spend_limit_reached", "ramp_limit_exceeded")
_STATES = {BatchPhase.CANCELING: "canceling", BatchPhase.ENDED: "ended"}


class Anthropic:
    """The vendor's paths."""

    provider = PROVIDER
    request_id_header = "request-id"

    def __init__(self, world: World) -> None:
        self._world = world
        self._realtime = AnthropicRealTime(world)

    def endpoints(self) -> Sequence[Endpoint]:
        base = "/v1/messages/batches"
        return (
            Endpoint("POST", base, "create", self.create),
            Endpoint("GET", base, "list", self.list_batches, about_state=True),
            Endpoint("GET", base + "/{id}", "retrieve", self.retrieve, about_state=True),
            Endpoint("POST", base + "/{id}/cancel", "cancel", self.cancel),
            Endpoint("DELETE", base + "/{id}", "delete", self.delete),
            Endpoint("GET", base + "/{id}/results", "results", self.results),
            Endpoint("POST", "/v1/files", "upload", self.upload, header=_VERSION),
            Endpoint("GET", "/v1/files", "list_files", self.list_files, header=_VERSION),
            Endpoint("DELETE", "/v1/files/{id}", "delete_file", self.delete_file, header=_VERSION),
            *self._realtime.endpoints(),
        )

    def error(self, refusal: Refusal) -> Response:
        kind = refusal.code or ERROR_TYPES.get(refusal.status, "api_error")
        error: dict[str, Any] = {"type": kind, "message": refusal.message}
        if kind in _SPEND_LIMITS:
            error = {"type": "rate_limit_error", "message": refusal.message, "details": {"error_code": kind}}
        body = {"type": "error", "error": error, "request_id": "req_simulated"}
        return JSONResponse(body, status_code=refusal.status)

    # -- batches -------------------------------------------------------------------------------------------------

    async def create(self, request: Request) -> Response:
        version = version_of(request)
        path = self._world.scratch()
        try:
            with _Incoming(path) as incoming:
                async for chunk in request.stream():
                    incoming.take(chunk)
                total = incoming.complete()
        except BodyError as error:
            path.unlink(missing_ok=True)
            raise Refusal(400, "invalid_request_error", str(error)) from error
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        number = self._world.database.next_batch_number()
        batch_id = f"msgbatch_01{self._world.instance}{number:012d}"
        path.rename(self._world.folder(batch_id) / INPUT)
        facts = {"window": _DAY, "total": total, "version": version}
        batch = self._world.open_batch(self.provider, batch_id, BatchPhase.RUNNING, facts)
        return JSONResponse(self._wire(batch, request))

    async def list_batches(self, request: Request) -> Response:
        limit = _limit(request.query_params.get("limit"))
        database = self._world.database
        if newer_than := request.query_params.get("before_id"):
            found = database.batches_after(self.provider, self._find(newer_than).seq, limit + 1)
            page = list(reversed(found[:limit]))
        else:
            after = request.query_params.get("after_id")
            found = database.newest_batches(
                self.provider, self._find(after).seq if after else None, limit + 1
            )
            page = found[:limit]
        oldest_hidden = self._world.clock.now() - self._world.knobs.list_lag
        data = [self._wire(batch, request) for batch in page if batch.created_at <= oldest_hidden]
        return JSONResponse(
            {
                "data": data,
                "has_more": len(found) > limit,
                "first_id": data[0]["id"] if data else None,
                "last_id": data[-1]["id"] if data else None,
            }
        )

    async def retrieve(self, request: Request) -> Response:
        return JSONResponse(self._wire(self._find(request.path_params["id"]), request))

    async def cancel(self, request: Request) -> Response:
        batch = self._world.cancel(self._find(request.path_params["id"]))
        return JSONResponse(self._wire(batch, request))

    async def delete(self, request: Request) -> Response:
        batch = self._find(request.path_params["id"])
        if batch.phase is not BatchPhase.ENDED:
            raise Refusal(400, None, "In progress batches cannot be deleted. Cancel the batch first.")
        self._world.database.delete_batch(batch.id)
        return JSONResponse({"id": batch.id, "type": "message_batch_deleted"})

    async def results(self, request: Request) -> Response:
        batch = self._find(request.path_params["id"])
        path = self._world.folder(batch.id) / f"{RESULTS}.jsonl"
        if batch.phase is not BatchPhase.ENDED or self._archived_at(batch):
            raise Refusal(404, None, f"Results of Message Batch {batch.id} are not available.")
        return StreamingResponse(file_chunks(path), media_type="application/x-jsonl")

    # -- files ---------------------------------------------------------------------------------------------------

    async def upload(self, request: Request) -> Response:
        version_of(request)
        async with request.form() as form:
            upload, seconds = form.get("file"), form.get("expires_in_seconds")
            if not isinstance(upload, UploadFile):
                raise Refusal(400, None, "file: Field required")
            if (upload.size or 0) > _MOST_FILE_BYTES:
                raise Refusal(413, None, "File exceeds the maximum size")
            if seconds is not None and not (
                str(seconds).isdigit() and _SHORTEST <= int(str(seconds)) <= _LONGEST
            ):
                raise Refusal(400, None, f"expires_in_seconds: must be from {_SHORTEST} to {_LONGEST}")
            path, now = self._world.scratch(), self._world.clock.now()
            await anyio.to_thread.run_sync(copy_file, upload.file, path)
        file = StoredFile(
            id=f"file_01{self._world.instance}{secrets.token_hex(8)}",
            purpose=ANTHROPIC_FILE,
            filename=upload.filename or "unnamed",
            bytes=path.stat().st_size,
            created_at=now,
            expires_at=None if seconds is None else now + float(str(seconds)),
        )
        return JSONResponse(_file(self._world.files.keep(path, file)))

    async def list_files(self, request: Request) -> Response:
        """List files from the oldest to the newest. The vendor promises no order."""
        limit, page = _limit(request.query_params.get("limit")), request.query_params.get("page", "page_0")
        first = int(page.removeprefix("page_"))
        files = self._world.files.kept(lambda purpose: purpose == ANTHROPIC_FILE)
        is_last = len(files) <= first + limit
        data = [_file(file) for file in files[first : first + limit]]
        return JSONResponse({"data": data, "next_page": None if is_last else f"page_{first + limit}"})

    async def delete_file(self, request: Request) -> Response:
        file = self._world.files.find(request.path_params["id"])
        if file is None or file.purpose != ANTHROPIC_FILE:
            raise Refusal(404, None, "File not found.")
        self._world.files.delete(file.id)
        return JSONResponse({"id": file.id, "type": "file_deleted"})

    def _find(self, batch_id: str) -> Batch:
        batch = self._world.database.batch(batch_id)
        if batch is None or batch.provider != self.provider:
            raise Refusal(404, None, f"Message Batch {batch_id} not found.")
        return batch

    def _archived_at(self, batch: Batch) -> float | None:
        moment = batch.created_at + 29 * _DAY
        return moment if self._world.clock.now() >= moment else None

    def _wire(self, batch: Batch, request: Request) -> dict[str, Any]:
        ended = batch.phase is BatchPhase.ENDED
        outcomes: Mapping[str, int] = batch.facts.get("outcomes", {}) if ended else {}
        archived_at = self._archived_at(batch)
        url = f"{request.url.scheme}://{request.url.netloc}/v1/messages/batches/{batch.id}/results"
        return {
            "id": batch.id,
            "type": "message_batch",
            "processing_status": _STATES.get(batch.phase, "in_progress"),
            "request_counts": {
                "processing": 0 if ended else batch.facts["total"],
                "succeeded": outcomes.get("succeeded", 0),
                "errored": outcomes.get("errored", 0),
                "canceled": outcomes.get("canceled", 0),
                "expired": outcomes.get("expired", 0),
            },
            "created_at": rfc3339(batch.created_at),
            "expires_at": rfc3339(batch.facts["expires_at"]),
            "ended_at": rfc3339(batch.facts.get("ended_at")),
            "cancel_initiated_at": rfc3339(batch.facts.get("canceling_at")),
            "archived_at": rfc3339(archived_at),
            "results_url": url if ended and not archived_at else None,
        }

    # -- life of a batch -----------------------------------------------------------------------------------------

    def prepare(self, batch: Batch) -> Prepared:  # noqa: ARG002 - nothing is looked at before the rows run
        return Prepared(facts={})

    def rows(self, batch: Batch) -> AnthropicRows:
        return AnthropicRows(batch.facts["version"], self._world.billing, self._world.files.medium)

    def finish(self, batch: Batch, tally: BatchTally) -> Mapping[str, Any]:  # noqa: ARG002
        (self._world.folder(batch.id) / f"{RESULTS}.jsonl").touch()
        return {}


class _Incoming:
    """The requests of a creation as they arrive: checked, and written one to a line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._splitter = ArraySplitter()
        self._seen: set[str] = set()
        self._bytes = 0

    def __enter__(self) -> Self:
        self._file = self._path.open("wb", buffering=MEGABYTE)
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._file is not None
        self._file.close()

    def take(self, chunk: bytes) -> None:
        self._bytes += len(chunk)
        if self._bytes > _MOST_BYTES:
            raise Refusal(413, None, "Request exceeds the maximum size")
        for element in self._splitter.feed(chunk):
            self._add(element)

    def complete(self) -> int:
        """End the batch and return its number of requests."""
        for element in self._splitter.finish():
            self._add(element)
        if not self._seen:
            raise Refusal(400, None, "requests: List should have at least 1 item after validation, not 0")
        return len(self._seen)

    def _add(self, element: Element) -> None:
        assert self._file is not None
        number = len(self._seen)
        where = f"requests.{number}"
        row = element.value
        if not isinstance(row, dict) or "custom_id" not in row:
            raise Refusal(400, None, f"{where}.custom_id: Field required")
        if not isinstance(row.get("params"), dict):
            raise Refusal(400, None, f"{where}.params: Field required")
        custom_id = row["custom_id"]
        if not isinstance(custom_id, str) or not _CUSTOM_ID.fullmatch(custom_id):
            raise Refusal(
                400, None, f"{where}.custom_id: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'"
            )
        if custom_id in self._seen:
            raise Refusal(400, None, f"{where}.custom_id: Duplicate custom_id '{custom_id}'")
        if number >= _MOST_REQUESTS:
            raise Refusal(400, None, f"requests: List should have at most {_MOST_REQUESTS} items")
        self._seen.add(custom_id)
        self._file.write(element.line + b"\n")


def _file(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "type": "file",
        "filename": file.filename,
        "mime_type": media_type_of(f"file://files/{file.filename}") or "application/octet-stream",
        "size_bytes": file.bytes,
        "created_at": rfc3339(file.created_at),
        "expires_at": rfc3339(file.expires_at),
        "downloadable": False,
    }


def _limit(given: str | None) -> int:
    if given is None:
        return 20
    if not given.isdigit() or not 1 <= int(given) <= 1000:
        raise Refusal(400, None, "limit: Input should be from 1 to 1000")
    return int(given)


class AnthropicRealTime:
    """The paths, and the words of the answers. There is no flex tier."""

    provider = PROVIDER
    no_room = None

    def __init__(self, world: World) -> None:
        self._world = world
        self._realtime = RealTime(world, self)

    def endpoints(self) -> Sequence[Endpoint]:
        return (
            Endpoint("POST", "/v1/messages", "messages", self.messages),
            Endpoint("POST", "/v1/messages/count_tokens", "count_tokens", self.count_tokens),
        )

    async def messages(self, call: Request) -> Response:
        return await self._realtime.answer(await self._asked(call))

    async def count_tokens(self, call: Request) -> Response:
        asked = await self._asked(call, counting=True)
        return JSONResponse({"input_tokens": asked.request.input_tokens})

    async def _asked(self, call: Request, *, counting: bool = False) -> Asked:
        params, find = await json_object(call, "the body is not a JSON object"), self._world.files.medium
        if error := rows.problem(params, version_of(call), counting=counting, find=find):
            raise Refusal(error.status, error.code, error.message)
        digest = content_digest(PROVIDER, params)
        return Asked(rows.as_request(params, "", digest, find), digest)

    def usage(self, request: AskedRequest, answer: Reply) -> BilledUsage:
        return rows.usage_of(request, answer, self._world.billing)

    def body(self, asked: Asked, answer: Reply, usage: BilledUsage) -> dict[str, Any]:
        return rows.message(asked.request, answer, usage)

    def per_minute(self) -> Mapping[str, int | None]:
        knobs = self._world.knobs
        return {
            "requests": knobs.requests_per_minute,
            "input-tokens": knobs.tokens_per_minute,
            "output-tokens": knobs.output_tokens_per_minute,
        }

    def needs(self, request: AskedRequest) -> Mapping[str, int]:
        """Return the needed amounts. Input from a cache does not count. Output counts once it is made, but some must be left."""
        uncached = max(0, request.input_tokens - self._world.knobs.cached_tokens)
        return {"requests": 1, "input-tokens": uncached, "output-tokens": 0}

    def spends(self, usage: BilledUsage) -> Mapping[str, int]:
        return {"output-tokens": usage.output}

    def over_limit(self, model: str, standing: LimitStanding) -> Refusal:
        kind = standing.kind.replace("-", " ")
        return Refusal(429, None, f"Your limit of {standing.limit} {kind} per minute for {model} is used up.")

    def retry_headers(self, seconds: float) -> dict[str, str]:
        return {"retry-after": str(math.ceil(seconds))}

    def limit_headers(self, standings: Sequence[LimitStanding]) -> dict[str, str]:
        """Return the headers. The moments are real ones, because a client compares them with its own clock."""
        now = time.time()
        return {
            f"anthropic-ratelimit-{each.kind}-{name}": str(value)
            for each in _with_sum(standings)
            for name, value in (
                ("limit", each.limit),
                ("remaining", each.remaining),
                ("reset", rfc3339(now + each.full_in)),
            )
        }

    def way(self, body: dict[str, Any]) -> BilledWay:  # noqa: ARG002 - there is only one
        return BilledWay.NOW


def _with_sum(standings: Sequence[LimitStanding]) -> list[LimitStanding]:
    """Add `tokens`, the limits of input and output together."""
    tokens = [each for each in standings if each.kind.endswith("-tokens")]
    if not tokens:
        return [*standings]
    _, limits, remaining, seconds = zip(*tokens, strict=True)
    return [*standings, LimitStanding("tokens", sum(limits), sum(remaining), max(seconds))]


def version_of(call: Request) -> str:
    """Return the API version that a call names. Raises the vendor's refusal if it names none."""
    version = call.headers.get("anthropic-version")
    if version not in VERSIONS:
        raise Refusal(400, None, "anthropic-version: header is required and must be a known version")
    return version
