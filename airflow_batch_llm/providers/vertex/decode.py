"""One line of a batch job's output in our vocabulary.

Rows come back in any order, and a failed row does not fail the job: it says so in its `status`, or by what it lacks.
"""

import re
from collections.abc import Mapping
from typing import Any

from airflow_batch_llm.core.model import Outcome, Result, Usage
from airflow_batch_llm.providers.lines import brief, parse_line, part_of, tokens
from airflow_batch_llm.providers.vertex.encode import ID_LABEL

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


def decode(line: bytes) -> Result:
    """One output line. Raises `ValueError` for a line that is not a result."""
    row = parse_line(line)
    try:
        return _result(row)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError("the line is not shaped like an answer of Gemini") from error


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
        usage=_usage(part_of(response, "usageMetadata")),
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
    thought = tokens(usage, "thoughtsTokenCount")
    return Usage(
        input_tokens=tokens(usage, "promptTokenCount") + tokens(usage, "toolUsePromptTokenCount"),
        cached_tokens=tokens(usage, "cachedContentTokenCount"),
        # Vertex counts thoughts beside the candidates; both are billed as output.
        output_tokens=tokens(usage, "candidatesTokenCount") + thought,
        reasoning_tokens=thought,
    )
