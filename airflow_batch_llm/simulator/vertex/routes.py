"""Vertex's batch prediction jobs over REST, at /v1 and /v1beta1.

A job is created without a look at its input: a bad file fails the job some time later. Names hold the project's
number, whatever the project is called.
"""

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from airflow_batch_llm.simulator.database import LIVE, Batch, BatchPhase
from airflow_batch_llm.simulator.faults import BatchFault, batch_fault
from airflow_batch_llm.simulator.knobs import rfc3339
from airflow_batch_llm.simulator.vendor import BatchTally, Endpoint, Prepared, Refusal, Rejected, json_object
from airflow_batch_llm.simulator.vertex import PROVIDER
from airflow_batch_llm.simulator.vertex.bucket import TABLE, JsonApiBucket, JsonApiTables, StorageError
from airflow_batch_llm.simulator.vertex.filter import FilterError, Test, compile_filter
from airflow_batch_llm.simulator.vertex.jobs import bring, deliver, fill, is_claude, job_facts, job_wire
from airflow_batch_llm.simulator.vertex.realtime import NO_JSON, VertexRealTime
from airflow_batch_llm.simulator.vertex.rows import STATUSES, ClaudeRows, VertexRows
from airflow_batch_llm.simulator.world import World

_QUEUE_SECONDS = 72 * 3600.0
_RUN_SECONDS = 24 * 3600.0
_INTERNAL = 13  # the code of a job that fails through no fault of its file
_JOBS = "/projects/{project}/locations/{location}/batchPredictionJobs"


class Vertex:
    """The vendor's paths."""

    provider = PROVIDER
    request_id_header = "x-request-id"

    def __init__(self, world: World) -> None:
        self._world = world
        self._bucket = JsonApiBucket(world.settings.storage_url)
        self._tables = JsonApiTables(world.settings.bigquery_url)
        self._realtime = VertexRealTime(world)

    def endpoints(self) -> Sequence[Endpoint]:
        return [endpoint for version in ("/v1", "/v1beta1") for endpoint in self._versioned(version)]

    def _versioned(self, version: str) -> Sequence[Endpoint]:
        jobs = version + _JOBS
        return (
            Endpoint("POST", jobs, "create", self.create),
            Endpoint("GET", jobs, "list", self.list_jobs, about_state=True),
            Endpoint("GET", jobs + "/{id}", "retrieve", self.retrieve, about_state=True),
            Endpoint("POST", jobs + "/{id}:cancel", "cancel", self.cancel),
            Endpoint("DELETE", jobs + "/{id}", "delete", self.delete),
            *self._realtime.endpoints(version),
        )

    def error(self, refusal: Refusal) -> Response:
        name = refusal.code or STATUSES.get(refusal.status, "INTERNAL")
        error = {"code": refusal.status, "message": refusal.message, "status": name}
        return JSONResponse({"error": error}, status_code=refusal.status)

    # -- jobs ----------------------------------------------------------------------------------------------------

    async def create(self, request: Request) -> Response:
        facts = job_facts(await json_object(request, NO_JSON))
        project, location = _parent(request)
        if is_claude(facts["model"]) and location == "global":
            raise Refusal(400, None, "Batch prediction of this model is not supported at location global.")
        facts |= {"window": _QUEUE_SECONDS, "project": project, "location": location}
        number = self._world.database.next_batch_number()
        job_id = f"{int(self._world.instance) + 1:09d}{number:010d}"
        return JSONResponse(
            job_wire(self._world.open_batch(self.provider, job_id, BatchPhase.ACCEPTED, facts))
        )

    async def list_jobs(self, request: Request) -> Response:
        query = request.query_params
        try:
            test = compile_filter(query.get("filter", ""))
        except FilterError as error:
            raise Refusal(400, None, str(error)) from error
        size = min(int(query.get("pageSize") or 100), 1000)
        token = query.get("pageToken")
        found = self._matching(request, test, int(token) if token else None)
        page: list[Batch] = []
        for batch in found:
            page.append(batch)
            if len(page) > size:
                break
        body: dict[str, Any] = {"batchPredictionJobs": [job_wire(batch) for batch in page[:size]]}
        if len(page) > size:
            body["nextPageToken"] = str(page[size - 1].seq)
        return JSONResponse(body)

    def _matching(self, request: Request, test: Test, before: int | None) -> Iterator[Batch]:
        project, location = _parent(request)
        newest = self._world.clock.now() - self._world.knobs.list_lag
        while batches := self._world.database.newest_batches(self.provider, before, 200):
            before = batches[-1].seq
            for batch in batches:
                here = (batch.facts["project"], batch.facts["location"]) == (project, location)
                if here and batch.created_at <= newest and test(job_wire(batch)):
                    yield batch

    async def retrieve(self, request: Request) -> Response:
        return JSONResponse(job_wire(self._find(request)))

    async def cancel(self, request: Request) -> Response:
        batch = self._find(request)
        if batch.phase is BatchPhase.REJECTED:
            raise Refusal(400, "FAILED_PRECONDITION", "The job has failed and cannot be cancelled.")
        self._world.cancel(batch)
        return JSONResponse({})

    async def delete(self, request: Request) -> Response:
        batch = self._find(request)
        if batch.phase in LIVE:
            raise Refusal(400, "FAILED_PRECONDITION", "The job is not in a terminal state.")
        self._world.database.delete_batch(batch.id)
        name = job_wire(batch)["name"].partition("/batchPredictionJobs")[0]
        empty = {"@type": "type.googleapis.com/google.protobuf.Empty"}
        return JSONResponse({"name": f"{name}/operations/{batch.id}", "done": True, "response": empty})

    def _find(self, request: Request) -> Batch:
        batch = self._world.database.batch(request.path_params["id"])
        project, location = _parent(request)
        if batch is None or (batch.provider, batch.facts.get("project")) != (self.provider, project):
            raise Refusal(404, None, f"BatchPredictionJob {request.path_params['id']} is not found.")
        if batch.facts["location"] != location:
            raise Refusal(
                404, None, f"BatchPredictionJob {request.path_params['id']} is not found in {location}."
            )
        return batch

    # -- life of a job -------------------------------------------------------------------------------------------

    def prepare(self, batch: Batch) -> Prepared | Rejected:
        verdict = bring(batch, self._bucket, self._tables, self._world.folder(batch.id))
        if isinstance(verdict, Rejected):
            return verdict
        return Prepared(facts={**verdict.facts, "expires_at": self._world.clock.now() + _RUN_SECONDS})

    def rows(self, batch: Batch) -> VertexRows:
        moment = rfc3339(self._world.clock.now())
        assert moment is not None
        kind = ClaudeRows if is_claude(batch.facts["model"]) else VertexRows
        return kind(batch.facts["model"], moment.replace("Z", "+00:00"), self._world.billing)

    def finish(self, batch: Batch, tally: BatchTally) -> Mapping[str, Any] | Rejected:
        written: dict[str, Any] = {}
        if tally.written or not batch.facts.get("ending"):
            try:
                written = self._delivered(batch)
            except StorageError as error:
                return Rejected(facts={"error": {"code": error.code, "message": str(error)}})
        if told := batch_fault(batch.facts["faults"], BatchFault.FAIL):
            message = told.message or "Internal error. The simulator was told to fail."
            return Rejected(facts={**written, "error": {"code": _INTERNAL, "message": message}})
        return written

    def _delivered(self, batch: Batch) -> dict[str, Any]:
        folder = self._world.folder(batch.id)
        if batch.facts["prefix"].startswith(TABLE):
            return fill(batch, self._tables, folder)
        return deliver(batch, self._bucket, folder, self._world.knobs.shard_rows)


def _parent(request: Request) -> tuple[str, str]:
    """The project's number and the location."""
    project = request.path_params["project"]
    if not project.isdigit():
        digest = blake2b(project.encode(), digest_size=5).digest()
        project = str(100_000_000_000 + int.from_bytes(digest) % 900_000_000_000)
    return project, request.path_params["location"]
