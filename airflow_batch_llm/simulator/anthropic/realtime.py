"""Anthropic's Messages and token counting, one request at a time."""

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request as Call
from starlette.responses import JSONResponse, Response

from airflow_batch_llm.simulator.anthropic import rows
from airflow_batch_llm.simulator.anthropic.rows import VERSIONS
from airflow_batch_llm.simulator.database import Provider, Usage, Way
from airflow_batch_llm.simulator.realtime import Asked, RealTime
from airflow_batch_llm.simulator.request import Answer, Request, content_digest
from airflow_batch_llm.simulator.vendor import Endpoint, Refusal, json_object
from airflow_batch_llm.simulator.world import World


class AnthropicRealTime:
    """The paths, and the words of the answers. There is no flex tier."""

    provider = Provider.ANTHROPIC

    def __init__(self, world: World) -> None:
        self._world = world
        self._realtime = RealTime(world, self)

    def endpoints(self) -> Sequence[Endpoint]:
        return (
            Endpoint("POST", "/v1/messages", "messages", self.messages),
            Endpoint("POST", "/v1/messages/count_tokens", "count_tokens", self.count_tokens),
        )

    async def messages(self, call: Call) -> Response:
        return await self._realtime.answer(await _asked(call))

    async def count_tokens(self, call: Call) -> Response:
        asked = await _asked(call, counting=True)
        return JSONResponse({"input_tokens": asked.request.input_tokens})

    def usage(self, request: Request, answer: Answer) -> Usage:
        return rows.usage_of(request, answer, self._world.knobs)

    def body(self, asked: Asked, answer: Answer, usage: Usage) -> dict[str, Any]:
        return rows.message(asked.request, answer, usage)

    def way(self, body: dict[str, Any]) -> Way:  # noqa: ARG002 - there is only one
        return Way.NOW


async def _asked(call: Call, *, counting: bool = False) -> Asked:
    params = await json_object(call, "the body is not a JSON object")
    if error := rows.problem(params, version_of(call), counting=counting):
        raise Refusal(error.status, error.code, error.message)
    digest = content_digest(Provider.ANTHROPIC, params)
    return Asked(rows.as_request(params, "", digest), digest)


def version_of(call: Call) -> str:
    """The API version that a call names. Raises the vendor's refusal if it names none."""
    version = call.headers.get("anthropic-version")
    if version not in VERSIONS:
        raise Refusal(400, None, "anthropic-version: header is required and must be a known version")
    return version
