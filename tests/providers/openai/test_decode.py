from typing import Any

import pytest
from orjson import dumps, loads

from airflow_batch_llm.core.model import Outcome, Result, Usage
from airflow_batch_llm.providers.openai.lines import decode


def row(body: Any = None, *, status: int = 200, error: Any = None) -> bytes:
    response = None if body is None else {"status_code": status, "request_id": "req_1", "body": body}
    return dumps({"id": "batch_req_1", "custom_id": "bt1-0001-000001", "response": response, "error": error})


def chat(
    content: str | None, reason: str | None = "stop", *, refusal: str | None = None, **body: Any
) -> bytes:
    message = {"role": "assistant", "content": content, "refusal": refusal}
    return row(
        {"model": "gpt", "choices": [{"index": 0, "message": message, "finish_reason": reason}], **body}
    )


def response(*parts: dict[str, Any], status: str = "completed", **body: Any) -> bytes:
    output = [{"type": "reasoning", "summary": []}, {"type": "message", "content": list(parts)}]
    return row({"object": "response", "model": "gpt", "status": status, "output": output, **body})


def words(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text}


@pytest.mark.parametrize(
    ("line", "outcome", "code", "text"),
    [
        (chat("yes"), Outcome.SUCCEEDED, None, "yes"),
        (chat("yes", "eos"), Outcome.SUCCEEDED, None, "yes"),
        (chat("half", "length"), Outcome.TRUNCATED, "length", "half"),
        (chat(None, "length"), Outcome.TRUNCATED, "length", None),
        (chat(None, refusal="I cannot"), Outcome.REFUSED, "refusal", "I cannot"),
        (chat("", "content_filter"), Outcome.REFUSED, "content_filter", None),
        (chat(""), Outcome.INVALID, "empty", None),
        (chat(None, "tool_calls"), Outcome.INVALID, "empty", None),
        (chat("calling", "tool_calls"), Outcome.INVALID, "tool_calls", "calling"),
        (chat("words", None), Outcome.INVALID, "unfinished", "words"),
        (response(words("one "), words("two")), Outcome.SUCCEEDED, None, "one two"),
        (response(), Outcome.INVALID, "empty", None),
        (response({"type": "refusal", "refusal": "no"}), Outcome.REFUSED, "refusal", "no"),
        (
            response(words("half"), status="incomplete", incomplete_details={"reason": "max_output_tokens"}),
            Outcome.TRUNCATED,
            "max_output_tokens",
            "half",
        ),
        (
            response(status="incomplete", incomplete_details={"reason": "content_filter"}),
            Outcome.REFUSED,
            "content_filter",
            None,
        ),
        (response(status="failed", error={"code": "server_error"}), Outcome.ERRORED, "server_error", None),
        (response(status="in_progress"), Outcome.ERRORED, "in_progress", None),
    ],
)
def test_only_a_whole_answer_succeeds(
    line: bytes, outcome: Outcome, code: str | None, text: str | None
) -> None:
    result = decode(line)
    assert (result.outcome, result.error_code, result.text) == (outcome, code, text)


def test_an_embedding_is_the_json_of_its_vector() -> None:
    body = {
        "object": "list",
        "model": "e",
        "data": [{"embedding": [0.5, -1.0]}],
        "usage": {"prompt_tokens": 4},
    }
    result = decode(row(body))
    assert result.outcome is Outcome.SUCCEEDED
    assert loads(result.text or "") == [0.5, -1.0]
    assert result.usage == Usage(input_tokens=4)


def test_usage_of_chat_and_of_responses_is_the_same_usage() -> None:
    of_chat = {
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 10},
        "completion_tokens_details": {"reasoning_tokens": 15},
    }
    of_responses = {
        "input_tokens": 100,
        "output_tokens": 20,
        "input_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 10},
        "output_tokens_details": {"reasoning_tokens": 15},
    }
    expected = Usage(
        input_tokens=100, cached_tokens=60, cache_write_tokens=10, output_tokens=20, reasoning_tokens=15
    )
    assert decode(chat("x", usage=of_chat)).usage == expected
    assert decode(response(words("x"), usage=of_responses)).usage == expected


@pytest.mark.parametrize(
    ("status", "code", "outcome", "retryable"),
    [
        (400, "invalid_value", Outcome.ERRORED, False),
        (404, "model_not_found", Outcome.ERRORED, False),
        (400, "content_filter", Outcome.REFUSED, False),
        (0, "connection_lost", Outcome.ERRORED, True),
        (408, "timeout", Outcome.ERRORED, True),
        (429, "rate_limit_exceeded", Outcome.ERRORED, True),
        (429, "insufficient_quota", Outcome.ERRORED, False),
        (500, "server_error", Outcome.ERRORED, True),
        (503, "overloaded", Outcome.ERRORED, True),
    ],
)
def test_a_row_with_an_error_status_failed_although_its_error_is_null(
    status: int, code: str, outcome: Outcome, retryable: bool
) -> None:
    body = {"error": {"message": "m" * 900, "type": "some_error", "code": code}}
    assert decode(row(body, status=status)) == Result(
        custom_id="bt1-0001-000001",
        outcome=outcome,
        error_code=code,
        error_message="m" * 500,
        retryable=retryable,
    )


def test_an_error_without_a_code_is_known_by_its_type_or_its_status() -> None:
    assert decode(row({"error": {"message": "m", "type": "odd"}}, status=400)).error_code == "odd"
    assert decode(row({"error": "just words"}, status=502)).error_code == "502"


@pytest.mark.parametrize(
    ("code", "outcome", "retryable"),
    [
        ("batch_expired", Outcome.EXPIRED, False),
        ("batch_cancelled", Outcome.CANCELED, False),
        ("request_timeout", Outcome.ERRORED, True),
        ("odd", Outcome.ERRORED, False),
    ],
)
def test_a_row_that_never_ran_says_why(code: str, outcome: Outcome, retryable: bool) -> None:
    result = decode(row(error={"code": code, "message": "why"}))
    assert (result.outcome, result.error_code, result.retryable) == (outcome, code, retryable)


def test_an_answer_beside_an_error_is_no_success() -> None:
    body = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}
    assert decode(row(body, error={"code": "odd", "message": "m"})).outcome is Outcome.ERRORED


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"not json",
        b"[]",
        b'{"custom_id": "a"}',
        b'{"response": null, "error": {"code": "batch_expired"}}',
        b'{"custom_id": "a", "response": {"status_code": 200, "body": {}}, "error": null}',
        b'{"custom_id": "a", "response": {"status_code": 200, "body": {"choices": []}}, "error": null}',
        b'{"custom_id": "a", "response": {"status_code": 200, "body": {"output": [7]}}, "error": null}',
        b'{"custom_id": "a", "response": {"status_code": 200, "body": {"ch',
    ],
)
def test_a_line_that_is_no_result_is_a_value_error(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        decode(raw)
