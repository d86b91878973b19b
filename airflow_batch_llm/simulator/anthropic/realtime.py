"""Anthropic's Messages and token counting, one request at a time."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request as Call
from starlette.responses import JSONResponse, Response

from airflow_batch_llm.simulator.anthropic import PROVIDER, rows
from airflow_batch_llm.simulator.anthropic.rows import VERSIONS
from airflow_batch_llm.simulator.database import BilledUsage, BilledWay
from airflow_batch_llm.simulator.knobs import rfc3339
from airflow_batch_llm.simulator.limits import LimitStanding
from airflow_batch_llm.simulator.realtime import Asked, RealTime
from airflow_batch_llm.simulator.request import AskedRequest, Reply, content_digest
from airflow_batch_llm.simulator.vendor import Endpoint, Refusal, json_object
from airflow_batch_llm.simulator.world import World


class AnthropicRealTime:
    """The paths, and the words of the answers. There is no flex tier."""

    provider = PROVIDER
    no_room = None

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

    def usage(self, request: AskedRequest, answer: Reply) -> BilledUsage:
        return rows.usage_of(request, answer, self._world.billing)

    def body(self, asked: Asked, answer: Reply, usage: BilledUsage) -> dict[str, Any]:
        return rows.message(asked.request, answer, usage)

    def per_minute(self) -> Mapping[str, int | None]:
        knobs = self._world.knobs
        return {
            "requests": knobs.requests_per_minute,
            "input-tokens": knobs.tokens_per_minute,
            "output-tokens": knobs.output_tokens_per_minute,
        }

    def needs(self, request: AskedRequest) -> Mapping[str, int]:
        """Input that a cache held does not count. Output counts once it is made, but some must be left."""
        uncached = max(0, request.input_tokens - self._world.knobs.cached_tokens)
        return {"requests": 1, "input-tokens": uncached, "output-tokens": 0}

    def spends(self, usage: BilledUsage) -> Mapping[str, int]:
        return {"output-tokens": usage.output}

    def over_limit(self, model: str, standing: LimitStanding) -> Refusal:
        kind = standing.kind.replace("-", " ")
        return Refusal(429, None, f"Your limit of {standing.limit} {kind} per minute for {model} is used up.")

    def retry_headers(self, seconds: float) -> dict[str, str]:
        return {"retry-after": str(math.ceil(seconds))}

    def limit_headers(self, standings: Sequence[LimitStanding]) -> dict[str, str]:
        """Return the headers. The moments are real ones, because a client compares them with its own clock."""
        now = time.time()
        return {
            f"anthropic-ratelimit-{each.kind}-{name}": str(value)
            for each in _with_sum(standings)
            for name, value in (
                ("limit", each.limit),
                ("remaining", each.remaining),
                ("reset", rfc3339(now + each.full_in)),
            )
        }

    def way(self, body: dict[str, Any]) -> BilledWay:  # noqa: ARG002 - there is only one
        return BilledWay.NOW


def _with_sum(standings: Sequence[LimitStanding]) -> list[LimitStanding]:
    """Add `tokens`, the limits of input and output together."""
    tokens = [each for each in standings if each.kind.endswith("-tokens")]
    if not tokens:
        return [*standings]
    _, limits, remaining, seconds = zip(*tokens, strict=True)
    return [*standings, LimitStanding("tokens", sum(limits), sum(remaining), max(seconds))]


async def _asked(call: Call, *, counting: bool = False) -> Asked:
    params = await json_object(call, "the body is not a JSON object")
    if error := rows.problem(params, version_of(call), counting=counting):
        raise Refusal(error.status, error.code, error.message)
    digest = content_digest(PROVIDER, params)
    return Asked(rows.as_request(params, "", digest), digest)


def version_of(call: Call) -> str:
    """The API version that a call names. Raises the vendor's refusal if it names none."""
    version = call.headers.get("anthropic-version")
    if version not in VERSIONS:
        raise Refusal(400, None, "anthropic-version: header is required and must be a known version")
    return version
