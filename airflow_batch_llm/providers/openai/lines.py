"""Write a request as a line for OpenAI: `{"custom_id", "method", "url", "body"}`, for three endpoints.

OpenAI validates a file as a whole and fails the batch at its first bad line, so wrong requests are refused here.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import ceil
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
from airflow_batch_llm.errors import InputError, OutputTypeError
from airflow_batch_llm.providers.failures import CallFailure, brief
from airflow_batch_llm.providers.incoming import parse_line, part_of, tokens
from airflow_batch_llm.providers.openai.request import cache_words, json_schema_format, marked

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"

# Hosts that know `max_completion_tokens`; older servers of this API know only `max_tokens`.
_MODERN_HOSTS = ("openai.com", "azure.com", "azure.us", "groq.com")

# Fields that this package sets, and the argument for each.
_MANAGED: Mapping[str, Mapping[str, str]] = {
    CHAT: {"messages": "prompt", "model": "model_id"},
    RESPONSES: {"input": "prompt", "model": "model_id", "instructions": "system_prompt"},
    EMBEDDINGS: {"input": "prompt", "model": "model_id"},
}
# Fields that do not work in a batch, or that lead to several answers or to one that comes later.
_REFUSED: Mapping[str, frozenset[str]] = {
    CHAT: frozenset({"stream", "stream_options", "n"}),
    RESPONSES: frozenset({"stream", "stream_options", "background"}),
    EMBEDDINGS: frozenset({"stream", "encoding_format"}),
}
#: The part of a body that asks the flex tier, and the seconds that OpenAI advises to wait for its answer.
FLEX, FLEX_TIMEOUT = {"service_tier": "flex"}, 900.0

# The models with a flex price, by their names without a date.
_FLEX_MODELS = frozenset(
    {
        "gpt-5", "gpt-5-mini", "gpt-5-nano", "gpt-5.1", "gpt-5.2", "gpt-5.4", "gpt-5.4-mini", "gpt-5.4-nano",
        "gpt-5.4-pro", "gpt-5.5", "gpt-5.5-pro", "gpt-5.6-luna", "gpt-5.6-sol", "gpt-5.6-terra", "gpt-6-astra",
        "gpt-6-luna", "gpt-6-sol", "gpt-6.1-sol", "gpt-6.1-terra", "o3", "o4-mini",
    }
)  # fmt: skip
_DATE = re.compile(r"-\d{4}-\d{2}-\d{2}$")

_TOKEN_LIMITS = frozenset({"max_tokens", "max_completion_tokens", "max_output_tokens"})


def endpoint_of(call: Call) -> str:
    """Return the path that the requests of this call go to."""
    endpoint = call.endpoint or CHAT
    if endpoint not in _BODIES:
        raise InputError(
            f"There is no endpoint {endpoint!r} in batches of OpenAI. Use one of {', '.join(_BODIES)}."
        )
    return endpoint


def request_line(call: Call, host: str | None) -> dict[str, Any]:
    """Return the line of this call, with holes for the custom_id and the prompt. `host`: the server, if it is not OpenAI's."""
    endpoint = endpoint_of(call)
    if call.vector and endpoint != EMBEDDINGS:
        raise OutputTypeError(f"The endpoint {endpoint} gives no embeddings: set endpoint={EMBEDDINGS!r}.")
    _check_params(call, endpoint)
    body = _BODIES[endpoint](call, PROMPT, host)
    return {"custom_id": CUSTOM_ID, "method": "POST", "url": endpoint, "body": body}


def flex_problem(call: Call) -> str | None:
    """Say why this call has no flex tier. Returns None if it has one."""
    if endpoint_of(call) == EMBEDDINGS:
        return f"OpenAI has no flex tier for {EMBEDDINGS}. {_INSTEAD}"
    if "service_tier" in call.params:
        return "extra_body may not hold 'service_tier' together with way='flex', which sets it. Leave one of them out."
    if _DATE.sub("", call.model) not in _FLEX_MODELS:
        return (
            f"This release knows no flex tier of the model {call.model!r}. {_INSTEAD} If the model has the tier, set"
            " way='now' and extra_body={'service_tier': 'flex'}: the bill follows the answers."
        )
    return None


_INSTEAD = "Set way='batch' for half the price, or way='now' at the full price."


#: The most tokens of an answer, by the beginning of a model's name. A model that is not listed has the last number.
_CAPS = (
    ("gpt-3.5", 4_096), ("gpt-4.1", 32_768), ("gpt-4o-2024-05-13", 4_096), ("gpt-4o", 16_384), ("gpt-4", 4_096),
    ("gpt-5-chat", 16_384), ("gpt-5.1-chat", 16_384), ("gpt-5.2-chat", 16_384), ("gpt-5.3-chat", 16_384),
    ("gpt-5", 128_000), ("gpt-6", 128_000), ("o3", 100_000), ("o4", 100_000), ("", 8_192),
)  # fmt: skip


def answer_cap(model: str) -> int:
    """Return the most tokens of one answer of a model."""
    return next(most for name, most in _CAPS if model.startswith(name))


def counted_body(call: Call, prompt: str) -> dict[str, Any]:
    """Return the body for counting one request's tokens, always in the words of the responses endpoint."""
    body: dict[str, Any] = {"model": call.model, "input": prompt}
    if call.system_prompt:
        body["instructions"] = call.system_prompt
    if call.schema is not None:
        body["text"] = {"format": json_schema_format(call.schema)}
    return body


def _check_params(call: Call, endpoint: str) -> None:
    managed, refused = _MANAGED[endpoint], _REFUSED[endpoint]
    for name in call.params:
        if name in managed:
            raise InputError(f"extra_body may not hold {name!r}: set it with {managed[name]!r}.")
        if name in refused:
            raise InputError(f"extra_body may not hold {name!r}: a row of a batch gets one whole answer.")
        if name in _TOKEN_LIMITS and call.max_tokens is not None:
            raise InputError(f"extra_body may not hold {name!r}: set it with 'max_tokens'.")


def _chat(call: Call, prompt: str, host: str | None) -> dict[str, Any]:
    words = cache_words(call, host, marks=True)
    system = [{"role": "system", "content": marked(call.system_prompt, words)}] if call.system_prompt else []
    body: dict[str, Any] = {
        "model": call.model,
        "messages": [*system, {"role": "user", "content": prompt}],
        **call.params,
        **words,
    }
    if call.max_tokens is not None:
        body["max_completion_tokens" if _is_modern(host) else "max_tokens"] = call.max_tokens
    if call.schema is not None:
        _refuse_own(call.params, "response_format")
        described = json_schema_format(call.schema)
        kind = described.pop("type")
        body["response_format"] = {"type": kind, "json_schema": described}
    return body


def _responses(call: Call, prompt: str, host: str | None) -> dict[str, Any]:
    body: dict[str, Any] = {"model": call.model}
    if call.system_prompt:
        body["instructions"] = call.system_prompt
    body |= {"input": prompt, **call.params, **cache_words(call, host)}
    if call.max_tokens is not None:
        body["max_output_tokens"] = call.max_tokens
    if call.schema is not None:
        given = call.params.get("text")
        text = dict(given) if isinstance(given, Mapping) else {}
        _refuse_own(text, "format", "text.format")
        body["text"] = {**text, "format": json_schema_format(call.schema)}
    return body


def _embeddings(call: Call, prompt: str, host: str | None) -> dict[str, Any]:  # noqa: ARG001 - one of three alike
    if call.schema is not None:
        raise InputError(
            f"The endpoint {EMBEDDINGS} answers with a vector: set output_type=Embedding(), or use another endpoint."
        )
    if call.system_prompt:
        raise InputError(
            "An embedding takes no system_prompt: leave it out, or put its text into the prompt."
        )
    return {"model": call.model, "input": prompt, **call.params}


_BODIES: Mapping[str, Callable[[Call, str, str | None], dict[str, Any]]] = {
    CHAT: _chat,
    RESPONSES: _responses,
    EMBEDDINGS: _embeddings,
}


def _write_chat(text: str, attachments: Sequence[Attachment]) -> object:
    parts = [_chat_part(one) for one in attachments]
    return [*parts, {"type": "text", "text": text}] if parts else text


def _chat_part(one: Attachment) -> dict[str, Any]:
    if one.sha256 is not None:
        return {"type": "file", "file": {"file_id": one.reference}}
    if one.is_pdf:
        return {"type": "file", "file": {"filename": _FILE_NAME, "file_data": one.data_url}}
    return {"type": "image_url", "image_url": {"url": one.uri or one.data_url}}


def _write_responses(text: str, attachments: Sequence[Attachment]) -> object:
    parts = [_response_part(one) for one in attachments]
    if not parts:
        return text
    return [{"role": "user", "content": [*parts, {"type": "input_text", "text": text}]}]


def _response_part(one: Attachment) -> dict[str, Any]:
    if one.sha256 is not None and one.is_pdf:
        return {"type": "input_file", "file_id": one.reference}
    if one.sha256 is not None:
        return {"type": "input_image", "detail": "auto", "file_id": one.reference}
    if not one.is_pdf:
        return {"type": "input_image", "detail": "auto", "image_url": one.uri or one.data_url}
    if one.uri is not None:
        return {"type": "input_file", "file_url": one.uri}
    return {"type": "input_file", "filename": _FILE_NAME, "file_data": one.data_url}


def _read_chat(content: Any) -> tuple[str, list[Attachment]]:
    if isinstance(content, str):
        return content, []
    *parts, text = content
    return text["text"], [_attachment(part) for part in parts]


def _read_responses(content: Any) -> tuple[str, list[Attachment]]:
    return _read_chat(content if isinstance(content, str) else content[0]["content"])


def _attachment(part: Mapping[str, Any]) -> Attachment:
    named = part.get("file", part)
    if "file_id" in named and (uploaded := referred(named["file_id"])) is not None:
        return uploaded
    if "file_url" in part:
        return Attachment(PDF, uri=part["file_url"])
    url: Any = part.get("image_url") or part.get("file", part)["file_data"]
    url = url if isinstance(url, str) else url["url"]
    kind, _, data = url.removeprefix("data:").partition(";base64,")
    return Attachment(kind, data=data) if url.startswith("data:") else Attachment(kind_of(url), uri=url)


#: A PDF in a request has a name, which the model may see.
_FILE_NAME = "attachment.pdf"

_CONTENTS = {CHAT: Content(_write_chat, _read_chat), RESPONSES: Content(_write_responses, _read_responses)}

_IMAGES = ("image/jpeg", "image/png", "image/gif", "image/webp")
_MOST_IMAGE = 20_000_000  # bounded by the request
_MOST_FILE = 50_000_000
_HOSTS_WITH_FILES = (".openai.com", ".azure.com", ".azure.us")
_PATCH, _TOKENS_PER_PATCH = 32, 1.2
_TILED = re.compile(r"gpt-4o(?!-mini)|gpt-4\.1(?!-(mini|nano))")
_TILE, _TILE_TOKENS, _BASE_TOKENS = 512, 170, 85
_PAGE_TOKENS, _USUAL_PAGES, _USUAL_SIDE = 2000, 5, 1024


def content_of(call: Call) -> Content | None:
    """Return the form of prompts with attachments at the endpoint of a call, or None if the call has none."""
    if not call.attachments:
        return None
    endpoint = endpoint_of(call)
    if endpoint not in _CONTENTS:
        raise InputError(f"The endpoint {endpoint} takes no attachments. Leave out attachments, or endpoint.")
    return _CONTENTS[endpoint]


def attachment_rules(call: Call, host: str | None) -> AttachmentRules:
    """Return the attachments that a call takes.

    Only the responses endpoint reads PDFs by URI, and images from files. Few servers besides OpenAI's and Azure's store
    files for requests.
    """
    content_of(call)
    fetched = dict.fromkeys((*_IMAGES, ANY_IMAGE), _MOST_IMAGE)
    if endpoint_of(call) == RESPONSES:
        fetched[PDF] = _MOST_IMAGE
    return AttachmentRules(
        inline=dict.fromkeys((*_IMAGES, PDF), _MOST_IMAGE),
        by_uri={"https": fetched},
        uploaded=dict.fromkeys((*_IMAGES, PDF) if endpoint_of(call) == RESPONSES else (PDF,), _MOST_FILE),
        is_upload_usual=host is None or host.endswith(_HOSTS_WITH_FILES),
        most=500,
        tokens=partial(_attachment_tokens, is_tiled=bool(_TILED.match(call.model))),
        assumption=(
            f"an image is taken to have {_USUAL_SIDE} by {_USUAL_SIDE} pixels, and a PDF {_USUAL_PAGES} pages of"
            f" {_PAGE_TOKENS:,} tokens"
        ),
    )


def _attachment_tokens(one: Attachment, *, is_tiled: bool) -> int:
    if one.is_pdf:
        return _PAGE_TOKENS * (one.pages or _USUAL_PAGES)
    width, height = one.width or _USUAL_SIDE, one.height or _USUAL_SIDE
    if not is_tiled:
        return ceil(ceil(width / _PATCH) * ceil(height / _PATCH) * _TOKENS_PER_PATCH)
    # Scaled into 2048 by 2048 pixels, then down to 768 on the shorter side.
    scale = min(1.0, 2048 / max(width, height))
    scale *= min(1.0, 768 / (scale * min(width, height)))
    return _BASE_TOKENS + _TILE_TOKENS * ceil(width * scale / _TILE) * ceil(height * scale / _TILE)


def _refuse_own(given: Mapping[str, object], name: str, shown: str | None = None) -> None:
    if name in given:
        raise InputError(f"extra_body may not hold {shown or name!r}: set it with 'output_type'.")


def _is_modern(host: str | None) -> bool:
    return host is None or any(host == name or host.endswith(f".{name}") for name in _MODERN_HOSTS)


def answered_line(custom_id: str, body: Mapping[str, Any]) -> bytes:
    """Return the result line of a request that was answered in real time."""
    return orjson.dumps(
        {"custom_id": custom_id, "response": {"status_code": 200, "body": body}, "error": None}
    )


def refused_line(custom_id: str, failure: CallFailure) -> bytes:
    """Return the result line of a request that OpenAI refuses in real time."""
    body = {"error": {"code": failure.code or None, "message": failure.message}}
    response = {"status_code": failure.status, "body": body}
    return orjson.dumps({"custom_id": custom_id, "response": response, "error": None})


_LIMITS = ("requests", "tokens")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def limits_of(headers: Mapping[str, str]) -> list[RateLimit]:
    """Return the limits that the headers of an answer state. A header that is not a number states none."""
    found = []
    for kind in _LIMITS:
        names = (f"x-ratelimit-{name}-{kind}" for name in ("limit", "remaining", "reset"))
        limit, remaining, reset = (headers.get(name, "") for name in names)
        if limit.isdecimal() and remaining.isdecimal():
            parts = _DURATION.findall(reset)
            seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
            found.append(RateLimit(kind, int(limit), int(remaining), seconds))
    return found


_NEVER_RUN = {"batch_expired": Outcome.EXPIRED, "batch_cancelled": Outcome.CANCELED}
# A row whose connection to the model was lost has the status 0.
_RETRYABLE_STATUS = frozenset({0, 408, 409, 429})
_RETRYABLE_CODES = frozenset({"request_timeout", "server_error", "rate_limit_exceeded"})
_NO_MONEY = frozenset({"insufficient_quota", "billing_hard_limit_reached"})

# The names of the tokens of question and answer in an answer's usage: of Responses, and of the older endpoints.
_TOKENS = ("input_tokens", "input_tokens_details", "output_tokens", "output_tokens_details")
_OLD_TOKENS = ("prompt_tokens", "prompt_tokens_details", "completion_tokens", "completion_tokens_details")

# Servers of this API have their own words for the end of an answer.
_WHOLE = frozenset({"stop", "eos", "eos_token", "end_turn", "stop_sequence"})


def decode(line: bytes) -> Result:
    """Return the result of one line. Raises `ValueError` if it is not a result."""
    try:
        row = parse_line(line)
        custom_id = str(row["custom_id"])
        error: Any = row.get("error")
        response: Any = row.get("response")
        if response is None:
            return _not_run(custom_id, error)
        body = response.get("body") or {}
        if error or response["status_code"] != 200:
            return _failed(custom_id, response["status_code"], error or body.get("error") or body)
        if "choices" in body:
            return _decode_chat(custom_id, body)
        if "output" in body:
            return _response(custom_id, body)
        if "data" in body:
            return _embedding(custom_id, body)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"the line is not a result: {type(error).__name__}") from error
    raise ValueError("the line is of an unknown type")


def _not_run(custom_id: str, error: Mapping[str, Any]) -> Result:
    code = str(error["code"])
    return Result(
        custom_id=custom_id,
        outcome=_NEVER_RUN.get(code, Outcome.ERRORED),
        error_code=code,
        error_message=brief(error.get("message")),
        retryable=code in _RETRYABLE_CODES,
    )


def _failed(custom_id: str, status: int, error: Any) -> Result:
    inner = error if isinstance(error, Mapping) else {"message": error}
    code = str(inner.get("code") or inner.get("type") or status)
    transient = status in _RETRYABLE_STATUS or status >= 500 or code in _RETRYABLE_CODES
    return Result(
        custom_id=custom_id,
        # Azure's filter answers with an error where others answer with a finish reason.
        outcome=Outcome.REFUSED if code == "content_filter" else Outcome.ERRORED,
        error_code=code,
        error_message=brief(inner.get("message")),
        retryable=transient and code not in _NO_MONEY,
    )


def _decode_chat(custom_id: str, body: Mapping[str, Any]) -> Result:
    choice = body["choices"][0]
    message, reason = choice["message"], choice.get("finish_reason")
    text, refusal = message.get("content") or "", message.get("refusal")
    outcome, code = Outcome.SUCCEEDED, None
    if refusal or reason == "content_filter":
        outcome, code = Outcome.REFUSED, "refusal" if refusal else reason
    elif reason == "length":
        outcome, code = Outcome.TRUNCATED, reason
    elif not text.strip():
        outcome, code = Outcome.INVALID, "empty"
    elif reason not in _WHOLE:
        outcome, code = Outcome.INVALID, reason or "unfinished"
    return Result(
        custom_id=custom_id,
        outcome=outcome,
        text=text or refusal or None,
        usage=_usage(body, *_OLD_TOKENS),
        model=body.get("model"),
        finish_reason=reason,
        error_code=code,
        is_flex=body.get("service_tier") == "flex",
    )


def _response(custom_id: str, body: Mapping[str, Any]) -> Result:
    parts = [part for item in body["output"] if item["type"] == "message" for part in item["content"]]
    text = "".join(part["text"] for part in parts if part["type"] == "output_text")
    refusal = "".join(part["refusal"] for part in parts if part["type"] == "refusal")
    status = body.get("status")
    reason = (body.get("incomplete_details") or {}).get("reason") or status
    error = body.get("error") or {}
    outcome, code = Outcome.SUCCEEDED, None
    if refusal or reason == "content_filter":
        outcome, code = Outcome.REFUSED, "refusal" if refusal else reason
    elif status == "incomplete":
        outcome, code = Outcome.TRUNCATED, reason
    elif status != "completed":
        outcome, code = Outcome.ERRORED, error.get("code") or status or "unfinished"
    elif not text.strip():
        outcome, code = Outcome.INVALID, "empty"
    return Result(
        custom_id=custom_id,
        outcome=outcome,
        text=text or refusal or None,
        usage=_usage(body, *_TOKENS),
        model=body.get("model"),
        finish_reason=reason,
        error_code=code,
        is_flex=body.get("service_tier") == "flex",
        error_message=brief(error.get("message")),
        retryable=outcome is Outcome.ERRORED and code in _RETRYABLE_CODES,
    )


def _embedding(custom_id: str, body: Mapping[str, Any]) -> Result:
    vector = body["data"][0]["embedding"]
    return Result(
        custom_id=custom_id,
        outcome=Outcome.SUCCEEDED if vector else Outcome.INVALID,
        text=orjson.dumps(vector).decode() if vector else None,
        usage=_usage(body, *_OLD_TOKENS),
        model=body.get("model"),
        error_code=None if vector else "empty",
    )


def _usage(body: Mapping[str, Any], taken: str, taken_parts: str, given: str, given_parts: str) -> Usage:
    usage = part_of(body, "usage")
    inputs, outputs = part_of(usage, taken_parts), part_of(usage, given_parts)
    return Usage(
        tokens(usage, taken),
        tokens(inputs, "cached_tokens"),
        tokens(inputs, "cache_write_tokens"),
        tokens(usage, given),
        tokens(outputs, "reasoning_tokens"),
    )
