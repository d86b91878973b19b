from typing import Any

import pytest
from orjson import dumps

from airflow_batch_llm.core.model import Outcome, Result, Usage
from airflow_batch_llm.providers.anthropic.lines import decode


def line(**result: Any) -> bytes:
    return dumps({"custom_id": "bt1-0001-000001", "result": result})


def message(
    *blocks: dict[str, Any], stop_reason: str | None = "end_turn", usage: dict[str, Any] | None = None
) -> bytes:
    return line(
        type="succeeded",
        message={
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-haiku-4-5",
            "content": list(blocks),
            "stop_reason": stop_reason,
            "usage": usage or {},
        },
    )


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def test_thoughts_are_skipped_and_blocks_of_text_joined() -> None:
    result = decode(message({"type": "thinking", "thinking": "hm"}, text("one "), text("two")))
    assert result.outcome is Outcome.SUCCEEDED
    assert (result.text, result.model, result.finish_reason) == ("one two", "claude-haiku-4-5", "end_turn")


@pytest.mark.parametrize(
    ("reason", "words", "outcome", "code"),
    [
        ("end_turn", "yes", Outcome.SUCCEEDED, None),
        ("stop_sequence", "yes", Outcome.SUCCEEDED, None),
        ("end_turn", "", Outcome.INVALID, "empty"),
        ("end_turn", " \n", Outcome.INVALID, "empty"),
        ("max_tokens", "half an ans", Outcome.TRUNCATED, "max_tokens"),
        ("max_tokens", "", Outcome.TRUNCATED, "max_tokens"),  # all of them were thought
        ("model_context_window_exceeded", "half", Outcome.TRUNCATED, "model_context_window_exceeded"),
        ("pause_turn", "not yet", Outcome.TRUNCATED, "pause_turn"),
        ("refusal", "I cannot", Outcome.REFUSED, "refusal"),
        ("tool_use", "let me look", Outcome.INVALID, "tool_use"),
        ("a_reason_of_tomorrow", "words", Outcome.INVALID, "a_reason_of_tomorrow"),
        (None, "words", Outcome.INVALID, "unfinished"),
    ],
)
def test_only_a_whole_answer_succeeds(
    reason: str | None, words: str, outcome: Outcome, code: str | None
) -> None:
    result = decode(message(text(words), stop_reason=reason))
    assert (result.outcome, result.error_code, result.text) == (outcome, code, words or None)


def test_usage_counts_cached_tokens_as_part_of_the_input() -> None:
    usage = {
        "input_tokens": 10,
        "cache_creation_input_tokens": 200,
        "cache_read_input_tokens": 3000,
        "output_tokens": 50,
        "output_tokens_details": {"thinking_tokens": 40},
    }
    assert decode(message(text("x"), usage=usage)).usage == Usage(
        input_tokens=3210, cached_tokens=3000, cache_write_tokens=200, output_tokens=50, reasoning_tokens=40
    )


def test_usage_of_an_older_model_has_fewer_fields() -> None:
    usage = {"input_tokens": 10, "cache_read_input_tokens": None, "output_tokens": 5}
    assert decode(message(text("x"), usage=usage)).usage == Usage(input_tokens=10, output_tokens=5)


@pytest.mark.parametrize(
    ("code", "retryable"),
    [
        ("api_error", True),
        ("overloaded_error", True),
        ("timeout_error", True),
        ("rate_limit_error", True),
        ("invalid_request_error", False),
        ("not_found_error", False),
        ("request_too_large", False),
    ],
)
def test_the_code_of_an_error_is_the_inner_one(code: str, retryable: bool) -> None:
    error = {"type": "error", "error": {"type": code, "message": "m" * 900}, "request_id": None}
    result = decode(line(type="errored", error=error))
    assert result == Result(
        custom_id="bt1-0001-000001",
        outcome=Outcome.ERRORED,
        error_code=code,
        error_message="m" * 500,
        retryable=retryable,
    )


@pytest.mark.parametrize(("kind", "outcome"), [("expired", Outcome.EXPIRED), ("canceled", Outcome.CANCELED)])
def test_a_row_that_never_ran_says_why(kind: str, outcome: Outcome) -> None:
    assert decode(line(type=kind)).outcome is outcome


def test_a_lone_surrogate_in_an_answer_costs_one_character_not_the_row() -> None:
    raw = message(text("MARK")).replace(b"MARK", rb"a\ud800b")
    assert decode(raw).text == "a\ufffdb"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"not json",
        b"[]",
        b'"text"',
        b'{"custom_id": "a"}',
        b'{"result": {"type": "expired"}}',
        b'{"custom_id": "a", "result": {"type": "unheard_of"}}',
        b'{"custom_id": "a", "result": {"type": "succeeded"}}',
        b'{"custom_id": "a", "result": {"type": "succeeded", "message": {"content": [7]}}}',
        b'{"custom_id": "a", "result": {"type": "errored", "error": null}}',
        b'{"custom_id": "a", "result": {"type": "succ',
    ],
)
def test_a_line_that_is_no_result_is_a_value_error(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        decode(raw)
