"""OpenAI's Batch API and every server that is compatible with it, as one provider among others."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

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
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.providers.clients import (
    ANSWER_TIMEOUT,
    TRANSFER_TIMEOUT,
    Clients,
    asked_now,
    create,
    stream_lines,
)
from airflow_batch_llm.providers.creation import Creation
from airflow_batch_llm.providers.failures import CallFailure, without
from airflow_batch_llm.providers.incoming import parse_line, text
from airflow_batch_llm.providers.openai import flows
from airflow_batch_llm.providers.openai.flows import (
    SDK,
    open_async_client,
    open_client,
)
from airflow_batch_llm.providers.openai.lines import (
    EMBEDDINGS,
    FLEX,
    FLEX_TIMEOUT,
    answer_cap,
    answered_line,
    attachment_rules,
    content_of,
    decode,
    endpoint_of,
    flex_problem,
    limits_of,
    refused_line,
    request_line,
)
from airflow_batch_llm.providers.openai.request import least_cached
from airflow_batch_llm.providers.steps import TRIGGER, WORKER, Judge, ListMemory, adrive, drive, patiently

_HOST = "api.openai.com"
_DAY = 86_400
#: OpenAI deletes an attachment after this many seconds, the most that it takes, unless a run has done so.
_FILE_SECONDS = 30 * _DAY


class OpenAIProvider:
    """OpenAI, Azure's v1 endpoint, Groq, gateways: by `Access.base_url`.

    Of `Access.options`, `input_expires_after` and `output_expires_after` are the seconds that files are kept (3 days
    for what is sent, or None for a server that takes no expiry; the vendor's own default for what comes back). The
    others go to the SDK's client.
    """

    name = "openai"
    limits = Limits(
        max_requests=50_000,
        max_bytes=100_000_000,
        max_request_bytes=32_000_000,
        window_seconds=_DAY,
        kept_seconds=30 * _DAY,
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
        return LineTemplate.of(request_line(call, self.host), content_of(call))

    def attachment_rules(self, call: Call) -> AttachmentRules:
        return attachment_rules(call, self.host)

    def store_file(self, file: Path, name: str, media_type: str) -> str:
        takes_expiry = self._access.options.get("input_expires_after", _FILE_SECONDS)
        seconds = _FILE_SECONDS if takes_expiry else None
        return self._stored((file, name, media_type), flows.ATTACHMENTS, seconds, SDK.judged_file)

    def find_files(self, prefix: str) -> Mapping[str, Sequence[str]]:
        return drive(flows.find_files(prefix), self._clients.sync)

    def decode(self, line: bytes) -> Result:
        return without(decode(line), self._access)

    def upload(self, shard: ShardFile) -> str:
        file = (shard.path, f"{shard.token}.jsonl", "application/jsonl")
        return self._stored(file, "batch", self._access.options.get("input_expires_after", 3 * _DAY))

    def _stored(
        self, file: tuple[Path, str, str], purpose: str, seconds: int | None, judge: Judge = SDK.judged
    ) -> str:
        """Upload a file, given with its name and its media type, and return its id."""
        # An upload that was lost costs nothing and expires, so this may be repeated.
        kept = {"expires_after": {"anchor": "created_at", "seconds": seconds}} if seconds else {}
        options = {"headers": {"Content-Type": "multipart/form-data"}, "timeout": TRANSFER_TIMEOUT}
        path, name, media_type = file

        def send(client: Any) -> Any:
            # The SDK's `client.files` would import its types of every endpoint: half a second.
            with path.open("rb") as content:
                part = (name, content, media_type)
                body = {"purpose": purpose, **kept}
                return client.post(
                    flows.FILES, cast_to=object, body=body, files=[("file", part)], options=options
                )

        return drive(patiently(send, judge, WORKER, lambda stored: text(stored["id"])), self._clients.sync)

    def submit(self, shard: ShardFile, upload: str, lease: Lease) -> str:
        request: dict[str, Any] = {
            "input_file_id": upload,
            "endpoint": endpoint_of(shard.call),
            "completion_window": "24h",
            "metadata": {flows.RUN_KEY: shard.token.rpartition("-")[0], flows.SHARD_KEY: shard.token},
        }
        if seconds := self._access.options.get("output_expires_after"):
            request["output_expires_after"] = {"anchor": "created_at", "seconds": seconds}
        body = orjson.dumps(request)
        creation = Creation(path=flows.BATCHES, pieces=(), last=body, size=len(body), read=flows.batch_id)
        with self._clients.creating(again=self._access.client is None) as client:
            return create(client, creation, lease, SDK.judged_creation)

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
        for file_id in drive(flows.result_files(batch_id), self._clients.sync):
            stream = drive(flows.open_file(file_id, batch_id), self._clients.sync)
            yield from stream_lines(stream.response, batch_id)

    def find(self, search: Search) -> Sequence[Sighting]:
        return drive(flows.find(search, own_host=self.host is None), self._clients.sync)

    def discard(self, upload: str) -> None:
        drive(flows.discard(upload), self._clients.sync)

    def delete_batch(self, batch_id: str, upload: str) -> None:
        drive(flows.delete(batch_id, upload), self._clients.sync)

    def answer_cap(self, model: str) -> int:
        return answer_cap(model)

    def least_cached(self, call: Call) -> int | None:
        return None if call.vector else least_cached(call, self.host)

    def flex_problem(self, call: Call) -> str | None:
        return flex_problem(call)

    async def answer(self, call: Call, line: bytes, way: Way) -> Answered:  # noqa: ARG002 - the line holds the call
        asked = parse_line(line)
        is_flex = way is Way.FLEX
        body = asked["body"] | (FLEX if is_flex else {})
        timeout = FLEX_TIMEOUT if is_flex else ANSWER_TIMEOUT
        client = await self._clients.asynchronous()
        path = str(asked["url"]).removeprefix("/v1")  # the client's URL ends with it
        answer, headers = await asked_now(client, path, body, SDK.refused_now, timeout)
        if isinstance(answer, CallFailure):
            return Answered(refused_line(asked["custom_id"], answer))
        return Answered(answered_line(asked["custom_id"], answer), limits_of(headers))

    def count_tokens(self, call: Call, prompts: Sequence[str]) -> Sequence[int] | None:
        if endpoint_of(call) == EMBEDDINGS:
            return None
        return drive(flows.count_tokens(call, prompts), self._clients.sync)

    def console_url(self, batch_id: str) -> str | None:
        return None if self.host else f"https://platform.openai.com/batches/{batch_id}"

    def close(self) -> None:
        self._clients.close()

    async def aclose(self) -> None:
        await self._clients.aclose()
