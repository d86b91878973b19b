"""Batches of Gemini and Claude on Vertex AI: requests and answers in Cloud Storage or BigQuery, jobs through the API."""

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from airflow_batch_llm.core.attachment import AttachmentRules
from airflow_batch_llm.core.model import (
    Answered,
    BatchStatus,
    Call,
    Lease,
    Limits,
    Result,
    ResultForm,
    Search,
    ShardFile,
    Sighting,
    Way,
)
from airflow_batch_llm.core.request import LineTemplate
from airflow_batch_llm.errors import InputError, Refused, ResultsGone, Unavailable
from airflow_batch_llm.providers.base import Access
from airflow_batch_llm.providers.clients import gc_paused
from airflow_batch_llm.providers.failures import saying
from airflow_batch_llm.providers.incoming import parse_line
from airflow_batch_llm.providers.steps import TRIGGER, WORKER, ListMemory, adrive, drive
from airflow_batch_llm.providers.vertex import jobs
from airflow_batch_llm.providers.vertex import jobs as flows
from airflow_batch_llm.providers.vertex.clients import AsyncJobs, TokenCounter, VertexJobs
from airflow_batch_llm.providers.vertex.errors import judged_file, refused_now
from airflow_batch_llm.providers.vertex.lines import (
    RESULT_FORM,
    answer_cap,
    answered_line,
    attachment_rules,
    decode,
    encode,
    flex_problem,
    refused_line,
)
from airflow_batch_llm.providers.vertex.storage import (
    TABLE,
    Bucket,
    Staging,
    StoragePlace,
    Tables,
    answer_line,
    files,
    requests_table,
)

_LIMITS = Limits(
    max_requests=200_000,
    max_bytes=200_000_000,
    max_request_bytes=20_000_000,
    window_seconds=96 * 3600,  # at most 72 hours in the queue, then at most 24 hours of running
)


class VertexProvider:
    """Gemini and Claude on Vertex AI."""

    name = "vertex"
    limits = _LIMITS

    def __init__(self, access: Access) -> None:
        self._access = access
        self._place = StoragePlace.of(access)
        self._opening = threading.RLock()
        self._memory = ListMemory()
        self._jobs: VertexJobs | None = None
        self._stagings: dict[bool, Staging] = {}
        self._counter: TokenCounter | None = None
        self._async_jobs: AsyncJobs | None = None

    @property
    def host(self) -> str | None:
        return self._place.host

    def encode(self, call: Call) -> LineTemplate:
        if jobs.is_claude(call.model) and self._place.location == "global":
            raise InputError(
                "Vertex runs no batches of Claude at location 'global'. Name a region that has the model: location='us-east5'."
            )
        return encode(call)

    def attachment_rules(self, call: Call) -> AttachmentRules:
        return attachment_rules(call.model, has_bucket=self._place.has_bucket)

    def store_file(self, file: Path, name: str, media_type: str) -> str:
        with judged_file():
            return self._bucket().store_file(file, self._place.attachment(name), media_type)

    def find_files(self, prefix: str) -> Mapping[str, Sequence[str]]:
        return self._bucket().find_files(self._place.attachment(prefix))

    def _bucket(self) -> Bucket:
        staging = self._staging(self._place.staging)
        assert isinstance(staging, Bucket), "without a bucket the rules allow no uploads"
        return staging

    def decode(self, line: bytes) -> Result:
        return decode(line)

    def upload(self, shard: ShardFile) -> str:
        # Importing the jobs' SDK and finding credentials take seconds, which would shorten the lease.
        self._open_jobs()
        place = self._place.staging
        return self._staging(place).upload(shard.path, place, shard.token)

    def submit(self, shard: ShardFile, upload: str, lease: Lease) -> str:
        job = {
            "display_name": shard.token,
            "model": jobs.model_path(shard.call.model),
            "labels": jobs.labels(shard.token),
            **files(upload, uuid4().hex),
        }
        # A session that keeps to the lease sends nothing else, so a creation has a client of its own.
        client = self._new_jobs()
        try:
            return client.create(job, lease)
        finally:
            client.close()

    def check(self, batch_ids: Sequence[str]) -> Mapping[str, BatchStatus]:
        return drive(flows.check(batch_ids, time.time(), WORKER, self._memory), self._open_jobs())

    def cancel(self, batch_id: str) -> None:
        drive(flows.cancel(batch_id, WORKER), self._open_jobs())

    def results(self, batch_id: str) -> Iterator[bytes]:
        try:
            yield from self._lines(batch_id)
        except ResultsGone as error:
            raise ResultsGone(f"The answers of {batch_id} are gone: {error}") from error
        except Unavailable as error:
            unread = Unavailable(
                f"The answers of {batch_id} could not be read: {error}", retry_after=error.retry_after
            )
            raise saying(unread, status=error.status, detail=error.detail) from error

    def _lines(self, batch_id: str) -> Iterator[bytes]:
        output, promised = self._output(batch_id)
        if output:
            yield from self._staging(output).lines(output, promised=promised)

    def _output(self, batch_id: str) -> tuple[str | None, bool]:
        """Return where an ended job has written its answers, and whether there must be some."""
        job = self._ended_job(batch_id)
        promised = job.promises_answers
        output = job.output or (job.destination if promised else None)
        if promised and not output:
            raise ResultsGone("The job does not say where it has written them.")
        return output, promised

    @property
    def table_scheme(self) -> str:
        return TABLE

    def requests_table(self, token: str, place: str) -> str:
        staging = self._place.chosen_staging or ""
        return requests_table(self._place.staging if staging.startswith(TABLE) else place, token)

    def answers_table(self, batch_id: str) -> str | None:
        return self._output(batch_id)[0]

    def answer_line(self, row: Mapping[str, Any]) -> bytes:
        return answer_line(row)

    def result_form(self, call: Call) -> ResultForm:
        if jobs.is_claude(call.model):
            raise InputError(
                "execution='warehouse' reads answers of Gemini, and the model is a Claude. Set execution='worker'."
            )
        return RESULT_FORM

    def _ended_job(self, batch_id: str) -> jobs.Job:
        try:
            job = drive(flows.look(batch_id, WORKER), self._open_jobs())
        except Refused as error:
            if error.status == 404:
                raise ResultsGone("Vertex no longer knows this job.") from error
            raise
        if not jobs.status(job).state.is_over:
            raise Unavailable("The job has not ended yet.")
        return job

    def find(self, search: Search) -> Sequence[Sighting]:
        return drive(flows.find(search, WORKER), self._open_jobs())

    def discard(self, upload: str) -> None:
        self._staging(upload).delete(upload)

    def delete_batch(self, batch_id: str, upload: str) -> None:
        output = None
        try:
            job = drive(flows.look(batch_id, WORKER), self._open_jobs())
        except Refused as error:
            if error.status != 404:
                raise
        else:
            if not jobs.status(job).state.is_over:
                raise Refused(f"The job {batch_id} has not ended, so its files stay.")
            upload, output = upload or job.upload, job.output or job.destination
        # The job is deleted last, because it names the files.
        if upload or output:
            self._staging(upload or output or "").delete_batch(upload, output)
        drive(flows.delete(batch_id), self._open_jobs())

    def count_tokens(self, call: Call, prompts: Sequence[str]) -> Sequence[int] | None:
        if jobs.is_claude(call.model):
            return None
        with self._opening:
            self._counter = self._counter or TokenCounter.open(self._place)
        return [self._counter.count(call, prompt) for prompt in prompts]

    def console_url(self, batch_id: str) -> str | None:
        return jobs.console_url(batch_id) if self.host is None else None

    def close(self) -> None:
        for client in (self._jobs, self._counter, *self._stagings.values()):
            if client is not None:
                client.close()
        self._jobs = self._counter = None
        self._stagings.clear()

    async def acheck(self, batch_ids: Sequence[str]) -> Mapping[str, BatchStatus]:
        return await adrive(
            flows.check(batch_ids, time.time(), TRIGGER, self._memory), await self._open_async_jobs()
        )

    def note_created(self, about: Mapping[str, float]) -> None:
        self._memory.note(about)

    async def acancel(self, batch_id: str) -> None:
        await adrive(flows.cancel(batch_id, TRIGGER), await self._open_async_jobs())

    def answer_cap(self, model: str) -> int:
        return answer_cap(model)

    def flex_problem(self, call: Call) -> str | None:
        return flex_problem(call, self._place.location)

    async def answer(self, call: Call, line: bytes, way: Way) -> Answered:
        asked = parse_line(line)
        client = await self._open_async_jobs()
        try:
            response = await client.answer(jobs.model_path(call.model), asked["request"], way)
        except Exception as error:  # noqa: BLE001 - whatever ends the call
            refused = refused_now(error)
            return Answered(refused_line(asked, refused))
        return Answered(answered_line(asked, response))

    async def aclose(self) -> None:
        opened, self._async_jobs = self._async_jobs, None
        if opened is not None:
            await opened.close()

    def _new_jobs(self) -> VertexJobs:
        if self._access.client is not None:
            return VertexJobs(self._access.client(), self._place)
        return VertexJobs.open(self._place)

    def _open_jobs(self) -> VertexJobs:
        with self._opening:
            self._jobs = self._jobs or self._new_jobs()
            return self._jobs

    def _staging(self, uri: str) -> Staging:
        """Open the storage of this URI: a run may have uploads from before its connection named another place."""
        in_tables = uri.startswith(TABLE)
        with self._opening:
            if in_tables not in self._stagings:
                self._stagings[in_tables] = self._open_staging(in_tables)
            return self._stagings[in_tables]

    def _open_staging(self, in_tables: bool) -> Staging:
        if in_tables:
            return Tables.open(self._place)
        make: Any = self._access.options.get("storage_client")
        return Bucket(make()) if make else Bucket.open(self._place)

    async def _open_async_jobs(self) -> AsyncJobs:
        opened = self._async_jobs
        return opened if opened is not None else await asyncio.to_thread(self._build_async_jobs)

    def _build_async_jobs(self) -> AsyncJobs:
        """Build the client in a thread, since the SDK's import and its client would block the event loop for a second."""
        with self._opening, gc_paused():
            opened = self._async_jobs
            if opened is None:
                make = self._access.async_client
                opened = AsyncJobs.open(self._place) if make is None else AsyncJobs(make())
                self._async_jobs = opened
            return opened
