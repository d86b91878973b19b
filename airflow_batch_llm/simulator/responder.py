"""Make answers: from the schema, by a function of the user's, or by an upstream endpoint.

The default is deterministic: the same request gets the same answer in every run, on every machine, alone or packed with
others. A knob makes models err at a known rate: the right answer depends on the prompt alone, so that models, vendors
and ways to ask can be compared, and a wrong one is wrong in every property.
"""

import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from airflow_batch_llm.core.packing import item_schema, read_items
from airflow_batch_llm.core.schema_rules import rules_in_words
from airflow_batch_llm.simulator.answers import Draw, conforming, phrase
from airflow_batch_llm.simulator.controls import Fault, Knobs, RowFault, SimulatorSettings
from airflow_batch_llm.simulator.openai.answers import CHAT, EMBEDDINGS
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
    """Return an answer that depends on what is asked, and not on how: alone or among others, by batch or now."""
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
    """Return the responder that the settings name. Raises ValueError if it cannot be loaded."""
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


_TEXT = frozenset({"string", "STRING"})


class Unpacking:
    """Takes packed requests apart for another responder, and puts its answers together."""

    def __init__(self, inner: "Responder") -> None:
        self._inner = inner

    def answer_all(self, requests: Sequence[AskedRequest]) -> list[Reply]:
        apart = [items_of(request) for request in requests]
        alone = [
            one
            for request, items in zip(requests, apart, strict=True)
            for one in ([request] if items is None else items)
        ]
        replies = iter(self._inner.answer_all(alone))
        return [
            next(replies) if items is None else _together(items, list(islice(replies, len(items))))
            for items in apart
        ]


def items_of(request: AskedRequest) -> list[AskedRequest] | None:
    """Return requests that ask each item of a packed one alone, or None if it is not packed."""
    schema = None if request.schema is None else item_schema(request.schema)
    items = None if schema is None else read_items(request.prompt)
    if items is None or schema is None:
        return None
    kept = None if schema.get("type") in _TEXT else _with_definitions(schema, request.schema or {})
    return [request._replace(prompt=text, schema=kept) for text in items]


def _with_definitions(schema: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    definitions = {name: whole[name] for name in ("$defs", "definitions") if name in whole}
    return {**schema, **definitions}


def _together(items: Sequence[AskedRequest], replies: Sequence[Reply]) -> Reply:
    """Put the answers to the items into one. The first that was not answered decides for all."""
    for reply in replies:
        if reply.error is not None or reply.stop is not StopReason.END:
            return reply
    answers = [
        reply.text if item.schema is None else _value(reply.text)
        for item, reply in zip(items, replies, strict=True)
    ]
    return Reply(_text([{"item": n, "answer": answer} for n, answer in enumerate(answers, 1)]))


def _value(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _text(entries: Sequence[Mapping[str, Any]]) -> str:
    return orjson.dumps({"answers": entries}).decode()


def spoil(answer: Reply, fault: Fault) -> Reply:
    """Return the answer to a packed request as a model would give it that errs in some of the items."""
    entries = orjson.loads(answer.text)["answers"]
    struck = [entry for entry in entries if entry["item"] in fault.items]
    match fault.kind:
        case RowFault.ITEMS_MISSING:
            entries = [entry for entry in entries if entry not in struck]
        case RowFault.ITEMS_DOUBLED:
            entries += struck
        case RowFault.ITEMS_EXTRA:
            entries += [{**entries[0], "item": len(entries) + 1}, {**entries[0], "item": 0}]
        case RowFault.ITEMS_INVALID:
            for entry in struck:
                entry["answer"] = {"no_such_field": []}
        case RowFault.ITEMS_SWAPPED:
            for entry, other in zip(struck, reversed([entry["answer"] for entry in struck]), strict=True):
                entry["answer"] = other
            entries.reverse()
        case _:
            return answer
    return answer._replace(text=_text(entries))


_CONFIDENCE = "confidence"
_TRIES = 50  # for a value that differs from the truth; a constant has none


def truth(prompt: str, schema: Mapping[str, Any] | None, find: str | None = None) -> Any:
    """Return the right answer to a prompt. `find` is the knob `truth_find`; the value of `confidence` means nothing here."""
    subject = _subject(prompt, find)
    if schema is None:
        return phrase(Draw(_seed(subject)), 3)
    parts = _parts(schema)
    if parts is None:
        return conforming(schema, _seed(subject))
    return {name: conforming(part, _seed(subject, name))[name] for name, part in parts.items()}


def fallible(request: AskedRequest, knobs: Knobs) -> str:
    """Return the text of a model's answer, which is wrong in the model's share of the rows."""
    subject = _subject(request.prompt, knobs.truth_find)
    draw = Draw(_seed(subject, "wrong", request.model))
    errs = draw.share() < knobs.wrong_share.get(request.model, 0.0)
    right = truth(request.prompt, request.schema, knobs.truth_find)
    answer = _wrong(right, request, subject) if errs else right
    if request.schema is None:
        return str(answer)
    parts = _parts(request.schema)
    if parts and isinstance(right.get(_CONFIDENCE), int | float):
        first, second = draw.share(), draw.share()
        sure = min(first, second) if errs else max(first, second)
        answer[_CONFIDENCE] = _confidence(request.schema, sure, whole=isinstance(right[_CONFIDENCE], int))
    return orjson.dumps(answer).decode()


def _wrong(right: Any, request: AskedRequest, subject: str) -> Any:
    """Return an answer that differs from the right one in every property."""
    wrong = dict(right) if isinstance(right, dict) else right
    for attempt in range(_TRIES):
        other = truth(f"{request.model} {attempt} {subject}", request.schema)
        if not isinstance(right, dict):
            if other != right:
                return other
            continue
        wrong |= {name: other[name] for name in right if wrong[name] == right[name] and name in other}
    return wrong


def _confidence(schema: Mapping[str, Any], sure: float, *, whole: bool) -> float:
    """Return a value in the upper half of what the schema admits: models are seldom modest."""
    part = schema["properties"][_CONFIDENCE]
    rules = {**rules_in_words(part.get("description")), **part}
    low, high = float(rules.get("minimum", 0)), float(rules.get("maximum", 100 if whole else 1))
    value = low + (high - low) * (1 + sure) / 2
    return round(value) if whole else round(value, 4)


def _subject(prompt: str, find: str | None) -> str:
    """Return the part of the prompt that the truth depends on; all of it where nothing is found."""
    found = re.search(find, prompt) if find else None
    return found[0] if found else prompt


def _parts(schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a schema per property, so that a value depends on no other property; None if the answer is not an object of them."""
    if not isinstance(schema.get("properties"), dict):
        return None
    rest = {key: value for key, value in schema.items() if key not in ("properties", "required")}
    return {
        name: {**rest, "properties": {name: part}, "required": [name]}
        for name, part in schema["properties"].items()
    }


def _seed(*parts: str) -> int:
    return seed_of(blake2b("\0".join(parts).encode("utf-8", "replace"), digest_size=8).digest())
