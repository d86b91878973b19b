"""Gemini's rows, and Claude's: the model's answer to one request, and the output line with its echo.

Keys beside `request` are echoed. A row that fails has a status text and no response; the job goes on.
"""

from http import HTTPStatus
from typing import Any

import orjson

from airflow_batch_llm.simulator.anthropic import rows as messages
from airflow_batch_llm.simulator.bodies import parse
from airflow_batch_llm.simulator.database import BilledUsage, RowFate
from airflow_batch_llm.simulator.meters import CHARS, Billing, CacheUse
from airflow_batch_llm.simulator.request import (
    AskedRequest,
    Medium,
    Reply,
    RowError,
    StopReason,
    content_digest,
    seed_of,
    tokens,
)
from airflow_batch_llm.simulator.vendor import Parsed, Written
from airflow_batch_llm.simulator.vertex import PROVIDER

PREDICTIONS = "predictions"
_MESSAGES_VERSION = "vertex-2023-10-16"
STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ALREADY_EXISTS",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_FINISHES = {
    StopReason.END: "STOP",
    StopReason.LENGTH: "MAX_TOKENS",
    StopReason.REFUSED: "SAFETY",
    StopReason.FILTERED: "SAFETY",
}
_JSON = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}


class VertexRows:
    """The rows of one job."""

    def __init__(self, model: str, moment: str, billing: Billing) -> None:
        self._model = model.rpartition("/")[2]
        self._moment = moment
        self._billing = billing

    def read(self, line: bytes) -> Parsed:
        row = parse(line)
        body = row["request"]
        digest = content_digest(f"{PROVIDER}{self._model}", body)
        custom_id = _row_id(row)
        error = problem(body)
        request = None if error else as_request(self._model, body, custom_id, digest)
        return Parsed(custom_id, digest, self._model, request, error, row)

    def write(self, parsed: Parsed, answer: Reply) -> Written:
        if answer.error is not None:
            return self._line(parsed, _status(answer.error), None, None)
        assert parsed.request is not None
        usage, response = self._answer(parsed.request, answer)
        return self._line(parsed, "", response, usage)

    def _answer(self, request: AskedRequest, answer: Reply) -> tuple[BilledUsage, dict[str, Any]]:
        usage = usage_of(request, answer, self._billing)
        return usage, {**response_of(request, answer, usage), "createTime": self._moment}

    def skip(self, parsed: Parsed, outcome: RowFate) -> Written:  # noqa: ARG002 - such a row has no line
        return Written(b"", PREDICTIONS, outcome, None)

    def _line(
        self, parsed: Parsed, status: str, response: dict[str, Any] | None, usage: BilledUsage | None
    ) -> Written:
        row = parsed.source
        line = {"status": status, "processed_time": self._moment, "request": row["request"]}
        if response is not None:
            line["response"] = response
        line.update((key, value) for key, value in row.items() if key != "request")
        if parsed.custom_id != _row_id(row):  # the row was told to answer under another name
            line["custom_id"] = parsed.custom_id
        outcome = RowFate.SUCCEEDED if response is not None else RowFate.ERRORED
        return Written(orjson.dumps(line), PREDICTIONS, outcome, usage)


class ClaudeRows(VertexRows):
    """The rows of a job that asks Claude. Fields other than the request and its name are left out."""

    def read(self, line: bytes) -> Parsed:
        row = parse(line)
        body, custom_id = row["request"], str(row.get("custom_id", ""))
        digest = content_digest(f"{PROVIDER}{self._model}", body)
        error = message_problem(self._model, body)
        request = None if error else as_message(self._model, body, custom_id, digest)
        return Parsed(
            custom_id, digest, self._model, request, error, {"request": body, "custom_id": custom_id}
        )

    def _answer(self, request: AskedRequest, answer: Reply) -> tuple[BilledUsage, dict[str, Any]]:
        usage = messages.usage_of(request, answer, self._billing)
        return usage, messages.message(request, answer, usage)


def message_problem(model: str, body: dict[str, Any]) -> RowError | None:
    """Return the reason for which Claude refuses this request, or None if it takes it."""
    if body.get("anthropic_version") != _MESSAGES_VERSION:
        return RowError(400, "", f"anthropic_version: must be {_MESSAGES_VERSION}")
    if "model" in body:
        return RowError(400, "", "model: Extra inputs are not permitted")
    return messages.problem({**body, "model": model}, "2023-06-01")


def as_message(model: str, body: dict[str, Any], custom_id: str, digest: bytes) -> AskedRequest:
    return messages.as_request({**body, "model": model}, custom_id, digest)


def _row_id(row: dict[str, Any]) -> str:
    """Return the row's name in the ledger: the echoed key, or a label."""
    for key, value in row.items():
        if key != "request" and isinstance(value, str | int):
            return str(value)
    return next(iter((row["request"].get("labels") or {}).values()), "")


def _status(error: RowError) -> str:
    name = error.code if error.code.isupper() else STATUSES.get(error.status, "INTERNAL")
    body = {"error": {"code": error.status, "message": error.message, "status": name}}
    return f"{HTTPStatus(error.status).phrase}: {orjson.dumps(body).decode()}"


def _either(body: dict[str, Any], name: str) -> Any:
    """Return a field under its JSON name or its proto name."""
    if name in body:
        return body[name]
    return body.get("".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name))


def problem(body: dict[str, Any]) -> RowError | None:
    """Return the reason for which Gemini refuses this request, or None if it takes it."""
    contents = body.get("contents")
    if not isinstance(contents, list) or not contents:
        return RowError(400, "", "at least one contents field is required")
    for part in contents:
        if (
            not isinstance(part, dict)
            or part.get("role", "user") not in ("user", "model")
            or not part.get("parts")
        ):
            return RowError(400, "", "Please use a valid role: user, model, and non-empty parts.")
    try:
        _media(contents)
    except ValueError as error:
        return RowError(400, "", f"Invalid part: {error}")
    if _either(body, "cachedContent"):
        return RowError(400, "", "cachedContent is not supported in batch prediction")
    return None


def _text(content: Any) -> str:
    parts = content.get("parts") if isinstance(content, dict) else None
    if isinstance(parts, dict):
        parts = [parts]
    return "\n".join(str(part["text"]) for part in parts or () if "text" in part)


_TYPES = frozenset({"application/pdf", "image/png", "image/jpeg", "image/webp", "image/heic", "image/heif"})
_MOST_DATA = 10_000_000


def _media(contents: list[dict[str, Any]]) -> tuple[Medium, ...]:
    """Return the images and PDFs of all contents. Raises ValueError for what Gemini refuses."""
    found = []
    for content in contents:
        for part in content["parts"] if isinstance(content["parts"], list) else [content["parts"]]:
            if (file := _either(part, "fileData")) is not None:
                media_type = _either(file, "mimeType")
                if media_type not in _TYPES:
                    raise ValueError("mimeType is missing, or not supported")
                is_pdf = media_type == "application/pdf"
                found.append(Medium.at(_either(file, "fileUri"), ("gs://",), is_pdf=is_pdf))
            elif (data := _either(part, "inlineData")) is not None:
                found.append(Medium.within(_either(data, "mimeType"), data.get("data"), _TYPES, _MOST_DATA))
    return tuple(found)


def _media_tokens(media: tuple[Medium, ...]) -> int:
    return sum(
        258 * (one.pages if one.is_pdf else -(-one.width // 768) * -(-one.height // 768)) for one in media
    )


def as_request(model: str, body: dict[str, Any], custom_id: str, digest: bytes) -> AskedRequest:
    config = _either(body, "generationConfig") or {}
    tool, schema = _wanted(body, config)
    media = _media(body["contents"])
    return AskedRequest(
        PROVIDER,
        "generateContent",
        custom_id,
        model,
        _text(_either(body, "systemInstruction")),
        "\n".join(_text(content) for content in body["contents"]),
        schema,
        tool,
        _either(config, "maxOutputTokens"),
        body,
        seed_of(digest),
        media,
        _media_tokens(media),
    )


def _wanted(body: dict[str, Any], config: dict[str, Any]) -> tuple[str | None, dict[str, Any] | None]:
    """Return the forced function and the schema of the answer."""
    calling = _either(_either(body, "toolConfig") or {}, "functionCallingConfig") or {}
    if calling.get("mode") == "ANY":
        for tool in body.get("tools") or ():
            for function in _either(tool, "functionDeclarations") or ():
                if function["name"] in (_either(calling, "allowedFunctionNames") or (function["name"],)):
                    return function["name"], function.get("parameters") or {}
    schema = _either(config, "responseSchema") or _either(config, "responseJsonSchema")
    if schema is None and _either(config, "responseMimeType") == "application/json":
        schema = _JSON
    return None, schema


def usage_of(request: AskedRequest, answer: Reply, billing: Billing) -> BilledUsage:
    total = request.input_tokens
    if answer.stop is StopReason.FILTERED:
        return BilledUsage(total)
    cached, _ = billing.fixed(total) or _cache_use(request, billing)
    visible, thought = tokens(len(answer.text)) if answer.text else 0, billing.knobs.reasoning_tokens
    return BilledUsage(total, cached, 0, visible + thought, thought)


_LEAST_CACHED, _STEP = 2048, 128  # tokens
_LIFETIME = 3600.0


def _cache_use(request: AskedRequest, billing: Billing) -> CacheUse:
    """A prompt that begins as an earlier one did is read from the implicit cache. In batches that has not been observed."""
    text = request.system + request.prompt
    lengths = range(_LEAST_CACHED * CHARS, len(text) + 1, _STEP * CHARS)
    return CacheUse(billing.read(request, text, lengths, _LIFETIME), 0)


def response_of(request: AskedRequest, answer: Reply, usage: BilledUsage) -> dict[str, Any]:
    """Return the GenerateContentResponse."""
    counts = {
        "promptTokenCount": usage.input,
        "candidatesTokenCount": usage.output - usage.reasoning,
        "totalTokenCount": usage.input + usage.output,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": usage.input}],
        "trafficType": "ON_DEMAND",
    }
    if usage.cached:
        counts["cachedContentTokenCount"] = usage.cached
    if usage.reasoning:
        counts["thoughtsTokenCount"] = usage.reasoning
    response: dict[str, Any] = {
        "modelVersion": request.model,
        "responseId": f"{request.seed:016x}",
        "usageMetadata": counts,
    }
    if answer.stop is StopReason.FILTERED:
        return {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, **response}
    candidate: dict[str, Any] = {
        "content": {"role": "model"},
        "finishReason": _FINISHES[answer.stop],
        "avgLogprobs": -0.1,
    }
    if parts := _parts(request, answer):
        candidate["content"]["parts"] = parts
    return {"candidates": [candidate], **response}


def _parts(request: AskedRequest, answer: Reply) -> list[dict[str, Any]]:
    if not answer.text:
        return []
    if request.tool is not None and answer.stop is StopReason.END:
        return [{"functionCall": {"name": request.tool, "args": parse(answer.text.encode())}}]
    config = _either(request.body, "generationConfig") or {}
    text = answer.text
    if _either(config, "responseMimeType") == "text/x.enum":
        text = str(parse(text.encode()))
    thought = [{"text": "Let me see.", "thought": True}]
    return [
        *(thought if (_either(config, "thinkingConfig") or {}).get("includeThoughts") else ()),
        {"text": text},
    ]
