"""Answer one request at once, for every vendor: execute it, charge it, and say it in the vendor's words.

An answer is charged when it has been made, before it is sent: who hangs up while waiting, pays. What it costs is
what the answer says, so a request that asked for the flex tier and got another is charged as the answer has it.
"""

from typing import Any, NamedTuple, Protocol

import anyio
import anyio.to_thread
from starlette.responses import JSONResponse, Response

from airflow_batch_llm.simulator.database import Provider, Usage, Way
from airflow_batch_llm.simulator.execution import settled
from airflow_batch_llm.simulator.request import Answer, Request
from airflow_batch_llm.simulator.vendor import Refusal
from airflow_batch_llm.simulator.world import World

_THREADS = 64  # that call the responder; a slow one must not keep the control endpoints waiting


class Asked(NamedTuple):
    """One real-time request that the vendor takes."""

    request: Request
    content: bytes
    """The digest of the request, the same as that of a batch line that asks the same."""
    flex: bool = False
    """Whether it asks for the flex tier."""


class Words(Protocol):
    """The part of a real-time answer that is only one vendor's."""

    @property
    def provider(self) -> Provider: ...

    def usage(self, request: Request, answer: Answer) -> Usage: ...

    def body(self, asked: Asked, answer: Answer, usage: Usage) -> dict[str, Any]:
        """The body of the answer, as it stands in a batch's result line."""

    def way(self, body: dict[str, Any]) -> Way:
        """The way that the answer says it went, by which it is billed."""


class RealTime:
    """Answers the requests of one vendor."""

    def __init__(self, world: World, words: Words) -> None:
        self._world = world
        self._words = words
        self._threads = anyio.CapacityLimiter(_THREADS)

    async def answer(self, asked: Asked) -> Response:
        """The vendor's answer. Raises the refusal of a request that is not answered, and not charged."""
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
        return JSONResponse(body)
