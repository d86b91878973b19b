"""OpenAI's files and batches over HTTP.

Files are uploaded as multipart forms, which are spooled to disk, and are gone when they expire.
"""

import math
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio.to_thread
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from airflow_batch_llm.simulator.bodies import MEGABYTE, copy_file, file_chunks
from airflow_batch_llm.simulator.controls import BatchFault, batch_fault, unix
from airflow_batch_llm.simulator.database import (
    Batch,
    BatchPhase,
    BilledUsage,
    BilledWay,
    RowFate,
    StoredFile,
)
from airflow_batch_llm.simulator.execution import INPUT, Asked, RealTime
from airflow_batch_llm.simulator.meters import LimitStanding
from airflow_batch_llm.simulator.openai import PROVIDER, answers, rows
from airflow_batch_llm.simulator.openai.answers import CHAT, EMBEDDINGS, RESPONSES
from airflow_batch_llm.simulator.openai.rows import (
    ENDPOINTS,
    ERRORS,
    OUTPUT,
    BadInput,
    OpenAIRows,
    check_file,
    error_body,
)
from airflow_batch_llm.simulator.request import AskedRequest, Reply, RowError, content_digest
from airflow_batch_llm.simulator.vendor import BatchTally, Endpoint, Prepared, Refusal, Rejected, json_object
from airflow_batch_llm.simulator.world import ANTHROPIC_FILE, World

MONTH = 30 * 86_400.0
_LARGEST = 512 * MEGABYTE
_SHORTEST, _LONGEST = 3600, 2_592_000


class OpenAIFiles:
    """The file endpoints, and the files for the batches."""

    provider = PROVIDER

    def __init__(self, world: World) -> None:
        self._world = world

    def endpoints(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint("POST", "/v1/files", "upload", self.upload),
            Endpoint("GET", "/v1/files", "list_files", self.list_files),
            Endpoint("GET", "/v1/files/{id}", "retrieve_file", self.retrieve),
            Endpoint("DELETE", "/v1/files/{id}", "delete_file", self.delete),
            Endpoint("GET", "/v1/files/{id}/content", "content", self.content),
        )

    async def upload(self, request: Request) -> Response:
        async with request.form() as form:
            upload, purpose = form.get("file"), form.get("purpose")
            if not isinstance(upload, UploadFile) or not isinstance(purpose, str):
                raise Refusal(
                    400, "missing_required_parameter", "'file' and 'purpose' are required.", param="file"
                )
            name = upload.filename or "upload"
            if purpose == "batch" and not name.endswith(".jsonl"):
                raise Refusal(400, None, "Invalid file format for Batch API. Must be .jsonl", param="file")
            if (upload.size or 0) > _LARGEST:
                raise Refusal(413, None, f"The file is larger than {_LARGEST} bytes.")
            lifetime = _lifetime(form)
            if lifetime is None and purpose == "batch":
                lifetime = MONTH
            scratch = self._world.scratch()
            await anyio.to_thread.run_sync(copy_file, upload.file, scratch)
        return JSONResponse(_file_wire(self.keep(scratch, name, purpose, lifetime)))

    def keep(self, path: Path, name: str, purpose: str, lifetime: float | None) -> StoredFile:
        """Take a file over under an id of its own."""
        now = self._world.clock.now()
        file = StoredFile(
            id=f"file-{self._world.instance}{secrets.token_hex(8)}",
            purpose=purpose,
            filename=name,
            bytes=path.stat().st_size,
            created_at=now,
            expires_at=None if lifetime is None else now + lifetime,
        )
        return self._world.files.keep(path, file)

    async def list_files(self, request: Request) -> Response:
        query = request.query_params
        files = self._world.files.kept(_is_own)
        if query.get("order", "desc") == "desc":
            files.reverse()
        if purpose := query.get("purpose"):
            files = [file for file in files if file.purpose == purpose]
        if after := query.get("after"):
            places = [index for index, file in enumerate(files) if file.id == after]
            files = files[places[0] + 1 :] if places else []
        limit = int(query.get("limit", 10_000))
        page = [_file_wire(file) for file in files[:limit]]
        return JSONResponse(paged(page, has_more=len(files) > limit))

    async def retrieve(self, request: Request) -> Response:
        return JSONResponse(_file_wire(self._found(request)))

    async def delete(self, request: Request) -> Response:
        file = self._found(request)
        self._world.files.delete(file.id)
        return JSONResponse({"id": file.id, "object": "file", "deleted": True})

    async def content(self, request: Request) -> Response:
        file = self._found(request)
        headers = {"content-disposition": f'attachment; filename="{file.filename}"'}
        path = self._world.files.path(file.id)
        return StreamingResponse(file_chunks(path), media_type="application/octet-stream", headers=headers)

    def _found(self, request: Request) -> StoredFile:
        file = self._world.files.find(request.path_params["id"])
        if file is None or not _is_own(file.purpose):
            raise Refusal(404, None, f"No such File object: {request.path_params['id']}", param="id")
        return file


def paged(data: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """A page of a list, as OpenAI writes it."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }


def _is_own(purpose: str) -> bool:
    return purpose != ANTHROPIC_FILE


def _lifetime(form: FormData) -> float | None:
    seconds = form.get("expires_after[seconds]")
    if seconds is None:
        return None
    if form.get("expires_after[anchor]") != "created_at" or not str(seconds).isdigit():
        raise Refusal(
            400, None, "expires_after needs the anchor created_at and seconds.", param="expires_after"
        )
    return float(in_range(int(str(seconds)), "expires_after"))


def in_range(seconds: int, param: str) -> int:
    if not _SHORTEST <= seconds <= _LONGEST:
        raise Refusal(400, None, f"seconds must be from {_SHORTEST} to {_LONGEST}.", param=param)
    return seconds


def _file_wire(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": unix(file.created_at),
        "expires_at": unix(file.expires_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


_DAY = 86_400.0
_PAIRS, _KEY, _VALUE = 16, 64, 512
_ENDS = {RowFate.EXPIRED: "expired", RowFate.CANCELED: "cancelled"}
_STATES = {
    BatchPhase.ACCEPTED: "validating",
    BatchPhase.RUNNING: "in_progress",
    BatchPhase.CANCELING: "cancelling",
    BatchPhase.FINISHING: "finalizing",
    BatchPhase.REJECTED: "failed",
}


class OpenAI:
    """The vendor's paths."""

    provider = PROVIDER
    request_id_header = "x-request-id"

    def __init__(self, world: World) -> None:
        self._world = world
        self._files = OpenAIFiles(world)
        self._realtime = OpenAIRealTime(world)

    def endpoints(self) -> Sequence[Endpoint]:
        return (
            *self._files.endpoints(),
            Endpoint("POST", "/v1/batches", "create", self.create),
            Endpoint("GET", "/v1/batches", "list", self.list_batches, about_state=True),
            Endpoint("GET", "/v1/batches/{id}", "retrieve", self.retrieve, about_state=True),
            Endpoint("POST", "/v1/batches/{id}/cancel", "cancel", self.cancel),
            *self._realtime.endpoints(),
        )

    def error(self, refusal: Refusal) -> Response:
        error = RowError(refusal.status, refusal.code or "", refusal.message, refusal.param)
        return JSONResponse(error_body(error, refusal.kind), status_code=refusal.status)

    # -- batches -------------------------------------------------------------------------------------------------

    async def create(self, request: Request) -> Response:
        body = await json_object(request, NO_JSON)
        for name in ("input_file_id", "endpoint", "completion_window"):
            if not body.get(name):
                raise Refusal(
                    400, "missing_required_parameter", f"Missing required parameter: '{name}'.", param=name
                )
        if body["endpoint"] not in ENDPOINTS or body["completion_window"] != "24h":
            raise Refusal(400, "invalid_value", "The endpoint or the completion_window is not supported.")
        _check_metadata(body.get("metadata"))
        expiry = body.get("output_expires_after") or {"seconds": MONTH}
        facts = {
            "window": _DAY,
            "input_file_id": body["input_file_id"],
            "endpoint": body["endpoint"],
            "metadata": body.get("metadata"),
            "output_lifetime": in_range(int(expiry["seconds"]), "output_expires_after"),
        }
        if self._world.knobs.enqueued_answer == "429":
            await anyio.to_thread.run_sync(self._refuse_when_full, facts)
        number = self._world.database.next_batch_number()
        batch_id = f"batch_{self._world.instance}{number:016x}"
        return JSONResponse(
            _wire(self._world.open_batch(self.provider, batch_id, BatchPhase.ACCEPTED, facts))
        )

    async def list_batches(self, request: Request) -> Response:
        limit = min(int(request.query_params.get("limit", 20)), 100)
        after = request.query_params.get("after")
        seq = self._find(after).seq if after else None
        found = self._world.database.newest_batches(self.provider, seq, limit + 1)
        oldest_hidden = self._world.clock.now() - self._world.knobs.list_lag
        data = [_wire(batch) for batch in found[:limit] if batch.created_at <= oldest_hidden]
        return JSONResponse(paged(data, has_more=len(found) > limit))

    async def retrieve(self, request: Request) -> Response:
        return JSONResponse(_wire(self._find(request.path_params["id"])))

    async def cancel(self, request: Request) -> Response:
        batch = self._find(request.path_params["id"])
        if batch.phase in (BatchPhase.ENDED, BatchPhase.REJECTED):
            raise Refusal(409, None, f"Cannot cancel a batch with status '{_status(batch)}'.")
        return JSONResponse(_wire(self._world.cancel(batch)))

    def _find(self, batch_id: str) -> Batch:
        batch = self._world.database.batch(batch_id)
        if batch is None or batch.provider != self.provider:
            raise Refusal(404, None, f"No batch found with id '{batch_id}'.")
        return batch

    # -- life of a batch -----------------------------------------------------------------------------------------

    def prepare(self, batch: Batch) -> Prepared | Rejected:
        if told := batch_fault(batch.facts["faults"], BatchFault.REJECT):
            bad = BadInput(
                told.code or "invalid_request", told.message or "The simulator was told to refuse it."
            )
            return _rejected(bad)
        try:
            facts = self._checked(batch.facts)
            self._refuse_beyond_limit(facts, batch.id)
        except BadInput as bad:
            return _rejected(bad)
        source = self._world.files.path(batch.facts["input_file_id"])
        target = self._world.folder(batch.id) / INPUT
        target.unlink(missing_ok=True)
        target.hardlink_to(source)
        return Prepared(facts=facts)

    def _checked(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        file = self._world.files.find(facts["input_file_id"])
        if file is None or file.purpose != "batch":
            raise BadInput(
                "invalid_request", f"The file {facts['input_file_id']} is not an input file for batches."
            )
        checked = check_file(self._world.files.path(file.id), facts["endpoint"])
        return {"model": checked.model, "total": checked.total, "enqueued": checked.tokens}

    def _refuse_beyond_limit(self, facts: Mapping[str, Any], batch_id: str | None) -> None:
        limit = self._world.knobs.enqueued_tokens
        if limit is None:
            return
        others = sum(
            batch.facts.get("enqueued", 0)
            for batch in self._world.database.live_batches(self.provider)
            if batch.id != batch_id and batch.facts.get("model") == facts["model"]
        )
        if others + facts["enqueued"] > limit:
            raise BadInput(
                "token_limit_exceeded",
                f"Enqueued token limit reached for {facts['model']}. Limit: {limit} enqueued tokens. "
                "Please try again once some in_progress batches have been completed.",
            )

    def _refuse_when_full(self, facts: Mapping[str, Any]) -> None:
        try:
            self._refuse_beyond_limit(self._checked(facts), None)
        except BadInput as bad:
            if bad.entry["code"] == "token_limit_exceeded":
                raise Refusal(429, "token_limit_exceeded", str(bad)) from bad

    def rows(self, batch: Batch) -> OpenAIRows:
        return OpenAIRows(batch.facts["endpoint"], batch.seq, self._world.billing, self._world.files.medium)

    def finish(self, batch: Batch, tally: BatchTally) -> Mapping[str, Any]:
        """The channels that have lines become files; the others have none."""
        facts = {}
        for channel, name in ((OUTPUT, "output_file_id"), (ERRORS, "error_file_id")):
            if tally.written.get(channel):
                path = self._world.folder(batch.id) / f"{channel}.jsonl"
                filename = f"{batch.id}_{channel}.jsonl"
                lifetime = batch.facts["output_lifetime"]
                facts[name] = self._files.keep(path, filename, "batch_output", lifetime).id
        return facts


def _rejected(bad: BadInput) -> Rejected:
    return Rejected(facts={"errors": [bad.entry]})


def _status(batch: Batch) -> str:
    if batch.phase is not BatchPhase.ENDED:
        return _STATES[batch.phase]
    ending = batch.facts.get("ending")
    return _ENDS[RowFate(ending["outcome"])] if ending else "completed"


def _check_metadata(metadata: Any) -> None:
    if metadata is None:
        return
    fits = (
        isinstance(metadata, dict)
        and len(metadata) <= _PAIRS
        and all(
            len(key) <= _KEY and isinstance(value, str) and len(value) <= _VALUE
            for key, value in metadata.items()
        )
    )
    if not fits:
        raise Refusal(400, "invalid_value", "metadata takes 16 pairs of short strings.", param="metadata")


def _wire(batch: Batch) -> dict[str, Any]:
    facts = batch.facts
    status = _status(batch)
    errors = {"object": "list", "data": facts["errors"]} if "errors" in facts else None
    ended_at = unix(facts.get("ended_at"))
    outcomes = facts.get("outcomes", {})
    done = outcomes.get(RowFate.SUCCEEDED, 0)
    used = facts.get("usage") or dict.fromkeys(("input", "cached", "output", "reasoning"), 0)
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": facts["endpoint"],
        "model": facts.get("model"),
        "errors": errors,
        "input_file_id": facts["input_file_id"],
        "completion_window": "24h",
        "status": status,
        "output_file_id": facts.get("output_file_id"),
        "error_file_id": facts.get("error_file_id"),
        "created_at": unix(batch.created_at),
        "in_progress_at": unix(facts.get("running_at")),
        "expires_at": unix(facts["expires_at"]),
        "finalizing_at": unix(facts.get("finishing_at"))
        if status not in ("cancelled", "cancelling")
        else None,
        "completed_at": ended_at if status == "completed" else None,
        "failed_at": ended_at if status == "failed" else None,
        "expired_at": ended_at if status == "expired" else None,
        "cancelling_at": unix(facts.get("canceling_at")),
        "cancelled_at": ended_at if status == "cancelled" else None,
        "request_counts": {
            "total": facts.get("total", 0),
            "completed": done,
            "failed": sum(outcomes.values()) - done,
        },
        "usage": {
            "input_tokens": used["input"],
            "input_tokens_details": {"cached_tokens": used["cached"]},
            "output_tokens": used["output"],
            "output_tokens_details": {"reasoning_tokens": used["reasoning"]},
            "total_tokens": used["input"] + used["output"],
        },
        "metadata": facts["metadata"],
    }


NO_JSON = "We could not parse the JSON body of your request."
_TIERS = {"auto": "default", "default": "default", "flex": "flex", "priority": "priority", "fast": "priority"}


class OpenAIRealTime:
    """The paths, and the words of the answers."""

    provider = PROVIDER
    no_room = "resource_unavailable"

    def __init__(self, world: World) -> None:
        self._world = world
        self._realtime = RealTime(world, self)

    def endpoints(self) -> Sequence[Endpoint]:
        return (
            Endpoint("POST", CHAT, "chat", self.answer),
            Endpoint("POST", RESPONSES, "responses", self.answer),
            Endpoint("POST", EMBEDDINGS, "embeddings", self.answer),
            Endpoint("POST", "/v1/responses/input_tokens", "input_tokens", self.input_tokens),
        )

    async def answer(self, call: Request) -> Response:
        body = await json_object(call, NO_JSON)
        endpoint, find = call.url.path, self._world.files.medium
        if error := rows.problem(endpoint, body, find):
            raise Refusal(error.status, error.code, error.message, param=error.param)
        if _tier(body) not in _TIERS:
            raise Refusal(400, "invalid_value", "service_tier: no such tier.", param="service_tier")
        digest = content_digest(f"{self.provider}{endpoint}", body)
        request = rows.as_request(endpoint, body, "", digest, find)
        return await self._realtime.answer(Asked(request, digest, flex=_tier(body) == "flex"))

    async def input_tokens(self, call: Request) -> Response:
        body = {"model": "", **await json_object(call, NO_JSON)}
        asked = rows.as_request(RESPONSES, body, "", b"\0" * 8)
        return JSONResponse({"object": "response.input_tokens", "input_tokens": asked.input_tokens})

    def usage(self, request: AskedRequest, answer: Reply) -> BilledUsage:
        return answers.usage_of(request, answer, self._world.billing)

    def body(self, asked: Asked, answer: Reply, usage: BilledUsage) -> dict[str, Any]:
        body = answers.body_of(asked.request, answer, usage)
        if answer.body is not None or asked.request.endpoint == EMBEDDINGS:
            return body
        tier = _TIERS[_tier(asked.request.body)]
        return {**body, "service_tier": "default" if tier == "flex" and not asked.flex else tier}

    def way(self, body: dict[str, Any]) -> BilledWay:
        return BilledWay.FLEX if body.get("service_tier") == "flex" else BilledWay.NOW

    def per_minute(self) -> Mapping[str, int | None]:
        knobs = self._world.knobs
        return {"requests": knobs.requests_per_minute, "tokens": knobs.tokens_per_minute}

    def needs(self, request: AskedRequest) -> Mapping[str, int]:
        """A request counts as the longer of its input and of the answer that it admits."""
        return {"requests": 1, "tokens": max(request.input_tokens, request.max_tokens or 0)}

    def spends(self, usage: BilledUsage) -> Mapping[str, int]:  # noqa: ARG002 - all was taken at admission
        return {}

    def over_limit(self, model: str, standing: LimitStanding) -> Refusal:
        message = f"Rate limit reached for {model} on {standing.kind} per min. Limit: {standing.limit}."
        return Refusal(429, "rate_limit_exceeded", message, kind=standing.kind)

    def retry_headers(self, seconds: float) -> dict[str, str]:
        return {"retry-after": str(math.ceil(seconds)), "retry-after-ms": str(math.ceil(seconds * 1000))}

    def limit_headers(self, standings: Sequence[LimitStanding]) -> dict[str, str]:
        return {
            f"x-ratelimit-{name}-{each.kind}": str(value)
            for each in standings
            for name, value in (
                ("limit", each.limit),
                ("remaining", each.remaining),
                ("reset", duration(each.full_in)),
            )
        }


def duration(seconds: float) -> str:
    """A duration as OpenAI's headers write it: 250ms, 1s, 6m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _tier(body: dict[str, Any]) -> Any:
    return body.get("service_tier") or "auto"
