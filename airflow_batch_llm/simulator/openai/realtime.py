"""OpenAI's responses, chat completions, embeddings and token counting, one request at a time."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request as Call
from starlette.responses import JSONResponse, Response

from airflow_batch_llm.simulator.database import BilledUsage, BilledWay
from airflow_batch_llm.simulator.limits import LimitStanding
from airflow_batch_llm.simulator.openai import PROVIDER, answers, rows
from airflow_batch_llm.simulator.openai.answers import CHAT, EMBEDDINGS, RESPONSES
from airflow_batch_llm.simulator.realtime import Asked, RealTime
from airflow_batch_llm.simulator.request import AskedRequest, Reply, content_digest
from airflow_batch_llm.simulator.vendor import Endpoint, Refusal, json_object
from airflow_batch_llm.simulator.world import World

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

    async def answer(self, call: Call) -> Response:
        body = await json_object(call, NO_JSON)
        endpoint = call.url.path
        if error := rows.problem(endpoint, body):
            raise Refusal(error.status, error.code, error.message, param=error.param)
        if _tier(body) not in _TIERS:
            raise Refusal(400, "invalid_value", "service_tier: no such tier.", param="service_tier")
        digest = content_digest(f"{self.provider}{endpoint}", body)
        request = rows.as_request(endpoint, body, "", digest)
        return await self._realtime.answer(Asked(request, digest, flex=_tier(body) == "flex"))

    async def input_tokens(self, call: Call) -> Response:
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
