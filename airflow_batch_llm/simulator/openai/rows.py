"""Check OpenAI's rows, and answer them as an endpoint does."""

from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from airflow_batch_llm.simulator.bodies import MEGABYTE, lines, parse
from airflow_batch_llm.simulator.database import RowFate
from airflow_batch_llm.simulator.meters import Billing
from airflow_batch_llm.simulator.openai import PROVIDER
from airflow_batch_llm.simulator.openai.answers import CHAT, EMBEDDINGS, RESPONSES, body_of, usage_of
from airflow_batch_llm.simulator.request import (
    AskedRequest,
    FindMedium,
    Medium,
    Reply,
    RowError,
    content_digest,
    no_file,
    openai_refusal,
    seed_of,
)
from airflow_batch_llm.simulator.vendor import Parsed, Written

ENDPOINTS = ("/v1/responses", "/v1/chat/completions", "/v1/embeddings")
_MOST_BYTES = 200 * MEGABYTE
_MOST_REQUESTS = 50_000


class BadInput(Exception):
    """The reason for which the file is refused, as `errors.data` has it."""

    def __init__(self, code: str, message: str, param: str | None = None, line: int | None = None) -> None:
        super().__init__(message)
        self.entry = {"code": code, "message": message, "param": param, "line": line}


class Checked:
    """The contents of a valid file."""

    def __init__(self, model: str, total: int, tokens: int) -> None:
        self.model = model
        self.total = total
        self.tokens = tokens


def check_file(path: Path, endpoint: str) -> Checked:
    """Check a file. Raises `BadInput` at the first fault."""
    if path.stat().st_size > _MOST_BYTES:
        raise BadInput("invalid_request", f"The batch input file is larger than the {_MOST_BYTES} maximum.")
    seen: set[str] = set()
    count: Counter[str] = Counter()
    model = None
    for number, line in enumerate(lines(path), 1):
        if number > _MOST_REQUESTS:
            raise BadInput("too_many_tasks", f"The batch input file has more than {_MOST_REQUESTS} requests.")
        row = _row(line, number, endpoint)
        if row["custom_id"] in seen:
            raise BadInput("duplicate_custom_id", "The custom_id was used before.", "custom_id", number)
        seen.add(row["custom_id"])
        model = model or row["body"]["model"]
        if row["body"]["model"] != model:
            raise BadInput(
                "mismatched_model", "All requests must be for the same model.", "body.model", number
            )
        _count(row["body"], endpoint, count, number)
    if model is None:
        raise BadInput("empty_file", "The batch input file is empty.")
    return Checked(model, len(seen), count["tokens"])


def _row(line: bytes, number: int, endpoint: str) -> dict[str, Any]:
    try:
        row = parse(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise BadInput("invalid_json_line", "This line is not parseable as valid JSON.", None, number)
    for name in ("custom_id", "method", "url", "body"):
        if not row.get(name):
            raise BadInput(
                "missing_required_parameter", f"Missing required parameter: '{name}'.", name, number
            )
    if not isinstance(row["custom_id"], str) or not isinstance(row["body"], dict):
        raise BadInput("invalid_request", "custom_id must be a string, body an object.", "custom_id", number)
    if row["method"] != "POST":
        raise BadInput("invalid_method", "The method must be POST.", "method", number)
    if row["url"] != endpoint:
        raise BadInput(
            "invalid_url", f"The URL does not match the batch's endpoint {endpoint}.", "url", number
        )
    model = row["body"].get("model")
    if not isinstance(model, str):
        raise BadInput("invalid_request", "The request has no model.", "body.model", number)
    if "no-such" in model:
        raise BadInput("model_not_found", f"The model '{model}' does not exist.", "body.model", number)
    if row["body"].get("stream"):
        raise BadInput(
            "streaming_unsupported", "Streaming is not supported in batches.", "body.stream", number
        )
    return row


def _count(body: dict[str, Any], endpoint: str, count: Counter[str], number: int) -> None:
    count["tokens"] += as_request(endpoint, body, "", b"\0" * 8).input_tokens
    if endpoint == EMBEDDINGS:
        given = body.get("input")
        count["inputs"] += len(given) if isinstance(given, list) else 1
        if count["inputs"] > _MOST_REQUESTS:
            raise BadInput(
                "too_many_tasks", f"More than {_MOST_REQUESTS} embedding inputs.", "body.input", number
            )


OUTPUT = "output"
ERRORS = "errors"
_CODES = {429: "rate_limit_exceeded", 500: "server_error", 503: "server_error"}
_SKIPPED = {
    RowFate.EXPIRED: (
        "batch_expired",
        "This request could not be executed before the completion window expired.",
    ),
    RowFate.CANCELED: ("batch_cancelled", "This request was not executed because the batch was cancelled."),
}


class OpenAIRows:
    """The rows of one batch, all for one endpoint."""

    def __init__(
        self, endpoint: str, batch_number: int, billing: Billing, find: FindMedium = no_file
    ) -> None:
        self._find = find
        self._endpoint = endpoint
        self._number = batch_number
        self._billing = billing
        self._count = 0

    def read(self, line: bytes) -> Parsed:
        row = parse(line)
        body = row["body"]
        digest = content_digest(f"{PROVIDER}{self._endpoint}", body)
        error = problem(self._endpoint, body, self._find)
        request = None if error else as_request(self._endpoint, body, row["custom_id"], digest, self._find)
        return Parsed(row["custom_id"], digest, str(body.get("model", "")), request, error, None)

    def write(self, parsed: Parsed, answer: Reply) -> Written:
        if answer.error is not None:
            refused = {"status_code": answer.error.status, "request_id": "", "body": error_body(answer.error)}
            return self._line(parsed.custom_id, refused, None, ERRORS)
        assert parsed.request is not None
        usage = usage_of(parsed.request, answer, self._billing)
        response = {"status_code": 200, "request_id": "", "body": body_of(parsed.request, answer, usage)}
        return self._line(parsed.custom_id, response, None, OUTPUT)._replace(
            outcome=RowFate.SUCCEEDED, usage=usage
        )

    def skip(self, parsed: Parsed, outcome: RowFate) -> Written:
        code, message = _SKIPPED[outcome]
        return self._line(parsed.custom_id, None, {"code": code, "message": message}, ERRORS)._replace(
            outcome=outcome
        )

    def _line(
        self, custom_id: str, response: dict[str, Any] | None, error: dict[str, str] | None, channel: str
    ) -> Written:
        self._count += 1
        tail = f"{self._number:08x}{self._count:08x}"
        if response is not None:
            response["request_id"] = f"req_{tail}"
        line = {"id": f"batch_req_{tail}", "custom_id": custom_id, "response": response, "error": error}
        return Written(orjson.dumps(line), channel, RowFate.ERRORED, None)


def error_body(error: RowError, kind: str | None = None) -> dict[str, Any]:
    """Return the body of an error. `kind` is its type where that does not follow from the status and the code."""
    code = error.code or _CODES.get(error.status)
    usual = (
        code if error.status == 429 else "server_error" if error.status >= 500 else "invalid_request_error"
    )
    kind = kind or usual
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": code}}


def _invalid(message: str, param: str, code: str | None = None) -> RowError:
    return RowError(400, code or "", message, param)


def problem(endpoint: str, body: Any, find: FindMedium = no_file) -> RowError | None:
    """Return the reason for which the endpoint refuses this body, or None if it takes it."""
    model = body.get("model")
    if not isinstance(model, str):
        return _invalid("you must provide a model parameter", "model", "missing_required_parameter")
    if "no-such" in model:
        return RowError(404, "model_not_found", f"The model '{model}' does not exist.", "model")
    needed = {CHAT: "messages", RESPONSES: "input", EMBEDDINGS: "input"}.get(endpoint)
    if needed and not body.get(needed):
        return _invalid(f"Missing required parameter: '{needed}'.", needed, "missing_required_parameter")
    try:
        _media(endpoint, body, find)
    except ValueError as error:
        return _invalid(f"Invalid content: {error}", needed or "input", "invalid_value")
    where, found = _schema(body)
    if found and found.get("strict") and (reason := openai_refusal(found.get("schema"))):
        return _invalid(
            f"Invalid schema for {where} '{found.get('name')}': {reason}", where, "invalid_json_schema"
        )
    return None


def _schema(body: dict[str, Any]) -> tuple[str, dict[str, Any] | None]:
    """Return the part of the body that asks for structured output, and its form."""
    if (chat := body.get("response_format")) and chat.get("type") == "json_schema":
        return "response_format", chat.get("json_schema")
    form = (body.get("text") or {}).get("format") or {}
    return "text.format", form if form.get("type") == "json_schema" else None


def _json_wanted(body: dict[str, Any]) -> bool:
    form = body.get("response_format") or (body.get("text") or {}).get("format") or {}
    return bool(form.get("type") == "json_object")


def _forced_tool(body: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Return the function that the model must call, with the schema of its arguments."""
    choice = body.get("tool_choice")
    tools = [tool.get("function", tool) for tool in body.get("tools") or ()]
    if not choice or choice in ("auto", "none") or not tools:
        return None
    name = None if choice == "required" else choice.get("function", choice).get("name")
    for tool in tools:
        if name in (None, tool.get("name")):
            return tool["name"], tool.get("parameters") or {}
    return None


_PARTS = {CHAT: ("text", "image_url", "file"), RESPONSES: ("input_text", "input_image", "input_file")}
_IMAGES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_MOST_DATA = 70_000_000


def _media(endpoint: str, body: dict[str, Any], find: FindMedium) -> tuple[Medium, ...]:
    """Return the images and PDFs of all messages. Raises ValueError for parts that the endpoint does not take."""
    found = []
    messages = body.get("messages") or body.get("input") or ()
    for message in messages if isinstance(messages, list) and endpoint in _PARTS else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) and message.get("role") == "user" else ():
            text, image, file = _PARTS[endpoint]
            match part.get("type"):
                case kind if kind == image:
                    is_text = endpoint == RESPONSES
                    is_named = is_text and part.get("file_id") is not None
                    url = part.get("image_url")
                    found.append(find(part["file_id"]) if is_named else _image(url, is_text=is_text))
                case kind if kind == file:
                    found.append(_file(part if endpoint == RESPONSES else part.get("file") or {}, find))
                case kind if kind != text:
                    raise ValueError(f"the type of a part must be one of {text}, {image}, {file}")
    return tuple(found)


def _image(url: Any, *, is_text: bool) -> Medium:
    url = str(url if is_text else (url or {}).get("url"))
    return _data(url, _IMAGES) if url.startswith("data:") else Medium.at(url, _WEB, is_pdf=False)


def _file(file: dict[str, Any], find: FindMedium) -> Medium:
    if file.get("file_id") is not None:
        return find(file["file_id"])
    if "file_data" not in file:
        return Medium.at(file.get("file_url"), _WEB, is_pdf=True)
    if not file.get("filename"):
        raise ValueError("a file has no filename")
    return _data(str(file["file_data"]), frozenset({"application/pdf"}))


def _data(url: str, types: frozenset[str]) -> Medium:
    media_type, _, data = url.removeprefix("data:").partition(";base64,")
    return Medium.within(media_type, data, types, _MOST_DATA)


_WEB = ("https://", "http://")


def _media_tokens(media: tuple[Medium, ...]) -> int:
    return sum(
        1500 * one.pages if one.is_pdf else -(-one.width // 32) * -(-one.height // 32) for one in media
    )


def as_request(
    endpoint: str, body: dict[str, Any], custom_id: str, digest: bytes, find: FindMedium = no_file
) -> AskedRequest:
    system, prompt = _texts(body)
    forced = _forced_tool(body)
    media: tuple[Medium, ...] = ()
    with suppress(ValueError):  # a file is counted before its rows are looked at
        media = _media(endpoint, body, find)
    _, structured = _schema(body)
    schema = forced[1] if forced else (structured or {}).get("schema")
    if schema is None and _json_wanted(body):
        schema = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
    limit = body.get("max_completion_tokens") or body.get("max_output_tokens") or body.get("max_tokens")
    return AskedRequest(
        PROVIDER,
        endpoint,
        custom_id,
        body["model"],
        system,
        prompt,
        schema,
        forced[0] if forced else None,
        limit,
        body,
        seed_of(digest),
        media,
        _media_tokens(media),
    )


def _texts(body: dict[str, Any]) -> tuple[str, str]:
    """Return the system's text and the user's text."""
    system, prompt = [str(body.get("instructions") or "")], []
    messages = body.get("messages") or body.get("input") or ()
    for part in [messages] if isinstance(messages, str) else messages:
        if not isinstance(part, dict):
            prompt.append(str(part))
            continue
        said = system if part.get("role") in ("system", "developer") else prompt
        content = part.get("content")
        said.extend(
            [content] if isinstance(content, str) else [str(block.get("text", "")) for block in content or ()]
        )
    return "\n".join(text for text in system if text), "\n".join(prompt)
