"""Anthropic's Message Batches, as one provider among others."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from airflow_batch_llm.core.attachment import AttachmentRules
from airflow_batch_llm.core.model import (
    Answered,
    BatchStatus,
    Call,
    Lease,
    Limits,
    Result,
    Search,
    ShardFile,
    Sighting,
    Way,
)
from airflow_batch_llm.core.request import LineTemplate
from airflow_batch_llm.providers.anthropic import flows
from airflow_batch_llm.providers.anthropic.flows import (
    SDK,
    creation,
    open_async_client,
    open_client,
)
from airflow_batch_llm.providers.anthropic.lines import (
    CONTENT,
    SAMPLING,
    answer_cap,
    answered_line,
    attachment_rules,
    decode,
    least_cached,
    limits_of,
    message_line,
    refuse_sampling,
    refused_line,
)
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.providers.clients import Clients, asked_now, create, stream_lines
from airflow_batch_llm.providers.failures import CallFailure, without
from airflow_batch_llm.providers.incoming import parse_line
from airflow_batch_llm.providers.steps import TRIGGER, WORKER, ListMemory, adrive, drive

_HOST = "api.anthropic.com"


class AnthropicProvider:
    """Anthropic, the Claude Platform on AWS, and any other platform that an SDK client with Message Batches reaches.

    `Access.options` go to the SDK's client as they are (`default_headers`, say).
    """

    name = "anthropic"
    limits = Limits(
        max_requests=100_000,
        max_bytes=32_000_000,
        max_request_bytes=32_000_000,
        window_seconds=86_400,
        kept_seconds=29 * 86_400,
    )

    def __init__(self, access: Access) -> None:
        self._access = access
        self._clients = Clients(lambda: open_client(access), lambda: open_async_client(access))
        self._memory = ListMemory()

    @property
    def host(self) -> str | None:
        url = self._access.base_url or str(self._clients.sync.base_url)
        host = urlsplit(url).hostname
        return None if host == _HOST else host

    def encode(self, call: Call) -> LineTemplate:
        line = message_line(call)
        if SAMPLING & call.params.keys():
            refuse_sampling(call, str(self._clients.sync.default_headers.get("anthropic-version", "")))
        return LineTemplate.of(line, CONTENT if call.attachments else None)

    def attachment_rules(self, call: Call) -> AttachmentRules:
        return attachment_rules(call.model)

    def store_file(self, file: Path, name: str, media_type: str) -> str:
        return drive(flows.store_file(file, name, media_type), self._clients.sync)

    def find_files(self, prefix: str) -> Mapping[str, Sequence[str]]:
        return drive(flows.find_files(prefix), self._clients.sync)

    def decode(self, line: bytes) -> Result:
        return without(decode(line), self._access)

    def upload(self, shard: ShardFile) -> str:  # noqa: ARG002 - the requests go with the creation
        return ""

    def submit(self, shard: ShardFile, upload: str, lease: Lease) -> str:  # noqa: ARG002 - nothing is uploaded
        with self._clients.creating(again=self._access.client is None) as client:
            return create(
                client, creation(flows.BATCHES, shard.path, flows.batch_id), lease, SDK.judged_creation
            )

    def check(self, batch_ids: Sequence[str]) -> Mapping[str, BatchStatus]:
        return drive(flows.check(batch_ids, WORKER, self._memory), self._clients.sync)

    async def acheck(self, batch_ids: Sequence[str]) -> Mapping[str, BatchStatus]:
        return await adrive(flows.check(batch_ids, TRIGGER, self._memory), await self._clients.asynchronous())

    def cancel(self, batch_id: str) -> None:
        drive(flows.cancel(batch_id, WORKER), self._clients.sync)

    def note_created(self, about: Mapping[str, float]) -> None:
        self._memory.note(about)

    async def acancel(self, batch_id: str) -> None:
        await adrive(flows.cancel(batch_id, TRIGGER), await self._clients.asynchronous())

    def results(self, batch_id: str) -> Iterator[bytes]:
        client = self._clients.sync
        stream = drive(flows.open_results(batch_id, client), client)
        return stream_lines(stream.response, batch_id)

    def find(self, search: Search) -> Sequence[Sighting]:
        client = self._clients.sync
        return drive(flows.find(search, client), client)

    def discard(self, upload: str) -> None:
        if upload:  # an attachment: the requests of a batch are not uploaded
            drive(flows.delete(f"{flows.FILES}/{upload}"), self._clients.sync)

    def delete_batch(self, batch_id: str, upload: str) -> None:  # noqa: ARG002 - nothing is uploaded
        drive(flows.delete(f"{flows.BATCHES}/{batch_id}"), self._clients.sync)

    def answer_cap(self, model: str) -> int:
        return answer_cap(model)

    def least_cached(self, call: Call) -> int | None:
        return least_cached(call.model) if call.system_prompt else None

    def flex_problem(self, call: Call) -> str | None:  # noqa: ARG002 - the same for all calls
        return "Anthropic sells half price in batches only. Set way='batch', or way='now' at the full price."

    async def answer(self, call: Call, line: bytes, way: Way) -> Answered:  # noqa: ARG002 - the line holds the call
        asked = parse_line(line)
        client = await self._clients.asynchronous()
        answer, headers = await asked_now(client, "/v1/messages", asked["params"], SDK.refused_now)
        if isinstance(answer, CallFailure):
            return Answered(refused_line(asked["custom_id"], answer))
        return Answered(answered_line(asked["custom_id"], answer), limits_of(headers, time.time()))

    def count_tokens(self, call: Call, prompts: Sequence[str]) -> Sequence[int] | None:
        return drive(flows.count_tokens(call, prompts), self._clients.sync)

    def console_url(self, batch_id: str) -> str | None:
        return None if self.host else f"https://platform.claude.com/workspaces/default/batches/{batch_id}"

    def close(self) -> None:
        self._clients.close()

    async def aclose(self) -> None:
        await self._clients.aclose()
