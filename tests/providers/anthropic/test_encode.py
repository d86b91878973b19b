from pathlib import Path
from typing import Any

import pytest
from orjson import loads

from airflow_batch_llm.core.model import Call
from airflow_batch_llm.core.request import LineTemplate
from airflow_batch_llm.errors import InputError, OutputTypeError
from airflow_batch_llm.providers.anthropic.lines import (
    counted_body,
    message_body,
    message_line,
    native_schema,
    refuse_sampling,
)
from tests.golden import check_golden, check_no_other

WIRE = Path(__file__).parents[1] / "wire" / "anthropic"

LABEL: dict[str, Any] = {
    "type": "object",
    "properties": {"label": {"enum": ["a", "b"]}, "score": {"type": "integer", "minimum": 1, "maximum": 5}},
    "required": ["label", "score"],
}

CALLS = {
    "text": Call(model="claude-haiku-4-5"),
    "system_cached": Call(
        model="claude-haiku-4-5", system_prompt="Be “brief”.", cache_system_prompt=True, max_tokens=99
    ),
    "schema": Call(
        model="claude-opus-5-5",
        system_prompt="Label it.",
        schema=LABEL,
        params={"output_config": {"effort": "low"}, "thinking": {"type": "adaptive"}},
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_request_is_encoded_byte_for_byte_as_the_golden_line(name: str) -> None:
    line = LineTemplate.of(message_line(CALLS[name])).line(
        "bt1-0001-000007", '"say \\"hi\\" \u2028"'.encode()
    )
    check_golden(WIRE / f"{name}.json", line + b"\n")


def test_only_what_counting_takes_is_counted() -> None:
    call = Call(model="m", system_prompt="s", schema=LABEL, params={"stop_sequences": ["x"], "metadata": {}})
    assert set(counted_body(call, "hello")) == {"model", "system", "messages", "output_config"}


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"messages": []}, "'messages'"),
        ({"system": "x"}, "'system_prompt'"),
        ({"model": "x"}, "'model_id'"),
        ({"max_tokens": 5}, "'max_tokens'"),
        ({"stream": True}, "'stream'"),
        ({"speed": "fast"}, "'speed'"),
        ({"store": True}, "'store'"),
        ({"cache_hint": {}}, "'cache_hint'"),
        ({"output_format": {}}, "'output_type'"),
    ],
)
def test_a_parameter_that_is_ours_or_not_for_batches_is_refused_by_name(
    params: dict[str, object], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        message_body(Call(model="m", params=params), "hello")


def test_the_format_of_the_answer_is_set_in_one_place_only() -> None:
    call = Call(model="m", schema=LABEL, params={"output_config": {"format": {}}})
    with pytest.raises(InputError, match=r"output_config\.format"):
        message_body(call, "hello")


@pytest.mark.parametrize("max_tokens", [None, 0, -1])
def test_a_message_needs_a_limit_of_tokens(max_tokens: int | None) -> None:
    with pytest.raises(InputError, match="max_tokens"):
        message_body(Call(model="m", max_tokens=max_tokens), "hello")


def test_sampling_parameters_are_refused_by_name_from_the_version_that_dropped_them() -> None:
    call = Call(model="m", params={"temperature": 0.0, "top_k": 4})
    with pytest.raises(InputError, match="'temperature', 'top_k'"):
        refuse_sampling(call, "2026-10-21")
    refuse_sampling(call, "2023-06-01")
    refuse_sampling(Call(model="m"), "2026-10-21")


def test_what_the_format_cannot_say_is_told_in_the_description() -> None:
    native = native_schema(
        {
            "type": "object",
            "title": "Answer",
            "properties": {
                "n": {"type": "integer", "minimum": 1, "description": "a number"},
                "when": {"type": "string", "format": "date"},
                "code": {"type": "string", "format": "odd", "pattern": "^x"},
                "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 3},
                "either": {"oneOf": [{"type": "string"}, {"type": "null"}]},
                "fixed": {"const": "x", "type": "string"},
            },
            "required": ["n"],
        }
    )
    assert native == {
        "type": "object",
        "title": "Answer",
        "properties": {
            "n": {"type": "integer", "description": 'a number\n\n{"minimum": 1}'},
            "when": {"type": "string", "format": "date"},
            "code": {"type": "string", "description": '{"format": "odd", "pattern": "^x"}'},
            "tags": {
                "type": "array",
                "items": {"type": "string"},
                "minItems": 1,
                "description": '{"maxItems": 3}',
            },
            "either": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "fixed": {"const": "x"},
        },
        "required": ["n"],
        "additionalProperties": False,
    }


def test_nested_objects_are_closed_and_references_resolved() -> None:
    native = native_schema(
        {
            "$defs": {"P": {"type": "object", "properties": {"x": {"type": "number"}}}},
            "type": "object",
            "properties": {"p": {"$ref": "#/$defs/P"}},
        }
    )
    assert native["properties"]["p"] == {
        "type": "object",
        "properties": {"x": {"type": "number"}},
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "object", "additionalProperties": {"type": "string"}}, "free property names"),
        ({"type": "object", "properties": {"x": {}}}, "any type"),
        ({"type": "object", "properties": {"x": {"not": {"type": "string"}}}}, "'not'"),
        ({"type": "object", "properties": {"x": {"type": "array", "prefixItems": []}}}, "'prefixItems'"),
        ({"type": "object", "properties": {"x": {"$ref": "#"}}}, "contains itself"),
        (
            {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(25)}},
            "at most 24 optional properties",
        ),
        (
            {
                "type": "object",
                "properties": {f"p{n}": {"anyOf": [{"type": "string"}, {"type": "null"}]} for n in range(17)},
                "required": [f"p{n}" for n in range(17)],
            },
            "16 unions",
        ),
    ],
)
def test_a_schema_that_cannot_be_asked_for_is_refused_with_a_reason(
    schema: dict[str, Any], reason: str
) -> None:
    with pytest.raises(OutputTypeError, match=reason):
        native_schema(schema)


def test_the_place_of_a_refused_part_is_named() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"type": "object", "additionalProperties": True}}},
    }
    with pytest.raises(OutputTypeError, match=r"\$\.a\[\]"):
        native_schema(schema)


def test_the_golden_lines_are_json() -> None:
    check_no_other(WIRE, CALLS)
    assert all(loads(path.read_bytes())["params"] for path in WIRE.glob("*.json"))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (Call(model="m", vector=True), "no embeddings"),
        (Call(model="m", endpoint="/v1/responses"), "leave out endpoint='/v1/responses'"),
    ],
)
def test_what_only_another_provider_has_is_refused(call: Call, said: str) -> None:
    with pytest.raises(InputError, match=said):
        message_body(call, "hello")
