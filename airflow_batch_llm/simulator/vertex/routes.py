"""Vertex's batch prediction jobs over REST, at /v1 and /v1beta1.

A job is created without a look at its input: a bad file fails the job some time later. Names hold the project's
number, whatever the project is called.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from hashlib import blake2b
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from airflow_batch_llm.simulator.anthropic import rows as messages
from airflow_batch_llm.simulator.controls import BatchFault, batch_fault, rfc3339
from airflow_batch_llm.simulator.database import LIVE, Batch, BatchPhase, BilledUsage, BilledWay
from airflow_batch_llm.simulator.execution import Asked, RealTime
from airflow_batch_llm.simulator.meters import LimitStanding
from airflow_batch_llm.simulator.request import AskedRequest, Reply, content_digest
from airflow_batch_llm.simulator.vendor import BatchTally, Endpoint, Prepared, Refusal, Rejected, json_object
from airflow_batch_llm.simulator.vertex import PROVIDER, rows
from airflow_batch_llm.simulator.vertex.bucket import TABLE, JsonApiBucket, JsonApiTables, StorageError
from airflow_batch_llm.simulator.vertex.jobs import bring, deliver, fill, is_claude, job_facts, job_wire
from airflow_batch_llm.simulator.vertex.rows import STATUSES, ClaudeRows, VertexRows
from airflow_batch_llm.simulator.world import World

Test = Callable[[Mapping[str, Any]], bool]

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
    """Return the project's number and the location."""
    project = request.path_params["project"]
    if not project.isdigit():
        digest = blake2b(project.encode(), digest_size=5).digest()
        project = str(100_000_000_000 + int.from_bytes(digest) % 900_000_000_000)
    return project, request.path_params["location"]


NO_JSON = "Invalid JSON payload received."
_MODEL = "/projects/{project}/locations/{location}/publishers/google/models/{model}"
_CLAUDE = "/projects/{project}/locations/{location}/publishers/anthropic/models/{model}:rawPredict"
_TIER_HEADER = "x-vertex-ai-llm-shared-request-type"
_FLEX = "ON_DEMAND_FLEX"


class VertexRealTime:
    """The paths, and the words of the answers."""

    provider = PROVIDER
    no_room = None

    def __init__(self, world: World) -> None:
        self._world = world
        self._realtime = RealTime(world, self)

    def endpoints(self, version: str) -> Sequence[Endpoint]:
        model = version + _MODEL
        return (
            Endpoint("POST", model + ":generateContent", "generate", self.generate),
            Endpoint("POST", version + _CLAUDE, "generate", self.raw_predict),
            Endpoint("POST", model + ":countTokens", "count_tokens", self.count_tokens),
        )

    async def generate(self, call: Request) -> Response:
        return await self._realtime.answer(await _asked(call))

    async def raw_predict(self, call: Request) -> Response:
        body, model = await json_object(call, NO_JSON), call.path_params["model"]
        if error := rows.message_problem(model, body):
            raise Refusal(error.status, None, error.message)
        digest = content_digest(f"{PROVIDER}{model}", body)
        return await self._realtime.answer(Asked(rows.as_message(model, body, "", digest), digest))

    async def count_tokens(self, call: Request) -> Response:
        return JSONResponse({"totalTokens": (await _asked(call)).request.input_tokens})

    def usage(self, request: AskedRequest, answer: Reply) -> BilledUsage:
        if request.provider != PROVIDER:
            return messages.usage_of(request, answer, self._world.billing)
        return rows.usage_of(request, answer, self._world.billing)

    def body(self, asked: Asked, answer: Reply, usage: BilledUsage) -> dict[str, Any]:
        if asked.request.provider != PROVIDER:
            return messages.message(asked.request, answer, usage)
        body = rows.response_of(asked.request, answer, usage)
        if asked.flex:
            body["usageMetadata"]["trafficType"] = _FLEX
        return body

    def way(self, body: dict[str, Any]) -> BilledWay:
        return BilledWay.FLEX if body.get("usageMetadata", {}).get("trafficType") == _FLEX else BilledWay.NOW

    def per_minute(self) -> Mapping[str, int | None]:
        knobs = self._world.knobs
        return {"requests": knobs.requests_per_minute, "tokens": knobs.tokens_per_minute}

    def needs(self, request: AskedRequest) -> Mapping[str, int]:
        return {"requests": 1, "tokens": request.input_tokens}

    def spends(self, usage: BilledUsage) -> Mapping[str, int]:
        return {"tokens": usage.output}

    def over_limit(self, model: str, standing: LimitStanding) -> Refusal:
        return Refusal(429, None, f"Resource exhausted: {standing.kind} per minute for {model}.")

    def retry_headers(self, seconds: float) -> dict[str, str]:  # noqa: ARG002 - Vertex does not say when
        return {}

    def limit_headers(self, standings: Sequence[LimitStanding]) -> dict[str, str]:  # noqa: ARG002 - nor how much is left
        return {}


async def _asked(call: Request) -> Asked:
    body = await json_object(call, NO_JSON)
    if error := rows.problem(body):
        raise Refusal(error.status, None, error.message)
    model = call.path_params["model"]
    if "no-such" in model:
        raise Refusal(404, None, f"Publisher model {model} was not found.")
    digest = content_digest(f"{PROVIDER}{model}", body)
    # Only the global endpoint has the flex tier; elsewhere its header does nothing.
    flex = call.headers.get(_TIER_HEADER) == "flex" and call.path_params["location"] == "global"
    return Asked(rows.as_request(model, body, "", digest), digest, flex)


_TOKEN = re.compile(r'\s*(?:(\(|\))|(!=|<=|>=|=|<|>|:)|"((?:[^"\\]|\\.)*)"|([^\s()!=<>:"]+(?::\d[^\s()]*)?))')
_FIELDS = {
    "display_name": "displayName",
    "model_display_name": "model",
    "state": "state",
    "create_time": "createTime",
}


class FilterError(ValueError):
    """The filter cannot be understood."""


def compile_filter(text: str) -> Test:
    """Return a test of jobs in their wire form."""
    if not text.strip():
        return lambda _: True
    parser = _Parser(text)
    test = parser.either()
    if parser.rest():
        raise FilterError(f"unexpected {parser.rest()!r} in the filter")
    return test


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        position = 0
        text = text.rstrip()
        while position < len(text):
            found = _TOKEN.match(text, position)
            if not found:
                raise FilterError(f"cannot read the filter at {text[position:]!r}")
            for kind, value in zip(("mark", "operator", "text", "word"), found.groups(), strict=True):
                if value is not None:
                    self._tokens.append((kind, value))
            position = found.end()

    def rest(self) -> str:
        return self._tokens[0][1] if self._tokens else ""

    def either(self) -> Test:
        tests = [self.both()]
        while self._take("OR"):
            tests.append(self.both())
        return lambda job: any(test(job) for test in tests)

    def both(self) -> Test:
        tests = [self.one()]
        while self._take("AND") or (self._tokens and self.rest() not in ("OR", ")")):
            tests.append(self.one())
        return lambda job: all(test(job) for test in tests)

    def one(self) -> Test:
        if self._take("NOT"):
            inner = self.one()
            return lambda job: not inner(job)
        if self._take("("):
            inner = self.either()
            if not self._take(")"):
                raise FilterError("a parenthesis is not closed")
            return inner
        return self._comparison()

    def _comparison(self) -> Test:
        if len(self._tokens) < 3:
            raise FilterError("the filter breaks off")
        (_, field), (kind, operator), (_, wanted) = self._tokens[:3]
        del self._tokens[:3]
        if kind != "operator":
            raise FilterError(f"{operator!r} is not an operator")
        if field.startswith("labels."):
            return _label(field.removeprefix("labels.").strip('"'), operator, wanted)
        if field not in _FIELDS:
            raise FilterError(f"there is no field {field!r} to filter by")
        return _field(_FIELDS[field], operator, wanted)

    def _take(self, word: str) -> bool:
        if self._tokens and self._tokens[0] in (("word", word), ("mark", word)):
            del self._tokens[0]
            return True
        return False


def _label(key: str, operator: str, wanted: str) -> Test:
    if operator == ":":
        return lambda job: key in job["labels"]
    if operator not in ("=", "!="):
        raise FilterError(f"labels cannot be compared by {operator}")
    return lambda job: (job["labels"].get(key) == wanted) == (operator == "=")


def _field(name: str, operator: str, wanted: str) -> Test:
    if name == "createTime":
        moment = datetime.fromisoformat(wanted)
        return lambda job: _compare(datetime.fromisoformat(job[name]), operator, moment)
    if operator == ":":
        pattern = re.compile(".*".join(re.escape(part) for part in wanted.split("*")))
        return lambda job: pattern.search(job[name]) is not None
    if operator not in ("=", "!="):
        raise FilterError(f"{name} cannot be compared by {operator}")
    return lambda job: (job[name] == wanted) == (operator == "=")


def _compare(value: datetime, operator: str, other: datetime) -> bool:
    match operator:
        case "=":
            return value == other
        case "!=":
            return value != other
        case "<":
            return value < other
        case "<=":
            return value <= other
        case ">":
            return value > other
        case ">=":
            return value >= other
        case _:
            raise FilterError(f"create_time cannot be compared by {operator}")
