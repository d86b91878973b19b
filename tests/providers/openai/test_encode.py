from pathlib import Path
from typing import Any

import pytest
from orjson import loads

from airflow_batch_llm.core.model import Caching, Call
from airflow_batch_llm.core.request import LineTemplate
from airflow_batch_llm.errors import InputError
from airflow_batch_llm.providers.openai.lines import (
    CHAT,
    EMBEDDINGS,
    RESPONSES,
    counted_body,
    endpoint_of,
    request_line,
)
from tests.golden import check_golden, check_no_other

WIRE = Path(__file__).parents[1] / "wire" / "openai"

LABEL: dict[str, Any] = {
    "title": "Ticket label",
    "type": "object",
    "properties": {"label": {"enum": ["a", "b"]}, "note": {"type": "string"}},
    "required": ["label"],
}

CALLS = {
    "chat": Call(model="gpt-6-luna", system_prompt="Be “brief”.", params={"seed": 7}),
    "chat_schema": Call(model="gpt-6-luna", schema=LABEL, max_tokens=64),
    "chat_elsewhere": Call(model="llama", max_tokens=64),
    "responses_schema": Call(
        model="gpt-6-luna",
        system_prompt="Label it.",
        schema=LABEL,
        endpoint=RESPONSES,
        params={"text": {"verbosity": "low"}, "reasoning": {"effort": "low"}},
    ),
    "chat_cached": Call(model="gpt-5-mini", system_prompt="Be “brief”.", cache_system_prompt=Caching.ON),
    "chat_marked": Call(model="gpt-6-luna", system_prompt="Be “brief”.", cache_system_prompt=Caching.ON),
    "chat_uncached": Call(model="gpt-5.6-luna", cache_system_prompt=Caching.OFF),
    "responses_cached": Call(
        model="gpt-6-luna", system_prompt="Label it.", endpoint=RESPONSES, cache_system_prompt=Caching.ON
    ),
    "embeddings": Call(model="text-embedding-3-small", endpoint=EMBEDDINGS, params={"dimensions": 256}),
}
HOSTS = {"chat_elsewhere": "gpu.example.com"}


@pytest.mark.parametrize("name", CALLS)
def test_a_request_is_encoded_byte_for_byte_as_the_golden_line(name: str) -> None:
    template = LineTemplate.of(request_line(CALLS[name], HOSTS.get(name)))
    line = template.line("bt1-0001-000007", '"say \\"hi\\" \u2028"'.encode())
    check_golden(WIRE / f"{name}.json", line + b"\n")


def test_the_golden_lines_are_json_whose_url_is_the_endpoint() -> None:
    check_no_other(WIRE, CALLS)
    for name, call in CALLS.items():
        assert loads((WIRE / f"{name}.json").read_bytes())["url"] == endpoint_of(call)


@pytest.mark.parametrize(
    ("host", "word"),
    [
        (None, "max_completion_tokens"),
        ("my-resource.openai.azure.com", "max_completion_tokens"),
        ("my-resource.services.ai.azure.com", "max_completion_tokens"),
        ("api.groq.com", "max_completion_tokens"),
        ("gpu.example.com", "max_tokens"),
        ("notgroq.com", "max_tokens"),
        ("127.0.0.1", "max_tokens"),
    ],
)
def test_the_limit_of_tokens_is_called_what_the_host_calls_it(host: str | None, word: str) -> None:
    body = request_line(Call(model="m", max_tokens=9), host)["body"]
    assert {name: body[name] for name in body if "tokens" in name} == {word: 9}


def test_a_limit_of_tokens_under_another_name_can_be_given_when_ours_is_off() -> None:
    call = Call(model="m", max_tokens=None, params={"max_completion_tokens": 5})
    assert request_line(call, "gpu.example.com")["body"]["max_completion_tokens"] == 5


@pytest.mark.parametrize(
    ("endpoint", "params", "named"),
    [
        (CHAT, {"messages": []}, "'messages'"),
        (CHAT, {"stream": True}, "'stream'"),
        (CHAT, {"n": 2}, "'n'"),
        (CHAT, {"max_completion_tokens": 5}, "'max_tokens'"),
        (CHAT, {"response_format": {}}, "'response_format'"),
        (RESPONSES, {"input": "x"}, "'input'"),
        (RESPONSES, {"instructions": "x"}, "'system_prompt'"),
        (RESPONSES, {"background": True}, "'background'"),
        (RESPONSES, {"max_output_tokens": 5}, "'max_tokens'"),
        (RESPONSES, {"text": {"format": {}}}, r"text\.format"),
        (EMBEDDINGS, {"input": "x"}, "'input'"),
        (EMBEDDINGS, {"encoding_format": "base64"}, "'encoding_format'"),
    ],
)
def test_a_parameter_that_is_ours_or_not_for_batches_is_refused_by_name(
    endpoint: str, params: dict[str, object], named: str
) -> None:
    schema = None if endpoint == EMBEDDINGS else LABEL
    with pytest.raises(InputError, match=named):
        request_line(Call(model="m", endpoint=endpoint, params=params, schema=schema), None)


@pytest.mark.parametrize("call", [{"system_prompt": "s"}, {"schema": LABEL}])
def test_an_embedding_takes_neither_system_prompt_nor_output_type(call: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="embedding"):
        request_line(Call(model="m", endpoint=EMBEDDINGS, **call), None)


def test_an_unknown_endpoint_is_refused_with_those_that_exist() -> None:
    with pytest.raises(InputError, match=r"/v1/moderations.*/v1/embeddings"):
        endpoint_of(Call(model="m", endpoint="/v1/moderations"))


def test_counting_takes_the_system_prompt_and_the_schema_along() -> None:
    body = counted_body(Call(model="m", system_prompt="s", schema=LABEL), "hello")
    assert (body["input"], body["instructions"], body["text"]["format"]["name"]) == (
        "hello",
        "s",
        "Ticket_label",
    )


@pytest.mark.parametrize(
    ("how", "host", "params"),
    [
        (Caching.ON, "gpu.example.com", {}),
        (Caching.OFF, "gpu.example.com", {}),
        (Caching.AUTO, None, {}),
        (Caching.ON, None, {"prompt_cache_options": {"mode": "implicit"}}),
        (Caching.OFF, None, {"prompt_cache_options": {"mode": "implicit"}}),
        (True, None, {}),  # as older releases planned it
    ],
)
def test_nothing_is_said_of_the_cache_to_other_servers_or_against_the_users_word(
    how: bool | Caching, host: str | None, params: dict[str, Any]
) -> None:
    call = Call(model="gpt-6-luna", system_prompt="Be brief.", cache_system_prompt=how, params=params)
    plain = Call(model="gpt-6-luna", system_prompt="Be brief.", params=params)
    assert request_line(call, host) == request_line(plain, host)
