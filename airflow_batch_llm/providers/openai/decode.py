"""A result line of OpenAI's in our vocabulary, from the output file or the error file.

A row succeeded only with status 200, no error, and a whole answer: the error file also has rows whose error is null,
and an answer that was cut off or refused bears status 200.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from airflow_batch_llm.core.model import Outcome, Result, Usage
from airflow_batch_llm.providers.lines import brief, parse_line, part_of, tokens

_NEVER_RUN = {"batch_expired": Outcome.EXPIRED, "batch_cancelled": Outcome.CANCELED}
# 0 is what a row gets whose connection to the model was lost.
_RETRYABLE_STATUS = frozenset({0, 408, 409, 429})
_RETRYABLE_CODES = frozenset({"request_timeout", "server_error", "rate_limit_exceeded"})
_NO_MONEY = frozenset({"insufficient_quota", "billing_hard_limit_reached"})

# What an answer's usage calls the tokens of question and answer: in Responses, and in what is older.
_TOKENS = ("input_tokens", "input_tokens_details", "output_tokens", "output_tokens_details")
_OLD_TOKENS = ("prompt_tokens", "prompt_tokens_details", "completion_tokens", "completion_tokens_details")

# Servers of this API have their own words for the end of an answer.
_WHOLE = frozenset({"stop", "eos", "eos_token", "end_turn", "stop_sequence"})


def decode(line: bytes) -> Result:
    """The result of one line; `ValueError` if it is none."""
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
            return _chat(custom_id, body)
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


def _chat(custom_id: str, body: Mapping[str, Any]) -> Result:
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
