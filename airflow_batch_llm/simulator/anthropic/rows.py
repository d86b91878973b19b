"""Answer Anthropic's rows as the Messages API answers one request's parameters.

`params` is not checked when a batch is created. A bad row becomes an errored result, and does not affect others.
"""

from typing import Any

import orjson

from airflow_batch_llm.simulator.anthropic import PROVIDER
from airflow_batch_llm.simulator.bodies import parse
from airflow_batch_llm.simulator.database import BilledUsage, RowFate
from airflow_batch_llm.simulator.meters import Billing, CacheUse
from airflow_batch_llm.simulator.request import (
    AskedRequest,
    FindMedium,
    Medium,
    Reply,
    RowError,
    StopReason,
    anthropic_refusal,
    content_digest,
    no_file,
    seed_of,
    tokens,
)
from airflow_batch_llm.simulator.vendor import Parsed, Written

RESULTS = "results"
NEWEST_VERSION = "2026-10-21"
VERSIONS = frozenset({"2023-01-01", "2023-06-01", NEWEST_VERSION})
ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_STOPS = {
    StopReason.END: "end_turn",
    StopReason.LENGTH: "max_tokens",
    StopReason.REFUSED: "refusal",
    StopReason.FILTERED: "refusal",
}
_REMOVED = ("temperature", "top_p", "top_k", "output_format")
_TIERS = ("auto", "standard_only")
_BATCH_REFUSED = ("speed", "store", "previous_thread_event_id", "cache_hint", "context_hint")
_MOST_TOKENS = 300_000


class AnthropicRows:
    """The rows of one batch."""

    def __init__(self, version: str, billing: Billing, find: FindMedium = no_file) -> None:
        self._version = version
        self._billing = billing
        self._find = find

    def read(self, line: bytes) -> Parsed:
        row = parse(line)
        params = row["params"]
        custom_id = row["custom_id"]
        digest = content_digest(PROVIDER, params)
        error = _batch_problem(params) or problem(params, self._version, find=self._find)
        request = None if error else as_request(params, custom_id, digest, self._find)
        return Parsed(custom_id, digest, str(params.get("model", "")), request, error, None)

    def write(self, parsed: Parsed, answer: Reply) -> Written:
        if answer.error is not None:
            kind = answer.error.code or ERROR_TYPES.get(answer.error.status, "api_error")
            error = {
                "type": "error",
                "error": {"type": kind, "message": answer.error.message},
                "request_id": None,
            }
            return _line(parsed.custom_id, {"type": "errored", "error": error}, RowFate.ERRORED, None)
        assert parsed.request is not None
        usage = usage_of(parsed.request, answer, self._billing)
        result = {"type": "succeeded", "message": message(parsed.request, answer, usage)}
        return _line(parsed.custom_id, result, RowFate.SUCCEEDED, usage)

    def skip(self, parsed: Parsed, outcome: RowFate) -> Written:
        return _line(parsed.custom_id, {"type": outcome.value}, outcome, None)


def _line(custom_id: str, result: dict[str, Any], outcome: RowFate, usage: BilledUsage | None) -> Written:
    return Written(orjson.dumps({"custom_id": custom_id, "result": result}), RESULTS, outcome, usage)


def _invalid(message: str) -> RowError:
    return RowError(400, "invalid_request_error", message)


def _batch_problem(params: Any) -> RowError | None:
    """Return the error of a row that only batches refuse."""
    if params.get("stream"):
        return _invalid("stream: streaming is not supported in batches")
    for name in _BATCH_REFUSED:
        if name in params:
            return _invalid(f"{name}: not supported in batches")
    return None


def problem(
    params: dict[str, Any], version: str, *, counting: bool = False, find: FindMedium = no_file
) -> RowError | None:
    """Return the reason for which the Messages API refuses these parameters, or None if it takes them."""
    model, limit, messages = params.get("model"), params.get("max_tokens"), params.get("messages")
    if not isinstance(model, str):
        return _invalid("model: Field required")
    if not model.startswith("claude") or "no-such" in model:
        return RowError(404, "not_found_error", f"model: {model}")
    if not counting and (not isinstance(limit, int) or not 1 <= limit <= _MOST_TOKENS):
        return _invalid(f"max_tokens: must be an integer from 1 to {_MOST_TOKENS}")
    if not isinstance(messages, list) or not messages:
        return _invalid("messages: at least one message is required")
    for number, part in enumerate(messages):
        if (
            not isinstance(part, dict)
            or part.get("role") not in ("user", "assistant")
            or not part.get("content")
        ):
            return _invalid(f"messages.{number}: a role and non-empty content are required")
    try:
        _media(params, find)
    except ValueError as error:
        return _invalid(f"messages: {error}")
    if params.get("service_tier", "auto") not in _TIERS:
        return _invalid("service_tier: Input should be 'auto' or 'standard_only'")
    if version == NEWEST_VERSION:
        for name in _REMOVED:
            if name in params:
                return _invalid(f"{name}: not supported by API version {version}")
    return _schema_problem(params)


def _schema_problem(params: dict[str, Any]) -> RowError | None:
    output = (params.get("output_config") or {}).get("format")
    if output is not None:
        if output.get("type") != "json_schema" or not isinstance(output.get("schema"), dict):
            return _invalid("output_config.format: must be of type json_schema and have a schema")
        if reason := anthropic_refusal(output["schema"]):
            return _invalid(f"output_config.format.schema: {reason}")
    for number, tool in enumerate(params.get("tools") or ()):
        if tool.get("strict") and (reason := anthropic_refusal(tool.get("input_schema"))):
            return _invalid(f"tools.{number}.input_schema: {reason}")
    return None


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(
        str(block["text"]) for block in content or () if isinstance(block, dict) and "text" in block
    )


_IMAGES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_PDFS = frozenset({"application/pdf"})
_MOST_IMAGE, _MOST_PDF = 5 << 20, 32_000_000


def _media(params: dict[str, Any], find: FindMedium) -> tuple[Medium, ...]:
    """Return the images and documents of all messages. Raises ValueError for what the Messages API refuses."""
    blocks = [
        block
        for part in params["messages"]
        if isinstance(part["content"], list)
        for block in part["content"]
        if isinstance(block, dict) and block.get("type") in ("image", "document")
    ]
    return tuple(_medium(block["type"] == "document", block.get("source") or {}, find) for block in blocks)


def _medium(is_pdf: bool, source: dict[str, Any], find: FindMedium) -> Medium:
    match source.get("type"):
        case "file":
            found = find(source.get("file_id"))
            if found.is_pdf != is_pdf:
                raise ValueError("the file does not fit the type of its block")
            return found
        case "url":
            return Medium.at(source.get("url"), ("https://",), is_pdf=is_pdf)
        case "base64":
            types, most = (_PDFS, _MOST_PDF) if is_pdf else (_IMAGES, _MOST_IMAGE)
            return Medium.within(source.get("media_type"), source.get("data"), types, most)
        case _:
            raise ValueError("source.type: Input should be 'base64', 'file' or 'url'")


def _media_tokens(media: tuple[Medium, ...]) -> int:
    return sum(
        2000 * one.pages if one.is_pdf else min(1600, -(-one.width * one.height // 750)) for one in media
    )


def as_request(
    params: dict[str, Any], custom_id: str, digest: bytes, find: FindMedium = no_file
) -> AskedRequest:
    tool, schema = _wanted(params)
    media = _media(params, find)
    return AskedRequest(
        PROVIDER,
        "messages",
        custom_id,
        params["model"],
        _text(params.get("system")),
        "\n".join(_text(part["content"]) for part in params["messages"]),
        schema,
        tool,
        params.get("max_tokens"),
        params,
        seed_of(digest),
        media,
        _media_tokens(media),
    )


def _wanted(params: dict[str, Any]) -> tuple[str | None, dict[str, Any] | None]:
    """Return the forced tool and the schema of the answer."""
    choice = params.get("tool_choice")
    if choice and choice.get("type") in ("tool", "any"):
        tools = params.get("tools") or ()
        for tool in tools:
            if choice["type"] == "any" or tool["name"] == choice.get("name"):
                return tool["name"], tool.get("input_schema") or {}
    output = (params.get("output_config") or {}).get("format") or params.get("output_format")
    return None, output["schema"] if output else None


def usage_of(request: AskedRequest, answer: Reply, billing: Billing) -> BilledUsage:
    total = request.input_tokens
    cached, written = billing.fixed(total) or _cache_use(request, billing)
    visible, thought = tokens(len(answer.text)) if answer.text else 1, billing.knobs.reasoning_tokens
    return BilledUsage(total, cached, written, visible + thought, thought)


#: The least tokens of a prefix that is cached, by the beginning of a model's name.
_LEAST_CACHED = (
    ("claude-haiku-4-5", 4096), ("claude-opus-4-5", 4096), ("claude-opus-4-6", 4096), ("claude-opus-4-7", 4096),
    ("claude-3-7", 1024), ("claude-3", 2048), ("claude-opus-4", 1024), ("claude-sonnet-4", 1024), ("", 512),
)  # fmt: skip
_LIFETIMES = {"5m": 300.0, "1h": 3600.0}


def _cache_use(request: AskedRequest, billing: Billing) -> CacheUse:
    """Return the tokens that the cache serves.

    A prefix is cached up to its last mark, unless it is short. The answer does not show which.
    """
    prefix, lifetime = _marked(request.body)
    least = next(least for name, least in _LEAST_CACHED if request.model.startswith(name))
    length = tokens(len(prefix))
    if not prefix or length < least:
        return CacheUse()
    read = billing.read(request, prefix, [len(prefix)], _LIFETIMES[lifetime])
    return CacheUse(read, 0) if read else CacheUse(0, length)


def _marked(params: dict[str, Any]) -> tuple[str, str]:
    """Return the text up to the last block with a mark, and the lifetime that the mark asks for.

    Both are empty if there is none.
    """
    text, prefix, lifetime = "", "", ""
    contents = (params.get("system"), *(part["content"] for part in params["messages"]))
    if not any(isinstance(content, list) for content in contents):
        return prefix, lifetime  # only blocks can have a mark
    for content in contents:
        blocks: list[dict[str, Any]] = content if isinstance(content, list) else [{"text": content or ""}]
        for block in blocks:
            text += str(block.get("text", ""))
            if mark := block.get("cache_control"):
                prefix, lifetime = text, mark.get("ttl", "5m")
    return prefix, lifetime


def message(request: AskedRequest, answer: Reply, usage: BilledUsage) -> dict[str, Any]:
    """The Message that answers the request."""
    content: list[dict[str, Any]] = []
    if _thinks(request):
        content.append({"type": "thinking", "thinking": "Let me see.", "signature": "c2ln"})
    stop = _STOPS[answer.stop]
    if request.tool is not None and answer.stop is StopReason.END and answer.text:
        content.append(
            {
                "type": "tool_use",
                "id": f"toolu_{request.seed:020x}",
                "name": request.tool,
                "input": parse(answer.text.encode()),
            }
        )
        stop = "tool_use"
    elif answer.text:
        content.append({"type": "text", "text": answer.text})
    for_an_hour = _marked(request.body)[1] == "1h"
    return {
        "id": f"msg_{request.seed:024x}",
        "type": "message",
        "role": "assistant",
        "model": request.model,
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {
            "input_tokens": usage.input - usage.cached - usage.cache_write,
            "cache_creation_input_tokens": usage.cache_write,
            "cache_read_input_tokens": usage.cached,
            "cache_creation": {
                "ephemeral_5m_input_tokens": 0 if for_an_hour else usage.cache_write,
                "ephemeral_1h_input_tokens": usage.cache_write if for_an_hour else 0,
            },
            "output_tokens": usage.output,
            "output_tokens_details": {"thinking_tokens": usage.reasoning},
            "service_tier": "batch" if request.custom_id else "standard",
        },
    }


def _thinks(request: AskedRequest) -> bool:
    """Opus 5 and its successors think unless told not to; the others when told to."""
    asked = (request.body.get("thinking") or {}).get("type")
    if request.model.startswith("claude-opus-5"):
        return bool(asked != "disabled")
    return asked in ("enabled", "adaptive")
