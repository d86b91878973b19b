"""Encode one call to Gemini or Claude as a line of a batch job's input, by the rules of Vertex's importer."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from math import ceil
from typing import Any, NamedTuple

import orjson

from airflow_batch_llm.core.attachment import PDF, Attachment, AttachmentRules, Content, referred
from airflow_batch_llm.core.model import Call, Outcome, Result, ResultForm, Usage
from airflow_batch_llm.core.request import CUSTOM_ID, PROMPT, LineTemplate
from airflow_batch_llm.errors import InputError, OutputTypeError, ProviderError
from airflow_batch_llm.providers.anthropic import lines as anthropic
from airflow_batch_llm.providers.failures import brief
from airflow_batch_llm.providers.incoming import parse_line, part_of, tokens
from airflow_batch_llm.providers.vertex.jobs import is_claude
from airflow_batch_llm.providers.vertex.schema import response_schema

_COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,299}")

_MAX_DEPTH = 15


class Violation(NamedTuple):
    """The place in a line that breaks a rule, and the rule."""

    path: str
    reason: str


def violations(line: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield the faults for which the importer would fail the job, in the order of the line."""
    yield from _Importer().column("", line, depth=1)


class _Importer:
    """A walk over one line that remembers the type of each path."""

    def __init__(self) -> None:
        self._kinds: dict[str, str] = {}

    def column(self, path: str, value: object, depth: int) -> Iterator[Violation]:
        kind = _kind(value)
        if kind == "null":
            yield Violation(path, "it is null; leave it out")
            return
        known = self._kinds.setdefault(path, kind)
        if known != kind:
            yield Violation(path, f"it is {known} in one place and {kind} in another")
        if isinstance(value, Mapping):
            yield from self._record(path, value, depth)
        elif isinstance(value, list):
            yield from self._elements(path, value, depth)

    def _record(self, path: str, value: Mapping[str, Any], depth: int) -> Iterator[Violation]:
        if not value:
            yield Violation(path, "it is an empty object; give it at least one key")
        if depth > _MAX_DEPTH:
            yield Violation(path, f"it lies deeper than {_MAX_DEPTH} levels; flatten it")
            return
        folded: set[str] = set()
        for key, inner in value.items():
            below = f"{path}.{key}" if path else key
            if not _COLUMN.fullmatch(key):
                yield Violation(below, "its name may hold only letters, digits and underscores")
            if key.lower() in folded:
                yield Violation(below, "its name differs from another only in upper and lower case")
            folded.add(key.lower())
            yield from self.column(below, inner, depth + 1)

    def _elements(self, path: str, values: list[Any], depth: int) -> Iterator[Violation]:
        inside = f"{path}[]"
        for value in values:
            if isinstance(value, list):
                yield Violation(path, "it is a list of lists")
            else:
                yield from self.column(inside, value, depth)


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "an object"


ID_LABEL = "airflow_batch_llm_id"

#: The headers that ask Flex PayGo and nothing else, and the seconds that Google waits for its answer.
FLEX: Mapping[str, str] = {
    "X-Vertex-AI-LLM-Request-Type": "shared",
    "X-Vertex-AI-LLM-Shared-Request-Type": "flex",
}
FLEX_TIMEOUT = 1200.0

_FLEX_MODELS = re.compile(r"gemini-3(\.\d+)?-(flash|flash-lite|pro)-preview")
_FLEX_TRAFFIC = "ON_DEMAND_FLEX"

# The fields that this package writes into a request, and the argument that sets each.
_MANAGED = {
    "contents": "prompt",
    "systemInstruction": "system_prompt",
    "cachedContent": "nothing: batch jobs read no explicit cache",
}
_MANAGED_GENERATION = {
    "maxOutputTokens": "max_tokens",
    "candidateCount": "nothing: one answer is read per row",
}
_MANAGED_BY_SCHEMA = {
    "responseSchema": "output_type",
    "responseJsonSchema": "output_type",
    "responseMimeType": "output_type",
}
_GENERATION_WORDS = {
    *_MANAGED_GENERATION,
    *_MANAGED_BY_SCHEMA,
    "frequencyPenalty",
    "logprobs",
    "mediaResolution",
    "presencePenalty",
    "responseLogprobs",
    "responseModalities",
    "seed",
    "stopSequences",
    "temperature",
    "thinkingConfig",
    "topK",
    "topP",
}


def encode(call: Call) -> LineTemplate:
    """Return the request line of a call. Raises `InputError` for a call that the importer or the model would refuse."""
    if call.endpoint is not None:
        raise InputError(f"Vertex has one endpoint for batches; leave out endpoint={call.endpoint!r}.")
    if call.vector:
        raise OutputTypeError(
            "Embeddings are not asked of Vertex here. Ask a model of OpenAI at endpoint='/v1/embeddings'."
        )
    if is_claude(call.model):
        request = _messages(call)
    else:
        request = generate_content(call, PROMPT)
        if call.attachments:
            request["contents"] = [{"role": "user", "parts": PROMPT}]
        request["labels"] = {**request.get("labels", {}), ID_LABEL: CUSTOM_ID}
    line = {"request": request, "custom_id": CUSTOM_ID}
    for path, reason in violations(line):
        where = path.removeprefix("request.")
        in_schema = where.startswith(_OF_THE_SCHEMA) and call.schema is not None
        kind = OutputTypeError if in_schema else InputError
        raise kind(f"Vertex cannot import a request with {where!r}: {reason}.")
    return LineTemplate.of(line, CONTENT if call.attachments else None)


#: Where a request holds the schema of its answer.
_OF_THE_SCHEMA = ("generationConfig.responseSchema", "output_config.format.schema")


def _messages(call: Call) -> dict[str, Any]:
    """Return the body of a message to Claude. It names the version of Google's API, and leaves the model to the job."""
    if call.attachments:
        raise InputError(
            "Images and PDFs are not sent to Claude on Vertex. Ask a Gemini model, or Claude at Anthropic."
        )
    body = anthropic.message_body(call, PROMPT)
    del body["model"]
    return {"anthropic_version": "vertex-2023-10-16", **body}


def _write_parts(text: str, attachments: Sequence[Attachment]) -> object:
    return [*map(_part, attachments), {"text": text}]


def _part(one: Attachment) -> dict[str, Any]:
    if one.sha256 is not None:
        return {"fileData": {"fileUri": one.reference, "mimeType": one.media_type}}
    if one.uri is not None:
        return {"fileData": {"fileUri": one.uri, "mimeType": one.media_type}}
    return {"inlineData": {"mimeType": one.media_type, "data": one.data}}


def _read_parts(parts: Any) -> tuple[str, list[Attachment]]:
    *attached, text = parts
    return text["text"], [_attachment(part) for part in attached]


def _attachment(part: Mapping[str, Any]) -> Attachment:
    if (file := part.get("fileData")) is not None:
        if (uploaded := referred(file["fileUri"])) is not None:
            return uploaded
        return Attachment(file["mimeType"], uri=file["fileUri"])
    return Attachment(part["inlineData"]["mimeType"], data=part["inlineData"]["data"])


CONTENT = Content(_write_parts, _read_parts)

_IMAGES = ("image/png", "image/jpeg", "image/webp", "image/heic", "image/heif")
_MOST_INLINE, _MOST_STORED_IMAGE, _MOST_STORED_PDF = 7_000_000, 30_000_000, 50_000_000
_TILE, _SMALL, _TILE_TOKENS, _MOST_IMAGE_TOKENS = 768, 384, 258, 1120
_PAGE_TOKENS, _USUAL_PAGES = 560, 5
#: Google allows this many pages in each file. A request with more of them is longer than the models can read.
_MOST_PAGES = 1000
_OLDER = re.compile(r"gemini-[12]\b")


def attachment_rules(model: str, *, has_bucket: bool) -> AttachmentRules:
    """Return the attachments that a model takes. Vertex reads them from Cloud Storage itself, and from nowhere else.

    `has_bucket`: requests are staged in a bucket, which takes attachments, too.
    """
    is_older = bool(_OLDER.match(model.rpartition("/")[2]))
    page = _TILE_TOKENS if is_older else _PAGE_TOKENS
    stored = {**dict.fromkeys(_IMAGES, _MOST_STORED_IMAGE), PDF: _MOST_STORED_PDF}
    return AttachmentRules(
        inline=dict.fromkeys((*_IMAGES, PDF), _MOST_INLINE),
        by_uri={"gs": stored},
        uploaded=stored if has_bucket else {},
        most=900,
        most_pages=_MOST_PAGES,
        tokens=partial(_attachment_tokens, page=page, is_tiled=is_older),
        assumption=(
            f"an image is taken to have {_MOST_IMAGE_TOKENS:,} tokens, and a PDF {_USUAL_PAGES} pages of {page} tokens"
        ),
    )


def _attachment_tokens(one: Attachment, *, page: int, is_tiled: bool) -> int:
    """Return the tokens of an attachment. Gemini 3 counts all images alike, and earlier models count tiles."""
    if one.is_pdf:
        return page * (one.pages or _USUAL_PAGES)
    if not is_tiled or not one.is_measured:
        return _MOST_IMAGE_TOKENS
    if max(one.width, one.height) <= _SMALL:
        return _TILE_TOKENS
    return _TILE_TOKENS * ceil(one.width / _TILE) * ceil(one.height / _TILE)


def flex_problem(call: Call, location: str) -> str | None:
    """Say why this call has no Flex PayGo. Returns None if it has it."""
    instead = "Set way='batch' for half the price, or way='now' at the full price."
    if not _FLEX_MODELS.fullmatch(call.model.rpartition("/")[2]):
        return f"This release knows no Flex PayGo of the model {call.model!r}, but of previews of Gemini 3. {instead}"
    if location != "global":
        return f"Flex PayGo has the location 'global' only, and the connection's is {location!r}. {instead}"
    return None


def generate_content(call: Call, prompt: str) -> dict[str, Any]:
    """Return the `GenerateContentRequest` of a call with this prompt."""
    _check_params(call)
    params: dict[str, Any] = dict(call.params)
    request: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": prompt}]}]}
    if call.system_prompt:
        request["systemInstruction"] = {"parts": [{"text": call.system_prompt}]}
    generation = dict(params.pop("generationConfig", {}))
    if call.max_tokens is not None:
        generation["maxOutputTokens"] = call.max_tokens
    if call.schema is not None:
        generation["responseMimeType"] = "application/json"
        generation["responseSchema"] = response_schema(call.schema)
    if generation:
        request["generationConfig"] = generation
    return request | params


def _check_params(call: Call) -> None:
    for name in call.params:
        if name in _GENERATION_WORDS:
            raise InputError(f"extra_body: {name!r} belongs below 'generationConfig'.")
        _refuse_managed(name, _MANAGED)
    generation = call.params.get("generationConfig", {})
    if not isinstance(generation, Mapping):
        raise InputError("extra_body: 'generationConfig' must be a mapping.")
    for name in generation:
        _refuse_managed(name, _MANAGED_GENERATION | (_MANAGED_BY_SCHEMA if call.schema is not None else {}))
    labels = call.params.get("labels", {})
    if not isinstance(labels, Mapping) or ID_LABEL in labels:
        raise InputError(f"extra_body: 'labels' must be a mapping without {ID_LABEL!r}, which names the row.")


def _refuse_managed(name: str, managed: Mapping[str, str]) -> None:
    if "_" in name:
        # Both spellings of one field in one request would fail every row.
        raise InputError(f"extra_body: {name!r} is spelled in camelCase.")
    if name in managed:
        raise InputError(f"extra_body: {name!r} is set by this package; use {managed[name]}.")


#: The most tokens of an answer, by the beginning of a model's name. A model that is not listed has the last number. Vertex
#: refuses one token more of Gemini 1.5 and 2.5 Pro. Its record of a model does not hold the number.
_CAPS = (("gemini-1", 8_192), ("gemini-2.0", 8_192), ("gemini-", 65_535), ("", 8_192))


def answer_cap(model: str) -> int:
    """Return the most tokens of one answer of a model."""
    name = model.rpartition("/")[2]
    if is_claude(model):
        return anthropic.answer_cap(name)
    return next(most for beginning, most in _CAPS if name.startswith(beginning))


_TRUNCATED = frozenset({"MAX_TOKENS"})
_REFUSED = frozenset(
    {
        "SAFETY",
        "RECITATION",
        "BLOCKLIST",
        "PROHIBITED_CONTENT",
        "SPII",
        "LANGUAGE",
        "MODEL_ARMOR",
        "IMAGE_SAFETY",
        "IMAGE_PROHIBITED_CONTENT",
        "IMAGE_RECITATION",
    }
)

#: A whole answer of Gemini, as `_answered` and `_usage` read it.
RESULT_FORM = ResultForm(
    parts="$.candidates[0].content.parts",
    text="$.text",
    thought="$.thought",
    end="$.candidates[0].finishReason",
    whole="STOP",
    model="$.modelVersion",
    usage="$.usageMetadata",
    input_tokens=("promptTokenCount", "toolUsePromptTokenCount"),
    cached_tokens=("cachedContentTokenCount",),
    output_tokens=("candidatesTokenCount", "thoughtsTokenCount"),
    reasoning_tokens=("thoughtsTokenCount",),
    unclear=("$.promptFeedback", "$.type"),
)

_STATUS_CODE = re.compile(r'"code":\s*(\d{3})|\b([45]\d\d)\b')
_STATUS_NAME = re.compile(r'"status":\s*"([A-Z_]+)"|\b([A-Z]+(?:_[A-Z]+)+|ABORTED|INTERNAL|UNAVAILABLE)\b')
_TRANSIENT_NAMES = frozenset(
    {"RESOURCE_EXHAUSTED", "UNAVAILABLE", "INTERNAL", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED"}
)


def decode(line: bytes) -> Result:
    """Return the result of one output line. Raises `ValueError` if it is not a result."""
    row = parse_line(line)
    try:
        return _result(row)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError("the line is not shaped like an answer of its model") from error


def _result(row: Mapping[str, Any]) -> Result:
    custom_id = _custom_id(row)
    response = row.get("response")
    if status := row.get("status"):
        return _failed(custom_id, str(status))
    if not isinstance(response, dict) or not response:
        return Result(
            custom_id=custom_id,
            outcome=Outcome.ERRORED,
            error_code="no_response",
            error_message="Vertex returned the row without a response.",
            retryable=True,
        )
    if response.get("type") == "message":
        return anthropic.decode_message(custom_id, response)
    return _answered(custom_id, response)


def _custom_id(row: Mapping[str, Any]) -> str:
    beside = row.get("custom_id")
    if isinstance(beside, str) and beside:
        return beside
    request = row.get("request")
    labels = request.get("labels") if isinstance(request, dict) else None
    inside = labels.get(ID_LABEL) if isinstance(labels, dict) else None
    if isinstance(inside, str) and inside:
        return inside
    raise ValueError("the line has no custom_id")


def answered_line(asked: Mapping[str, Any], response: Mapping[str, Any]) -> bytes:
    """Return the result line of a request that was answered in real time."""
    return orjson.dumps({"custom_id": asked["custom_id"], "response": response})


def refused_line(asked: Mapping[str, Any], error: ProviderError) -> bytes:
    """Return the result line of a request that Vertex refuses in real time."""
    status = {"error": {"code": error.status, "message": error.detail}}
    return orjson.dumps({"custom_id": asked["custom_id"], "status": orjson.dumps(status).decode()})


def _failed(custom_id: str, status: str) -> Result:
    """Return the result of a failed row. Its status is prose, with a JSON error in it if there is one."""
    found = _STATUS_CODE.search(status)
    code = int(found[1] or found[2]) if found else None
    named = _STATUS_NAME.search(status)
    name = (named[1] or named[2]) if named else None
    return Result(
        custom_id=custom_id,
        outcome=Outcome.ERRORED,
        error_code=name or (str(code) if code else "unknown"),
        error_message=brief(status),
        retryable=name in _TRANSIENT_NAMES if code is None else code in (408, 429) or code >= 500,
    )


def _answered(custom_id: str, response: Mapping[str, Any]) -> Result:
    candidates = response.get("candidates") or [{}]
    reason = candidates[0].get("finishReason")
    text = _text(candidates[0])
    blocked = (response.get("promptFeedback") or {}).get("blockReason")
    outcome, code = _outcome(reason, blocked, text)
    return Result(
        custom_id=custom_id,
        outcome=outcome,
        text=text or None,
        usage=_usage(part_of(response, "usageMetadata")),
        model=response.get("modelVersion"),
        finish_reason=reason,
        error_code=code,
        error_message=_explanation(response, candidates[0]) if code else None,
        is_flex=part_of(response, "usageMetadata").get("trafficType") == _FLEX_TRAFFIC,
    )


def _outcome(reason: str | None, blocked: str | None, text: str) -> tuple[Outcome, str | None]:
    """Return the outcome and, for a failure, the vendor's code. Only STOP is a whole answer."""
    if blocked:
        return Outcome.REFUSED, blocked
    if reason in _REFUSED:
        return Outcome.REFUSED, reason
    if reason in _TRUNCATED:
        return Outcome.TRUNCATED, reason
    if reason != "STOP":
        return Outcome.INVALID, reason or "no_finish_reason"
    return (Outcome.SUCCEEDED, None) if text.strip() else (Outcome.INVALID, "empty")


def _text(candidate: Mapping[str, Any]) -> str:
    parts = (candidate.get("content") or {}).get("parts") or []
    return "".join(part.get("text", "") for part in parts if not part.get("thought"))


def _explanation(response: Mapping[str, Any], candidate: Mapping[str, Any]) -> str | None:
    told = candidate.get("finishMessage") or (response.get("promptFeedback") or {}).get("blockReasonMessage")
    return brief(told)


def _usage(usage: Mapping[str, Any]) -> Usage:
    thought = tokens(usage, "thoughtsTokenCount")
    return Usage(
        input_tokens=tokens(usage, "promptTokenCount") + tokens(usage, "toolUsePromptTokenCount"),
        cached_tokens=tokens(usage, "cachedContentTokenCount"),
        # Vertex counts thoughts apart from the candidates; both are billed as output.
        output_tokens=tokens(usage, "candidatesTokenCount") + thought,
        reasoning_tokens=thought,
    )
