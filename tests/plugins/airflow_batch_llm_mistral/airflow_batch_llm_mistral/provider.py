"""Mistral's batch API as one provider among others."""

import asyncio
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from airflow_batch_llm.core.model import (
    BatchStatus,
    Call,
    Lease,
    Limits,
    Result,
    Search,
    ShardFile,
    Sighting,
)
from airflow_batch_llm.core.request import LineTemplate
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.providers.clients import TRANSFER_TIMEOUT, gc_paused, stream_lines
from airflow_batch_llm.providers.creation import Creation, Line, send_once
from airflow_batch_llm.providers.failures import without
from airflow_batch_llm.providers.incoming import text
from airflow_batch_llm.providers.steps import TRIGGER, WORKER, adrive, drive, patiently
from airflow_batch_llm_mistral import flows
from airflow_batch_llm_mistral.http import (
    host_of,
    judged,
    judged_creation,
    open_async_client,
    open_client,
)
from airflow_batch_llm_mistral.wire import decode, endpoint_of, request_line, status_of

_DAY_HOURS = 24


class MistralProvider:
    """Mistral. Of `Access.options` it takes `base_url`, `default_headers` and `timeout`."""

    name = "mistral"
    limits = Limits(
        max_requests=50_000,
        max_bytes=100_000_000,
        max_request_bytes=32_000_000,
        window_seconds=_DAY_HOURS * 3600,
    )

    def __init__(self, access: Access) -> None:
        self._access = access
        self._sync: Any = None
        self._async: Any = None
        self._lock = threading.Lock()
        self._alock = asyncio.Lock()

    @property
    def host(self) -> str | None:
        return host_of(self._access)

    def encode(self, call: Call) -> LineTemplate:
        return LineTemplate.of(request_line(call))

    def decode(self, line: bytes) -> Result:
        return without(decode(line), self._access)

    def upload(self, shard: ShardFile) -> str:
        # An upload that was lost costs nothing, so this may be repeated.
        def send(client: Any) -> Any:
            with shard.path.open("rb") as lines:
                return client.post(
                    flows.FILES,
                    data={"purpose": "batch"},
                    files={"file": (f"{shard.token}.jsonl", lines, "application/jsonl")},
                    timeout=TRANSFER_TIMEOUT,
                )

        return drive(patiently(send, judged, WORKER, lambda answer: text(answer.json()["id"])), self._client)

    def submit(self, shard: ShardFile, upload: str, lease: Lease) -> str:
        run = shard.token.rpartition("-")[0]
        body = orjson.dumps(
            {
                "input_files": [upload],
                "endpoint": endpoint_of(shard.call),
                "model": shard.call.model,
                "timeout_hours": _DAY_HOURS,
                "metadata": {flows.RUN_KEY: run, flows.SHARD_KEY: shard.token},
            }
        )
        creation = Creation(path=flows.JOBS, pieces=(), last=body, size=len(body), read=_job_id)
        client = open_client(self._access)

        def post(content: Iterator[bytes], headers: Mapping[str, str], seconds: float) -> Any:
            headers = {**headers, "Content-Type": "application/json"}
            return client.post(creation.path, content=content, headers=headers, timeout=seconds)

        with client:
            return send_once(creation, Line(http=client, post=post), lease, judged_creation)

    def check(self, batch_ids: Sequence[str]) -> Mapping[str, BatchStatus]:
        return drive(flows.check(batch_ids, WORKER), self._client)

    async def acheck(self, batch_ids: Sequence[str]) -> Mapping[str, BatchStatus]:
        return await adrive(flows.check(batch_ids, TRIGGER), await self._asynchronous())

    def cancel(self, batch_id: str) -> None:
        drive(flows.cancel(batch_id, WORKER), self._client)

    async def acancel(self, batch_id: str) -> None:
        await adrive(flows.cancel(batch_id, TRIGGER), await self._asynchronous())

    def results(self, batch_id: str) -> Iterator[bytes]:
        for file_id in drive(flows.result_files(batch_id), self._client):
            yield from stream_lines(drive(flows.open_file(file_id, batch_id), self._client), batch_id)

    def find(self, search: Search) -> Sequence[Sighting]:
        return drive(flows.find(search), self._client)

    def discard(self, upload: str) -> None:
        drive(flows.discard(upload), self._client)

    def count_tokens(self, call: Call, prompts: Sequence[str]) -> Sequence[int] | None:
        return None

    def console_url(self, batch_id: str) -> str | None:
        return None

    def close(self) -> None:
        with self._lock:
            if self._sync is not None:
                self._sync.close()
                self._sync = None

    async def aclose(self) -> None:
        async with self._alock:
            if self._async is not None:
                await self._async.aclose()
                self._async = None

    @property
    def _client(self) -> Any:
        with self._lock:
            if self._sync is None:
                self._sync = open_client(self._access)
            return self._sync

    async def _asynchronous(self) -> Any:
        async with self._alock:
            if self._async is None:
                self._async = await asyncio.to_thread(self._open_still)
            return self._async

    def _open_still(self) -> Any:
        with gc_paused():
            return open_async_client(self._access)


def _job_id(answer: Any) -> str:
    job = answer.json()
    status_of(job)
    return text(job["id"])
