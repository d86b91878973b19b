"""A result line of Anthropic's in our vocabulary.

A message that was cut off, refused or left empty "succeeded" for the API and was paid for; it is no answer to a row.
"""

from collections.abc import Mapping
from typing import Any

from airflow_batch_llm.core.model import Outcome, Result, Usage
from airflow_batch_llm.providers.lines import brief, parse_line, part_of, tokens

# A row's error that another batch may not meet.
_RETRYABLE = frozenset({"api_error", "overloaded_error", "timeout_error", "rate_limit_error"})

_WHOLE = frozenset({"end_turn", "stop_sequence"})
_CUT_OFF = frozenset({"max_tokens", "model_context_window_exceeded", "pause_turn"})


def decode(line: bytes) -> Result:
    """The result of one line; `ValueError` if it is none."""
    try:
        row = parse_line(line)
        custom_id, result = str(row["custom_id"]), row["result"]
        match result["type"]:
            case "succeeded":
                return _answered(custom_id, result["message"])
            case "errored":
                return _errored(custom_id, result["error"])
            case "expired":
                return Result(custom_id=custom_id, outcome=Outcome.EXPIRED, error_code="expired")
            case "canceled":
                return Result(custom_id=custom_id, outcome=Outcome.CANCELED, error_code="canceled")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the line is not a result: {type(error).__name__}") from error
    raise ValueError("the line is of an unknown type")


def _answered(custom_id: str, message: Mapping[str, Any]) -> Result:
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
    # The outer type is always "error"; what went wrong is inside.
    inner = error["error"]
    return Result(
        custom_id=custom_id,
        outcome=Outcome.ERRORED,
        error_code=inner["type"],
        error_message=brief(inner.get("message")),
        retryable=inner["type"] in _RETRYABLE,
    )


def _usage(usage: Mapping[str, Any]) -> Usage:
    # `input_tokens` is only what neither came from a cache nor went into one.
    cached = tokens(usage, "cache_read_input_tokens")
    written = tokens(usage, "cache_creation_input_tokens")
    return Usage(
        input_tokens=tokens(usage, "input_tokens") + cached + written,
        cached_tokens=cached,
        cache_write_tokens=written,
        output_tokens=tokens(usage, "output_tokens"),
        reasoning_tokens=tokens(part_of(usage, "output_tokens_details"), "thinking_tokens"),
    )
