"""Vertex's generateContent, countTokens, and rawPredict for Claude, one request at a time."""

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request as Call
from starlette.responses import JSONResponse, Response

from airflow_batch_llm.simulator.anthropic import rows as messages
from airflow_batch_llm.simulator.database import BilledUsage, BilledWay
from airflow_batch_llm.simulator.limits import LimitStanding
from airflow_batch_llm.simulator.realtime import Asked, RealTime
from airflow_batch_llm.simulator.request import AskedRequest, Reply, content_digest
from airflow_batch_llm.simulator.vendor import Endpoint, Refusal, json_object
from airflow_batch_llm.simulator.vertex import PROVIDER, rows
from airflow_batch_llm.simulator.world import World

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

    async def generate(self, call: Call) -> Response:
        return await self._realtime.answer(await _asked(call))

    async def raw_predict(self, call: Call) -> Response:
        body, model = await json_object(call, NO_JSON), call.path_params["model"]
        if error := rows.message_problem(model, body):
            raise Refusal(error.status, None, error.message)
        digest = content_digest(f"{PROVIDER}{model}", body)
        return await self._realtime.answer(Asked(rows.as_message(model, body, "", digest), digest))

    async def count_tokens(self, call: Call) -> Response:
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


async def _asked(call: Call) -> Asked:
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
