"""The wire lines of Gemini batches: golden requests, and answers of every kind as outcomes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from airflow_batch_llm.core.model import Call, Outcome, Result, Usage
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.providers.vertex.lines import decode, encode
from tests.golden import check_golden, check_no_other

WIRE = Path(__file__).parents[1] / "wire" / "vertex"

LABEL_SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["bug", "wish"], "type": "string"}},
    "required": ["label"],
    "additionalProperties": False,
}


def line(call: Call) -> bytes:
    return encode(call).line("t1-0001-000007", orjson.dumps('Say "hi"\u2028{{ x }}'))


CALLS = {
    "plain": Call(model="gemini-2.5-flash"),
    "everything": Call(
        model="gemini-2.5-flash",
        system_prompt="You triage.",
        schema=LABEL_SCHEMA,
        max_tokens=50,
        params={
            "generationConfig": {"temperature": 0, "thinkingConfig": {"thinkingBudget": 0}},
            "safetySettings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "OFF"}],
            "labels": {"team": "support"},
        },
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_request_is_encoded_byte_for_byte_as_the_golden_line(name: str) -> None:
    check_golden(WIRE / f"{name}.json", line(CALLS[name]) + b"\n")


def test_every_golden_file_belongs_to_a_call() -> None:
    check_no_other(WIRE, CALLS)


def test_without_a_token_limit_there_is_no_generation_config_to_be_empty() -> None:
    assert b"generationConfig" not in line(Call(model="gemini-2.5-flash", max_tokens=None))


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"contents": []}, "'contents' is set by this package; use prompt"),
        ({"systemInstruction": {"parts": []}}, "use system_prompt"),
        ({"cachedContent": "x"}, "no explicit cache"),
        (
            {"generationConfig": {"maxOutputTokens": 5}},
            "'maxOutputTokens' is set by this package; use max_tokens",
        ),
        ({"generationConfig": {"candidateCount": 2}}, "one answer is read per row"),
        ({"generationConfig": {"responseSchema": {"type": "STRING"}}}, "'responseSchema'.*use output_type"),
        ({"labels": {"airflow_batch_llm_id": "x"}}, "names the row"),
        ({"temperature": 0}, "'temperature' belongs below 'generationConfig'"),
        ({"generation_config": {"temperature": 0}}, "'generation_config' is spelled in camelCase"),
        ({"generationConfig": {"top_p": 0.5}}, "'top_p' is spelled in camelCase"),
        ({"generationConfig": 3}, "must be a mapping"),
        ({"tools": [{"googleSearch": {}}]}, r"'tools\[\]\.googleSearch': it is an empty object"),
        ({"generationConfig": {}}, None),
        ({"generationConfig": {"seed": None}}, "'generationConfig.seed': it is null"),
        ({"toolConfig": {"a b": 1}}, "letters, digits and underscores"),
        ({"safetySettings": [{"a": 1}, {"a": "x"}]}, "a number in one place and a string in another"),
        ({"toolConfig": {"a": [[1]]}}, "a list of lists"),
        ({"toolConfig": {"Mode": 1, "mode": 1}}, "upper and lower case"),
    ],
)
def test_params_that_would_fail_the_job_are_refused_by_name(
    params: Mapping[str, Any], reason: str | None
) -> None:
    call = Call(model="gemini-2.5-flash", schema=LABEL_SCHEMA, params=params)
    if reason is None:
        assert encode(call)
        return
    with pytest.raises(InputError, match=reason):
        encode(call)


def test_an_endpoint_is_refused() -> None:
    with pytest.raises(InputError, match="endpoint"):
        encode(Call(model="gemini-2.5-flash", endpoint="/v1/responses"))


USAGE = {
    "promptTokenCount": 30,
    "cachedContentTokenCount": 10,
    "candidatesTokenCount": 5,
    "thoughtsTokenCount": 7,
    "toolUsePromptTokenCount": 2,
    "totalTokenCount": 44,
}
COUNTED = Usage(input_tokens=32, cached_tokens=10, output_tokens=12, reasoning_tokens=7)


def row(custom_id: str | None = "t1-0001-000007", **fields: Any) -> bytes:
    beside = {} if custom_id is None else {"custom_id": custom_id}
    return orjson.dumps({"status": "", "request": {}, **fields, **beside})


def response(finish: str | None, *parts: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": list(parts), "role": "model"}}
    if finish:
        candidate["finishReason"] = finish
    return {"candidates": [candidate], "modelVersion": "gemini-2.5-flash", "usageMetadata": USAGE, **fields}


def test_an_answer_is_text_without_thoughts_and_usage_with_them() -> None:
    told = response("STOP", {"text": "let me think", "thought": True}, {"text": "o\u2028"}, {"text": "k"})
    assert decode(row(response=told)) == Result(
        custom_id="t1-0001-000007",
        outcome=Outcome.SUCCEEDED,
        text="o\u2028k",
        usage=COUNTED,
        model="gemini-2.5-flash",
        finish_reason="STOP",
    )


@pytest.mark.parametrize(
    ("told", "outcome", "code"),
    [
        (response("MAX_TOKENS", {"text": "half"}), Outcome.TRUNCATED, "MAX_TOKENS"),
        (response("MAX_TOKENS"), Outcome.TRUNCATED, "MAX_TOKENS"),
        (response("SAFETY"), Outcome.REFUSED, "SAFETY"),
        (response("RECITATION", {"text": "x"}), Outcome.REFUSED, "RECITATION"),
        (response("PROHIBITED_CONTENT"), Outcome.REFUSED, "PROHIBITED_CONTENT"),
        (
            {"promptFeedback": {"blockReason": "BLOCKLIST"}, "usageMetadata": USAGE},
            Outcome.REFUSED,
            "BLOCKLIST",
        ),
        (response("STOP"), Outcome.INVALID, "empty"),
        (response("STOP", {"text": " \n"}), Outcome.INVALID, "empty"),
        (response("MALFORMED_FUNCTION_CALL"), Outcome.INVALID, "MALFORMED_FUNCTION_CALL"),
        (response(None, {"text": "x"}), Outcome.INVALID, "no_finish_reason"),
        ({"usageMetadata": USAGE}, Outcome.INVALID, "no_finish_reason"),
        (response("SOMETHING_NEW", {"text": "x"}), Outcome.INVALID, "SOMETHING_NEW"),
    ],
)
def test_only_a_whole_answer_is_a_success_and_all_are_paid(
    told: Mapping[str, Any], outcome: Outcome, code: str
) -> None:
    result = decode(row(response=told))
    assert (result.outcome, result.error_code, result.usage) == (outcome, code, COUNTED)


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [
        (
            'Bad Request: {"error": {"code": 400, "message": "no", "status": "INVALID_ARGUMENT"}}',
            "INVALID_ARGUMENT",
            False,
        ),
        ('{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}', "RESOURCE_EXHAUSTED", True),
        ('{"error": {"code": 503, "message": "try 400 times"}}', "503", True),
        ("Internal error encountered (500)", "500", True),
        ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", True),
        ("something odd", "unknown", False),
    ],
)
def test_a_failed_row_tells_its_code_and_whether_to_try_again(
    status: str, code: str, retryable: bool
) -> None:
    result = decode(row(status=status, response={}))
    assert result.outcome is Outcome.ERRORED
    assert (result.error_code, result.error_message, result.retryable) == (code, status, retryable)


def test_a_row_without_a_response_may_be_tried_again() -> None:
    result = decode(row())
    assert (result.outcome, result.error_code, result.retryable) == (Outcome.ERRORED, "no_response", True)


def test_the_id_is_read_from_the_labels_where_the_sibling_is_not_echoed() -> None:
    request = {"labels": {"airflow_batch_llm_id": "t1-0001-000009"}}
    assert (
        decode(row(None, request=request, response=response("STOP", {"text": "x"}))).custom_id
        == "t1-0001-000009"
    )


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"[]",
        b'{"custom_id": "t1-0001-000',
        b'{"response": {}}',
        b'{"custom_id": 7, "status": ""}',
        b'{"custom_id": "a", "response": {"candidates": "x"}}',
        b'{"custom_id": "a", "response": {"candidates": [{"content": 3}]}}',
        b'{"custom_id": "a", "response": {"candidates": [{"content": {"parts": [{"text": 1}]}}]}}',
        b'{"custom_id": "a", "response": {"usageMetadata": {"promptTokenCount": "x"}}}',
    ],
)
def test_a_line_that_is_not_a_result_is_a_value_error(bad: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(bad)


def test_embeddings_are_refused() -> None:
    with pytest.raises(InputError, match="Embeddings are not asked of Vertex"):
        encode(Call(model="gemini-2.5-flash", vector=True))
