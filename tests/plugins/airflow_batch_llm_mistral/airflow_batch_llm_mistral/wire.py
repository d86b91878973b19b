"""A request as a line of Mistral's, a result line in the package's vocabulary, and a job as a status."""

from collections.abc import Mapping
from typing import Any

import orjson

from airflow_batch_llm.core.model import BatchState, BatchStatus, Call, Outcome, Result, Usage
from airflow_batch_llm.core.request import CUSTOM_ID, PROMPT
from airflow_batch_llm.errors import InputError, OutputTypeError
from airflow_batch_llm.providers.failures import brief
from airflow_batch_llm.providers.incoming import count_or_zero, parse_line, part_of, record, text, tokens

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"

_OURS = {"messages": "prompt", "input": "prompt", "model": "model_id", "response_format": "output_type"}
_REFUSED = frozenset({"stream", "n"})
_RETRYABLE = frozenset({408, 409, 429})

_ENDED = frozenset({"SUCCESS", "FAILED", "TIMEOUT_EXCEEDED", "CANCELLED"})
_UNMENTIONED = {"TIMEOUT_EXCEEDED": Outcome.EXPIRED, "CANCELLED": Outcome.CANCELED}


def endpoint_of(call: Call) -> str:
    """The path that the requests of this call go to."""
    endpoint = call.endpoint or (EMBEDDINGS if call.vector else CHAT)
    if endpoint not in (CHAT, EMBEDDINGS):
        raise InputError(f"There is no endpoint {endpoint!r} here. Use {CHAT} or {EMBEDDINGS}.")
    if call.vector != (endpoint == EMBEDDINGS):
        raise OutputTypeError(f"The endpoint {endpoint} does not give the answers of this output_type.")
    return endpoint


def request_line(call: Call) -> dict[str, Any]:
    """The line of this call, with holes for the custom_id and the prompt. The job names the model."""
    for name in call.params:
        if name in _OURS:
            raise InputError(f"extra_body may not hold {name!r}: set it with {_OURS[name]!r}.")
        if name in _REFUSED or (name == "max_tokens" and call.max_tokens is not None):
            raise InputError(f"extra_body may not hold {name!r}: a row of a batch gets one whole answer.")
    body: dict[str, Any]
    if endpoint_of(call) == EMBEDDINGS:
        body = {"input": PROMPT, **call.params}
    else:
        system = [{"role": "system", "content": call.system_prompt}] if call.system_prompt else []
        body = {"messages": [*system, {"role": "user", "content": PROMPT}], **call.params}
        if call.max_tokens is not None:
            body["max_tokens"] = call.max_tokens
        if call.schema is not None:
            schema = {"name": "answer", "schema": dict(call.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return {"custom_id": CUSTOM_ID, "body": body}


def decode(line: bytes) -> Result:
    """The result of one line of either file; `ValueError` if it is none."""
    try:
        row = parse_line(line)
        custom_id, response = str(row["custom_id"]), row.get("response") or {}
        status, body = response.get("status_code", 0), response.get("body") or {}
        if row.get("error") or status != 200:
            return _failed(custom_id, status, row.get("error") or body)
        return _embedding(custom_id, body) if "data" in body else _chat(custom_id, body)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"the line is not a result: {type(error).__name__}") from error


def _failed(custom_id: str, status: int, error: Any) -> Result:
    inner = error if isinstance(error, Mapping) else {"message": error}
    return Result(
        custom_id=custom_id,
        outcome=Outcome.ERRORED,
        error_code=str(inner.get("type") or inner.get("code") or status),
        error_message=brief(inner.get("message")),
        retryable=status in _RETRYABLE or status >= 500,
    )


def _chat(custom_id: str, body: Mapping[str, Any]) -> Result:
    choice = body["choices"][0]
    answer, reason = choice["message"].get("content") or "", choice.get("finish_reason")
    outcome, code = Outcome.SUCCEEDED, None
    if reason in ("length", "model_length"):
        outcome, code = Outcome.TRUNCATED, reason
    elif not answer.strip():
        outcome, code = Outcome.INVALID, "empty"
    elif reason != "stop":
        outcome, code = Outcome.INVALID, reason or "unfinished"
    return Result(
        custom_id=custom_id,
        outcome=outcome,
        text=answer or None,
        usage=_usage(body),
        model=body.get("model"),
        finish_reason=reason,
        error_code=code,
    )


def _embedding(custom_id: str, body: Mapping[str, Any]) -> Result:
    vector = body["data"][0]["embedding"]
    return Result(
        custom_id=custom_id,
        outcome=Outcome.SUCCEEDED if vector else Outcome.INVALID,
        text=orjson.dumps(vector).decode() if vector else None,
        usage=_usage(body),
        model=body.get("model"),
        error_code=None if vector else "empty",
    )


def _usage(body: Mapping[str, Any]) -> Usage:
    usage = part_of(body, "usage")
    cached = tokens(part_of(usage, "prompt_tokens_details"), "cached_tokens")
    return Usage(tokens(usage, "prompt_tokens"), cached, 0, tokens(usage, "completion_tokens"), 0)


def status_of(job: Mapping[str, Any]) -> BatchStatus:
    """A job of theirs in the package's words. Raises for anything that is not a job."""
    text(job["id"])
    state = text(job["status"])
    total, finished = (
        count_or_zero(record(job).get(name)) for name in ("total_requests", "completed_requests")
    )
    if state == "FAILED" and not finished and not (job.get("output_file") or job.get("error_file")):
        return BatchStatus(state=BatchState.REJECTED, total=total or None, finished=0, reason="FAILED")
    return BatchStatus(
        state=BatchState.ENDED if state in _ENDED else BatchState.RUNNING,
        total=total or None,
        finished=finished if total else None,
        unmentioned=_UNMENTIONED.get(state, Outcome.MISSING),
    )
