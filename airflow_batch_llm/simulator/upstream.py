"""Answers from a real-time endpoint that speaks OpenAI's protocol: a batch provider made of a local model server.

At most so many requests are under way at once, over all batches. An error of the upstream is an error of the row.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import orjson

from airflow_batch_llm.simulator.openai.answers import CHAT, EMBEDDINGS
from airflow_batch_llm.simulator.record import Provider
from airflow_batch_llm.simulator.request import Answer, Request, RowError, Stop
from airflow_batch_llm.simulator.settings import Settings

if TYPE_CHECKING:
    import httpx

_STOPS = {"length": Stop.LENGTH, "content_filter": Stop.FILTERED}
_SECONDS = 600.0


class Upstream:
    """Forwards requests. What already is OpenAI's protocol goes and comes back as it is."""

    def __init__(self, settings: Settings) -> None:
        import httpx

        headers = {"authorization": f"Bearer {settings.upstream_key}"} if settings.upstream_key else {}
        workers = settings.upstream_concurrency
        limits = httpx.Limits(max_connections=workers, max_keepalive_connections=workers)
        self._client = httpx.Client(headers=headers, limits=limits, timeout=_SECONDS)
        self._base = str(settings.upstream).rstrip("/")
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="upstream")

    def answer_all(self, requests: Sequence[Request]) -> list[Answer]:
        return list(self._pool.map(self._answer, requests))

    def _answer(self, request: Request) -> Answer:
        import httpx

        verbatim = request.provider == Provider.OPENAI and request.endpoint in (CHAT, EMBEDDINGS)
        path = request.endpoint.removeprefix("/v1") if verbatim else "/chat/completions"
        content = orjson.dumps(request.body if verbatim else _as_chat(request))
        try:
            answer = self._client.post(
                self._base + path, content=content, headers={"content-type": "application/json"}
            )
            body = orjson.loads(answer.content)
        except (httpx.HTTPError, orjson.JSONDecodeError) as error:
            return Answer(error=RowError(500, "", f"the upstream failed: {type(error).__name__}"))
        if answer.status_code != 200:
            return Answer(error=_refusal(answer, body))
        return Answer(body=body) if verbatim else _from_chat(body)


def _refusal(answer: "httpx.Response", body: Any) -> RowError:
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return RowError(answer.status_code, "", str(message or f"the upstream answered {answer.status_code}"))


def _as_chat(request: Request) -> dict[str, Any]:
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


def _from_chat(body: dict[str, Any]) -> Answer:
    try:
        choice = body["choices"][0]
        message = choice["message"]
    except (KeyError, IndexError, TypeError):
        return Answer(error=RowError(500, "", "the upstream's answer is not a chat completion"))
    if message.get("refusal"):
        return Answer(str(message["refusal"]), Stop.REFUSED)
    return Answer(str(message.get("content") or ""), _STOPS.get(choice.get("finish_reason"), Stop.END))
