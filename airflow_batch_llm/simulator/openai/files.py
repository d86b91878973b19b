"""OpenAI's files: uploaded as multipart forms, which are spooled to disk, and gone when they expire."""

import secrets
from pathlib import Path
from typing import Any

import anyio.to_thread
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from airflow_batch_llm.simulator.bodies import MEGABYTE, copy_file, file_chunks
from airflow_batch_llm.simulator.database import StoredFile
from airflow_batch_llm.simulator.knobs import unix
from airflow_batch_llm.simulator.openai import PROVIDER
from airflow_batch_llm.simulator.vendor import Endpoint, Refusal
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
        return JSONResponse(_wire(self.keep(scratch, name, purpose, lifetime)))

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
        page = [_wire(file) for file in files[:limit]]
        return JSONResponse(paged(page, has_more=len(files) > limit))

    async def retrieve(self, request: Request) -> Response:
        return JSONResponse(_wire(self._found(request)))

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


def _wire(file: StoredFile) -> dict[str, Any]:
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
