"""Answer one request at once, for every vendor: admit it, execute it, charge it, and say it in the vendor's words.

An answer is charged when it has been made, before it is sent: who hangs up while waiting, pays. What it costs is
what the answer says, so a request that asked for the flex tier and got another is charged as the answer has it.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import anyio
import anyio.to_thread
from starlette.responses import JSONResponse, Response

from airflow_batch_llm.simulator.database import BilledUsage, BilledWay
from airflow_batch_llm.simulator.execution import settled
from airflow_batch_llm.simulator.faults import FlexFault
from airflow_batch_llm.simulator.meters import Lack, LimitStanding, ModelLimits
from airflow_batch_llm.simulator.request import AskedRequest, Reply
from airflow_batch_llm.simulator.vendor import Refusal
from airflow_batch_llm.simulator.world import World

_THREADS = 64  # that call the responder; a slow one must not keep the control endpoints waiting


class Asked(NamedTuple):
    """One real-time request that the vendor takes."""

    request: AskedRequest
    content: bytes
    """The digest of the request, the same as that of a batch line that asks the same."""
    flex: bool = False
    """Whether it goes by the flex tier."""


class Words(Protocol):
    """The part of a real-time answer that is only one vendor's. Limits and tokens go by the vendor's kinds."""

    @property
    def provider(self) -> str: ...

    def usage(self, request: AskedRequest, answer: Reply) -> BilledUsage: ...

    def body(self, asked: Asked, answer: Reply, usage: BilledUsage) -> dict[str, Any]:
        """The body of the answer, as it stands in a batch's result line."""

    def way(self, body: dict[str, Any]) -> BilledWay:
        """The way that the answer says it went, by which it is billed."""

    @property
    def no_room(self) -> str | None:
        """The code of a 429 for want of room in the flex tier, where it has one of its own."""

    def per_minute(self) -> Mapping[str, int | None]:
        """The limits of a model by kind, in the order in which they are looked at; None for no limit."""

    def needs(self, request: AskedRequest) -> Mapping[str, int]:
        """The amounts that must be there for the request to be admitted."""

    def spends(self, usage: BilledUsage) -> Mapping[str, int]:
        """The amounts that are taken once the answer is made."""

    def over_limit(self, model: str, standing: LimitStanding) -> Refusal: ...

    def retry_headers(self, seconds: float) -> dict[str, str]: ...

    def limit_headers(self, standings: Sequence[LimitStanding]) -> dict[str, str]: ...


class RealTime:
    """Answers the requests of one vendor."""

    def __init__(self, world: World, words: Words) -> None:
        self._world = world
        self._words = words
        self._threads = anyio.CapacityLimiter(_THREADS)

    async def answer(self, asked: Asked) -> Response:
        """The vendor's answer. Raises the refusal of a request that is not answered, and not charged."""
        asked = self._seated(asked)
        self._admit(asked.request)
        (answer,) = await anyio.to_thread.run_sync(
            self._world.responder.answer_all, [asked.request], limiter=self._threads
        )
        if answer.error:
            raise Refusal(answer.error.status, answer.error.code or None, answer.error.message)
        answer = settled(asked.request, answer)
        usage = self._words.usage(asked.request, answer)
        body = self._words.body(asked, answer, usage)
        self._world.database.add_asked(
            self._words.provider, self._words.way(body), asked.content, asked.request.model, usage
        )
        self._limits(asked.request.model).spend(self._words.spends(usage))
        knobs = self._world.knobs
        await asyncio.sleep(knobs.answer_latency + knobs.answer_latency_per_token * usage.output)
        standings = self._limits(asked.request.model).standings()
        return JSONResponse(body, headers=self._words.limit_headers(standings))

    def _seated(self, asked: Asked) -> Asked:
        """The request in the tier that has room for it. A fault of the flex tier refuses it, or moves it."""
        fault = self._world.faults.for_flex(self._words.provider) if asked.flex else None
        if fault is None:
            return asked
        if fault.kind is FlexFault.NO_CAPACITY:
            message = fault.message or "Resource unavailable: the flex tier has no room now."
            raise Refusal(429, fault.code or self._words.no_room, message)
        return asked._replace(flex=False)

    def _limits(self, model: str) -> ModelLimits:
        limits = {kind: limit for kind, limit in self._words.per_minute().items() if limit is not None}
        return self._world.limits.of(self._words.provider, model, limits, self._world.clock.now())

    def _admit(self, request: AskedRequest) -> None:
        limits = self._limits(request.model)
        lack: Lack | None = limits.admit(self._words.needs(request))
        if lack is None:
            return
        refusal = self._words.over_limit(request.model, lack.standing)
        refusal.headers = self._words.limit_headers(limits.standings())
        if self._world.knobs.retry_after:
            refusal.headers |= self._words.retry_headers(math.ceil(lack.seconds * 1000) / 1000)
        raise refusal
