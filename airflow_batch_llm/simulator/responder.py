"""Where answers come from: made up from the schema, a function of the user's, or an upstream endpoint.

The default is deterministic: the same request gets the same answer in every run, on every machine.
"""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from airflow_batch_llm.simulator.answers import Draw, conforming, phrase
from airflow_batch_llm.simulator.fallible import fallible
from airflow_batch_llm.simulator.knobs import Knobs, SimulatorSettings
from airflow_batch_llm.simulator.openai.answers import CHAT, EMBEDDINGS
from airflow_batch_llm.simulator.packed import Unpacking
from airflow_batch_llm.simulator.request import (
    AskedRequest,
    Reply,
    RowError,
    StopReason,
    content_digest,
    seed_of,
)

if TYPE_CHECKING:
    import httpx


class Responder(Protocol):
    """Answers requests, in their order. Called in worker threads."""

    def answer_all(self, requests: Sequence[AskedRequest]) -> list[Reply]: ...


class MadeUp:
    """Values that conform to the schema; a short phrase where there is none. Knobs make models that err."""

    def __init__(self, knobs: Callable[[], Knobs]) -> None:
        self._knobs = knobs

    def answer_all(self, requests: Sequence[AskedRequest]) -> list[Reply]:
        knobs = self._knobs()
        if knobs.wrong_share:
            return [Reply(fallible(request, knobs)) for request in requests]
        return [Reply(_made_up(request)) for request in requests]


def _made_up(request: AskedRequest) -> str:
    """An answer that depends on what is asked, and not on how: alone or among others, by batch or now."""
    scope = f"{request.provider}\0{request.model}\0{request.system}"
    asked: dict[str, Any] = {"prompt": request.prompt}
    if request.media:
        asked["media"] = [medium.name for medium in request.media]
    seed = seed_of(content_digest(scope, asked))
    if request.schema is None:
        return f"Answer {seed & 0xFFFFFF:06x}: {phrase(Draw(seed), 3)}."
    return orjson.dumps(conforming(request.schema, seed)).decode()


class UserFunction:
    """A function of the user's, called once per request. What it raises becomes an error of that row."""

    def __init__(self, respond: Callable[[AskedRequest], Any]) -> None:
        self._respond = respond

    def answer_all(self, requests: Sequence[AskedRequest]) -> list[Reply]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: AskedRequest) -> Reply:
        try:
            value = self._respond(request)
        except Exception as error:  # noqa: BLE001 - one bad row must not stop the batch
            return Reply(error=RowError(500, "api_error", f"the responder raised {type(error).__name__}"))
        if isinstance(value, Reply):
            return value
        return Reply(value if isinstance(value, str) else orjson.dumps(value).decode())


def load_responder(settings: SimulatorSettings, knobs: Callable[[], Knobs]) -> Responder:
    """The responder that the settings name. Raises ValueError if it cannot be loaded."""
    if settings.responder and settings.upstream:
        raise ValueError("--responder and --upstream exclude each other")
    if settings.upstream:
        return Upstream(settings)
    if not settings.responder:
        return Unpacking(MadeUp(knobs))
    module_name, _, function_name = settings.responder.partition(":")
    if not function_name:
        raise ValueError(f"--responder must be module:function, not {settings.responder!r}")
    if (here := os.getcwd()) not in sys.path:  # noqa: PTH109 - sys.path holds strings
        sys.path.insert(0, here)
    try:
        return Unpacking(UserFunction(getattr(importlib.import_module(module_name), function_name)))
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--responder {settings.responder!r} cannot be loaded: {error}") from error


_STOPS = {"length": StopReason.LENGTH, "content_filter": StopReason.FILTERED}
_SECONDS = 600.0


class Upstream:
    """Forwards requests. What already is OpenAI's protocol goes and comes back as it is."""

    def __init__(self, settings: SimulatorSettings) -> None:
        import httpx

        headers = {"authorization": f"Bearer {settings.upstream_key}"} if settings.upstream_key else {}
        workers = settings.upstream_concurrency
        limits = httpx.Limits(max_connections=workers, max_keepalive_connections=workers)
        self._client = httpx.Client(headers=headers, limits=limits, timeout=_SECONDS)
        self._base = str(settings.upstream).rstrip("/")
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="upstream")

    def answer_all(self, requests: Sequence[AskedRequest]) -> list[Reply]:
        return list(self._pool.map(self._answer, requests))

    def _answer(self, request: AskedRequest) -> Reply:
        import httpx

        verbatim = request.endpoint in (CHAT, EMBEDDINGS)
        if request.media and not verbatim:
            return Reply(error=RowError(400, "", "only chat completions take attachments to an upstream"))
        path = request.endpoint.removeprefix("/v1") if verbatim else "/chat/completions"
        content = orjson.dumps(request.body if verbatim else _as_chat(request))
        try:
            answer = self._client.post(
                self._base + path, content=content, headers={"content-type": "application/json"}
            )
            body = orjson.loads(answer.content)
        except (httpx.HTTPError, orjson.JSONDecodeError) as error:
            return Reply(error=RowError(500, "", f"the upstream failed: {type(error).__name__}"))
        if answer.status_code != 200:
            return Reply(error=_refusal(answer, body))
        return Reply(body=body) if verbatim else _from_chat(body)


def _refusal(answer: "httpx.Response", body: Any) -> RowError:
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return RowError(answer.status_code, "", str(message or f"the upstream answered {answer.status_code}"))


def _as_chat(request: AskedRequest) -> dict[str, Any]:
    messages = [{"role": "user", "content": request.prompt}]
    if request.system:
        messages.insert(0, {"role": "system", "content": request.system})
    body: dict[str, Any] = {"model": request.model, "messages": messages}
    if request.max_tokens is not None:
        body["max_tokens"] = request.max_tokens
    if request.schema is not None:
        schema = {"name": request.tool or "answer", "schema": request.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def _from_chat(body: dict[str, Any]) -> Reply:
    try:
        choice = body["choices"][0]
        message = choice["message"]
    except (KeyError, IndexError, TypeError):
        return Reply(error=RowError(500, "", "the upstream's answer is not a chat completion"))
    if message.get("refusal"):
        return Reply(str(message["refusal"]), StopReason.REFUSED)
    return Reply(str(message.get("content") or ""), _STOPS.get(choice.get("finish_reason"), StopReason.END))
