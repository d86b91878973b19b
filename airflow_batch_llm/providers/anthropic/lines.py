"""Write a request as a line for Anthropic: `{"custom_id", "params"}`, where params is the body of a message.

Anthropic looks at params only when the row runs, so a wrong parameter fails every row of the batch. Each parameter that
Anthropic is known to refuse is refused here, by name.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import orjson

from airflow_batch_llm.core.attachment import (
    ANY_IMAGE,
    PDF,
    Attachment,
    AttachmentRules,
    Content,
    kind_of,
    referred,
)
from airflow_batch_llm.core.model import Call, Outcome, RateLimit, Result, Usage
from airflow_batch_llm.core.request import CUSTOM_ID, PROMPT
from airflow_batch_llm.core.schema_rules import (
    Schema,
    inline_refs,
    is_open_map,
    map_children,
    measure,
    told_in_words,
    walk,
)
from airflow_batch_llm.errors import InputError, OutputTypeError
from airflow_batch_llm.providers.failures import CallFailure, brief
from airflow_batch_llm.providers.incoming import parse_line, part_of, tokens

#: From this version of the API on, the caller cannot set sampling parameters.
SAMPLING_REMOVED = "2026-10-21"
SAMPLING = frozenset({"temperature", "top_p", "top_k"})

# Fields that this package sets, and the argument for each.
_MANAGED = {
    "messages": "prompt",
    "model": "model_id",
    "system": "system_prompt",
    "max_tokens": "max_tokens",
    "output_format": "output_type",
}
# Not for batches.
_REFUSED = frozenset({"stream", "speed", "store", "previous_thread_event_id", "cache_hint", "context_hint"})

# The fields of a message's body that counting tokens takes.
_COUNTED = frozenset(
    {"model", "system", "messages", "thinking", "tools", "tool_choice", "output_config", "cache_control"}
)

# Keywords that the output format has. A schema's other keywords move into the description.
_KEPT = frozenset(
    {"type", "properties", "required", "items", "anyOf", "allOf", "enum", "const", "description", "title"}
)
_FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"}
)
_MAX_OPTIONAL = 24
_MAX_UNIONS = 16


def message_line(call: Call) -> dict[str, Any]:
    """Return the line of this call, with holes for the custom_id and the prompt."""
    return {"custom_id": CUSTOM_ID, "params": message_body(call, PROMPT)}


def message_body(call: Call, prompt: str) -> dict[str, Any]:
    """Return the body of one message. Raises `InputError` for what Anthropic would refuse in every row."""
    for name in call.params:
        if name in _MANAGED:
            raise InputError(f"extra_body may not hold {name!r}: set it with {_MANAGED[name]!r}.")
        if name in _REFUSED:
            raise InputError(f"extra_body may not hold {name!r}: Anthropic does not take it in a batch.")
    if call.endpoint is not None:
        raise InputError(f"Anthropic has one endpoint for batches; leave out endpoint={call.endpoint!r}.")
    if call.vector:
        raise OutputTypeError(
            "Anthropic has no embeddings. Ask a model of OpenAI at endpoint='/v1/embeddings'."
        )
    if not call.max_tokens or call.max_tokens < 1:
        raise InputError("Anthropic needs max_tokens, at least 1: the most tokens that one answer may have.")
    body: dict[str, Any] = {"model": call.model, "max_tokens": call.max_tokens}
    if call.system_prompt:
        body["system"] = _system(call.system_prompt, cached=call.asks_to_cache)
    body["messages"] = [{"role": "user", "content": prompt}]
    body |= call.params
    if call.schema is not None:
        body["output_config"] = _output_config(call.params.get("output_config"), call.schema)
    return body


def counted_body(call: Call, prompt: str) -> dict[str, Any]:
    """Return the body for counting the tokens of one message."""
    return {name: value for name, value in message_body(call, prompt).items() if name in _COUNTED}


def refuse_sampling(call: Call, version: str) -> None:
    """Refuse the parameters that this version of the API no longer takes."""
    refused = sorted(SAMPLING & call.params.keys())
    if refused and version >= SAMPLING_REMOVED:
        raise InputError(
            f"extra_body may not hold {', '.join(map(repr, refused))}: version {version} of Anthropic's API refuses "
            "it in every row. Leave it out, or set the header anthropic-version to 2023-06-01 on the connection."
        )


def _write_content(text: str, attachments: Sequence[Attachment]) -> object:
    """Write a message's content. The model reads attachments best before the question about them."""
    blocks = [{"type": "document" if one.is_pdf else "image", "source": _source(one)} for one in attachments]
    return [*blocks, {"type": "text", "text": text}] if blocks else text


def _source(one: Attachment) -> dict[str, Any]:
    if one.sha256 is not None:
        return {"type": "file", "file_id": one.reference}
    if one.uri is not None:
        return {"type": "url", "url": one.uri}
    return {"type": "base64", "media_type": one.media_type, "data": one.data}


def _read_content(content: Any) -> tuple[str, list[Attachment]]:
    if isinstance(content, str):
        return content, []
    *blocks, text = content
    return text["text"], [_attachment(block) for block in blocks]


def _attachment(block: Mapping[str, Any]) -> Attachment:
    source = block["source"]
    if source["type"] == "file" and (uploaded := referred(source["file_id"])) is not None:
        return uploaded
    if source["type"] == "base64":
        return Attachment(source["media_type"], data=source["data"])
    return Attachment(PDF if block["type"] == "document" else kind_of(source["url"]), uri=source["url"])


CONTENT = Content(_write_content, _read_content)

_IMAGES = ("image/jpeg", "image/png", "image/gif", "image/webp")
#: Anthropic counts an image in base64, of at most 5 MB. A PDF is bounded by the request.
_MOST_IMAGE, _MOST_PDF = 5 * (1 << 20) * 3 // 4, 23_000_000
#: A file may be larger. The limit of an image in a file is not documented; this assumes the same one.
_MOST_FILE = 500_000_000
#: The most pages of a request. The models with the smaller context window take fewer.
_MOST_PAGES, _FEWER_PAGES = 600, 100
_WITH_FEWER_PAGES = re.compile(r"claude-(3|haiku-[34]|sonnet-4-([0-5]\b|2)|opus-4-([0-5]\b|2))")
#: An image above this on its longer side is scaled down before it is counted.
_SCALED_TO, _PIXELS_PER_TOKEN, _MOST_IMAGE_TOKENS = 1568, 750, 1600
_PAGE_TOKENS, _USUAL_PAGES = 3000, 5

#: Anthropic fetches attachments by URI, and does not document a size limit for them.
_FETCHED = {**dict.fromkeys((*_IMAGES, ANY_IMAGE), _MOST_IMAGE), PDF: _MOST_PDF}


def attachment_rules(model: str) -> AttachmentRules:
    """Return the attachments that a model of Anthropic's takes."""
    return AttachmentRules(
        inline={**dict.fromkeys(_IMAGES, _MOST_IMAGE), PDF: _MOST_PDF},
        by_uri={"https": _FETCHED},
        uploaded={**dict.fromkeys(_IMAGES, _MOST_IMAGE), PDF: _MOST_FILE},
        most=100,
        most_pages=_FEWER_PAGES if _WITH_FEWER_PAGES.match(model) else _MOST_PAGES,
        most_pixels=8000,
        tokens=_attachment_tokens,
        assumption=(
            f"an image is taken to have {_MOST_IMAGE_TOKENS:,} tokens, and a PDF {_USUAL_PAGES} pages of"
            f" {_PAGE_TOKENS:,} tokens"
        ),
    )


def _attachment_tokens(one: Attachment) -> int:
    if one.is_pdf:
        return _PAGE_TOKENS * (one.pages or _USUAL_PAGES)
    if not one.is_measured:
        return _MOST_IMAGE_TOKENS
    scale = min(1.0, _SCALED_TO / max(one.width, one.height))
    pixels = int(one.width * scale) * int(one.height * scale)
    return min(_MOST_IMAGE_TOKENS, max(1, -(-pixels // _PIXELS_PER_TOKEN)))


def _system(text: str, *, cached: bool) -> object:
    if not cached:
        return text
    # Batches outlive five minutes, and so do the gaps between rows that share the prefix.
    return [{"type": "text", "text": text, "cache_control": {"type": "ephemeral", "ttl": "1h"}}]


def _output_config(given: object, schema: Schema) -> dict[str, Any]:
    config = dict(given) if isinstance(given, Mapping) else {}
    if "format" in config:
        raise InputError("extra_body may not hold 'output_config.format': set it with 'output_type'.")
    return {**config, "format": {"type": "json_schema", "schema": native_schema(schema)}}


def native_schema(schema: Schema) -> dict[str, Any]:
    """Return the schema as Anthropic takes it: closed objects, no references, the rest of its rules told in words."""
    plain = inline_refs(schema)
    for path, node, _ in walk(plain):
        _refuse_inexpressible(path, node)
    native: dict[str, Any] = _native(plain)
    size = measure(native)
    if size.optional > _MAX_OPTIONAL or size.unions > _MAX_UNIONS:
        raise OutputTypeError(
            f"Anthropic takes at most {_MAX_OPTIONAL} optional properties and {_MAX_UNIONS} unions in an output type; "
            f"this one has {size.optional} and {size.unions}. Make properties required, or split the task."
        )
    return native


def _refuse_inexpressible(path: str, node: Schema) -> None:
    if is_open_map(node):
        raise OutputTypeError(
            f"Anthropic cannot be asked for an object with free property names (at {path}). "
            "Name its properties, or ask for a list of names and values."
        )
    for keyword in ("not", "if", "patternProperties", "prefixItems", "dependentSchemas"):
        if keyword in node:
            raise OutputTypeError(f"Anthropic cannot be asked for {keyword!r} in an output type (at {path}).")
    if not node.keys() & {"type", "anyOf", "oneOf", "allOf", "enum", "const", "properties"}:
        raise OutputTypeError(
            f"Anthropic cannot be asked for a value of any type (at {path}). Give it a type."
        )


def _native(node: Any) -> Any:
    if not isinstance(node, Mapping):
        return node
    copy = map_children(node, _native)
    if "oneOf" in copy:
        copy["anyOf"] = copy.pop("oneOf")
    told = {key: value for key, value in copy.items() if not _is_kept(key, value)}
    told.pop("additionalProperties", None)
    told.pop("discriminator", None)
    native = {key: value for key, value in copy.items() if _is_kept(key, value)}
    if native.keys() & {"enum", "const"}:
        native.pop("type", None)  # the values say it
    if "properties" in copy or copy.get("type") == "object":
        native |= {"type": copy.get("type", "object"), "properties": copy.get("properties", {})}
        native["additionalProperties"] = False
    if told:
        native["description"] = told_in_words(native.get("description"), told)
    return native


def _is_kept(key: str, value: object) -> bool:
    if key == "format":
        return value in _FORMATS
    return key in _KEPT or (key == "minItems" and value in (0, 1))


def answered_line(custom_id: str, message: Mapping[str, Any]) -> bytes:
    """Return the result line of a message that was answered in real time."""
    return orjson.dumps({"custom_id": custom_id, "result": {"type": "succeeded", "message": message}})


def refused_line(custom_id: str, failure: CallFailure) -> bytes:
    """Return the result line of a message that Anthropic refuses in real time."""
    error = {"type": failure.code or "invalid_request_error", "message": failure.message}
    return orjson.dumps(
        {"custom_id": custom_id, "result": {"type": "errored", "error": {"type": "error", "error": error}}}
    )


_LIMITS = ("requests", "tokens", "input-tokens", "output-tokens")


def limits_of(headers: Mapping[str, str], now: float) -> list[RateLimit]:
    """Return the limits that the headers of an answer state. A header that cannot be read states none."""
    found = []
    for kind in _LIMITS:
        names = (f"anthropic-ratelimit-{kind}-{name}" for name in ("limit", "remaining", "reset"))
        limit, remaining, reset = (headers.get(name, "") for name in names)
        with suppress(ValueError):
            full_in = max(0.0, datetime.fromisoformat(reset).timestamp() - now)
            found.append(RateLimit(kind, int(limit), int(remaining), full_in))
    return found


# A row's error that may not occur in another batch.
_RETRYABLE = frozenset({"api_error", "overloaded_error", "timeout_error", "rate_limit_error"})

_WHOLE = frozenset({"end_turn", "stop_sequence"})
_CUT_OFF = frozenset({"max_tokens", "model_context_window_exceeded", "pause_turn"})


#: The most tokens of an answer, by the beginning of a model's name. A model that is not listed has the last number.
_CAPS = (
    ("claude-3-5", 8_192), ("claude-3-7", 64_000), ("claude-3", 4_096), ("claude-opus-4-5", 64_000), ("claude-opus-4-6", 128_000),
    ("claude-opus-4-7", 128_000), ("claude-opus-4-8", 128_000), ("claude-opus-5", 128_000), ("claude-opus", 32_000),
    ("claude-sonnet-4-6", 128_000), ("claude-sonnet", 64_000), ("claude-haiku", 64_000), ("", 8_192),
)  # fmt: skip


def answer_cap(model: str) -> int:
    """Return the most tokens of one answer of a model."""
    return next(most for name, most in _CAPS if model.startswith(name))


#: The least tokens of a prefix that is cached, by the beginning of a model's name. A model that is not listed has the last
#: number, which is low: the mark on a shorter prefix does nothing and costs nothing.
_LEAST_CACHED = (
    ("claude-3-7", 1_024), ("claude-3", 2_048), ("claude-haiku-4-5", 4_096), ("claude-opus-4-5", 4_096),
    ("claude-opus-4-6", 4_096), ("claude-opus-4-7", 4_096), ("claude-opus-4", 1_024), ("claude-sonnet-4", 1_024), ("", 512),
)  # fmt: skip


def least_cached(model: str) -> int:
    """Return the least tokens of a prefix that a model caches."""
    return next(least for name, least in _LEAST_CACHED if model.startswith(name))


def decode(line: bytes) -> Result:
    """Return the result of one line. Raises `ValueError` if it is not a result."""
    try:
        row = parse_line(line)
        custom_id, result = str(row["custom_id"]), row["result"]
        match result["type"]:
            case "succeeded":
                return decode_message(custom_id, result["message"])
            case "errored":
                return _errored(custom_id, result["error"])
            case "expired":
                return Result(custom_id=custom_id, outcome=Outcome.EXPIRED, error_code="expired")
            case "canceled":
                return Result(custom_id=custom_id, outcome=Outcome.CANCELED, error_code="canceled")
            case _:
                raise ValueError("the line is of an unknown type")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the line is not a result: {type(error).__name__}") from error


def decode_message(custom_id: str, message: Mapping[str, Any]) -> Result:
    """Return the result of a message."""
    # The first block may be a thought, and an answer may come in several blocks.
    text = "".join(block["text"] for block in message["content"] if block["type"] == "text")
    reason = message.get("stop_reason")
    outcome, code = _verdict(reason, text)
    return Result(
        custom_id=custom_id,
        outcome=outcome,
        text=text or None,
        usage=_usage(part_of(message, "usage")),
        model=message.get("model"),
        finish_reason=reason,
        error_code=code,
    )


def _verdict(reason: str | None, text: str) -> tuple[Outcome, str | None]:
    if reason == "refusal":
        return Outcome.REFUSED, reason
    if reason in _CUT_OFF:
        return Outcome.TRUNCATED, reason
    if not text.strip():
        return Outcome.INVALID, "empty"
    return (Outcome.SUCCEEDED, None) if reason in _WHOLE else (Outcome.INVALID, reason or "unfinished")


def _errored(custom_id: str, error: Mapping[str, Any]) -> Result:
    # The outer type is always "error". The inner one says what went wrong.
    inner = error["error"]
    return Result(
        custom_id=custom_id,
        outcome=Outcome.ERRORED,
        error_code=inner["type"],
        error_message=brief(inner.get("message")),
        retryable=inner["type"] in _RETRYABLE,
    )


def _usage(usage: Mapping[str, Any]) -> Usage:
    # `input_tokens` leaves out the tokens that were read from a cache or written to it.
    cached = tokens(usage, "cache_read_input_tokens")
    written = tokens(usage, "cache_creation_input_tokens")
    return Usage(
        input_tokens=tokens(usage, "input_tokens") + cached + written,
        cached_tokens=cached,
        cache_write_tokens=written,
        output_tokens=tokens(usage, "output_tokens"),
        reasoning_tokens=tokens(part_of(usage, "output_tokens_details"), "thinking_tokens"),
    )
