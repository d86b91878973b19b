"""One request to Gemini as a line of a batch job's input, and one line of its output in our vocabulary.

The id travels twice, beside `request` and in `request.labels`: the first echo is not documented, the second is
reformatted by nobody. Rows come back in any order and a failed row does not fail the job.
"""

import re
from collections.abc import Mapping
from typing import Any

from airflow_batch_llm.core.model import Call, Outcome, Result, Usage
from airflow_batch_llm.core.request import CUSTOM_ID, PROMPT, LineTemplate
from airflow_batch_llm.errors import InputError, OutputTypeError
from airflow_batch_llm.providers.lines import brief, parse_line
from airflow_batch_llm.providers.vertex.importer import violations
from airflow_batch_llm.providers.vertex.schema import response_schema

ID_LABEL = "airflow_batch_llm_id"

# What this package writes into a request, and the argument that says it instead.
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

_STATUS_CODE = re.compile(r'"code":\s*(\d{3})|\b([45]\d\d)\b')
_STATUS_NAME = re.compile(r'"status":\s*"([A-Z_]+)"|\b([A-Z]+(?:_[A-Z]+)+|ABORTED|INTERNAL|UNAVAILABLE)\b')
_TRANSIENT_NAMES = frozenset(
    {"RESOURCE_EXHAUSTED", "UNAVAILABLE", "INTERNAL", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED"}
)


def encode(call: Call) -> LineTemplate:
    """The request line of a call. Raises `InputError` for what the importer or the model would refuse."""
    if call.endpoint is not None:
        raise InputError(f"Vertex has one endpoint for batches; leave out endpoint={call.endpoint!r}.")
    request = generate_content(call, PROMPT)
    request["labels"] = {**request.get("labels", {}), ID_LABEL: CUSTOM_ID}
    line = {"request": request, "custom_id": CUSTOM_ID}
    for path, reason in violations(line):
        where = path.removeprefix("request.")
        in_schema = where.startswith("generationConfig.responseSchema") and call.schema is not None
        kind = OutputTypeError if in_schema else InputError
        raise kind(f"Vertex cannot import a request with {where!r}: {reason}.")
    return LineTemplate.of(line)


def generate_content(call: Call, prompt: str) -> dict[str, Any]:
    """The `GenerateContentRequest` of a call with this prompt."""
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
        if name in _GENERATION_WORDS or name.partition("_")[0] in ("generation", "max", "top"):
            raise InputError(f"request_params: {name!r} belongs below 'generationConfig', in camelCase.")
        _refuse_managed(name, _MANAGED)
    generation = call.params.get("generationConfig", {})
    if not isinstance(generation, Mapping):
        raise InputError("request_params: 'generationConfig' must be a mapping.")
    managed = _MANAGED_GENERATION if call.max_tokens is not None else {"candidateCount": "nothing"}
    if call.schema is not None:
        managed = managed | _MANAGED_BY_SCHEMA
    for name in generation:
        _refuse_managed(name, managed)
    labels = call.params.get("labels", {})
    if not isinstance(labels, Mapping) or ID_LABEL in labels:
        raise InputError(
            f"request_params: 'labels' must be a mapping without {ID_LABEL!r}, which names the row."
        )


def decode(line: bytes) -> Result:
    """One output line. Raises `ValueError` for a line that is not a result."""
    row = parse_line(line)
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
    raise ValueError("the line bears no custom_id")


def _failed(custom_id: str, status: str) -> Result:
    """A row that Vertex reports as failed: its status is prose around a JSON error, when there is one."""
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
        usage=_usage(response.get("usageMetadata") or {}),
        model=response.get("modelVersion"),
        finish_reason=reason,
        error_code=code,
        error_message=_explanation(response, candidates[0]) if code else None,
    )


def _outcome(reason: str | None, blocked: str | None, text: str) -> tuple[Outcome, str | None]:
    """The outcome and, where it is not a success, the vendor's word for why. Only STOP is a whole answer."""
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
    thought = int(usage.get("thoughtsTokenCount") or 0)
    return Usage(
        input_tokens=int(usage.get("promptTokenCount") or 0) + int(usage.get("toolUsePromptTokenCount") or 0),
        cached_tokens=int(usage.get("cachedContentTokenCount") or 0),
        # Vertex counts thoughts beside the candidates; both are billed as output.
        output_tokens=int(usage.get("candidatesTokenCount") or 0) + thought,
        reasoning_tokens=thought,
    )


def _refuse_managed(name: str, managed: Mapping[str, str]) -> None:
    if name in managed:
        raise InputError(f"request_params: {name!r} is set by this package; use {managed[name]}.")
