"""A request of ours as a line of OpenAI's: `{"custom_id", "method", "url", "body"}`, for three endpoints.

OpenAI validates a file as a whole and fails the batch at its first bad line, so what cannot be right is refused here.
"""

from collections.abc import Callable, Mapping
from typing import Any

from airflow_batch_llm.core.model import Call
from airflow_batch_llm.core.request import CUSTOM_ID, PROMPT
from airflow_batch_llm.errors import InputError, OutputTypeError
from airflow_batch_llm.providers.openai.schema import json_schema_format

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"

# Hosts that know `max_completion_tokens`; older servers of this API know only `max_tokens`.
_MODERN_HOSTS = ("openai.com", "azure.com", "azure.us", "groq.com")

# Ours to set, and with which argument.
_MANAGED: Mapping[str, Mapping[str, str]] = {
    CHAT: {"messages": "prompt", "model": "model_id"},
    RESPONSES: {"input": "prompt", "model": "model_id", "instructions": "system_prompt"},
    EMBEDDINGS: {"input": "prompt", "model": "model_id"},
}
# Not for batches, or for answers that a row cannot take: several of them, or one that is not there yet.
_REFUSED: Mapping[str, frozenset[str]] = {
    CHAT: frozenset({"stream", "stream_options", "n"}),
    RESPONSES: frozenset({"stream", "stream_options", "background"}),
    EMBEDDINGS: frozenset({"stream", "encoding_format"}),
}
_TOKEN_LIMITS = frozenset({"max_tokens", "max_completion_tokens", "max_output_tokens"})


def endpoint_of(call: Call) -> str:
    """The path that the requests of this call go to."""
    endpoint = call.endpoint or CHAT
    if endpoint not in _BODIES:
        raise InputError(
            f"There is no endpoint {endpoint!r} in batches of OpenAI. Use one of {', '.join(_BODIES)}."
        )
    return endpoint


def request_line(call: Call, host: str | None) -> dict[str, Any]:
    """The line of this call, with holes for the custom_id and the prompt. `host`: where it goes, if not to OpenAI."""
    endpoint = endpoint_of(call)
    if call.vector and endpoint != EMBEDDINGS:
        raise OutputTypeError(f"The endpoint {endpoint} gives no embeddings: set endpoint={EMBEDDINGS!r}.")
    _check_params(call, endpoint)
    body = _BODIES[endpoint](call, PROMPT, host)
    return {"custom_id": CUSTOM_ID, "method": "POST", "url": endpoint, "body": body}


def counted_body(call: Call, prompt: str) -> dict[str, Any]:
    """What is sent to have the tokens of one request counted: always in the words of the responses endpoint."""
    body: dict[str, Any] = {"model": call.model, "input": prompt}
    if call.system_prompt:
        body["instructions"] = call.system_prompt
    if call.schema is not None:
        body["text"] = {"format": json_schema_format(call.schema)}
    return body


def _check_params(call: Call, endpoint: str) -> None:
    managed, refused = _MANAGED[endpoint], _REFUSED[endpoint]
    for name in call.params:
        if name in managed:
            raise InputError(f"extra_body may not hold {name!r}: set it with {managed[name]!r}.")
        if name in refused:
            raise InputError(f"extra_body may not hold {name!r}: a row of a batch gets one whole answer.")
        if name in _TOKEN_LIMITS and call.max_tokens is not None:
            raise InputError(f"extra_body may not hold {name!r}: set it with 'max_tokens'.")


def _chat(call: Call, prompt: str, host: str | None) -> dict[str, Any]:
    system = [{"role": "system", "content": call.system_prompt}] if call.system_prompt else []
    body: dict[str, Any] = {
        "model": call.model,
        "messages": [*system, {"role": "user", "content": prompt}],
        **call.params,
    }
    if call.max_tokens is not None:
        body["max_completion_tokens" if _is_modern(host) else "max_tokens"] = call.max_tokens
    if call.schema is not None:
        _refuse_own(call.params, "response_format")
        described = json_schema_format(call.schema)
        kind = described.pop("type")
        body["response_format"] = {"type": kind, "json_schema": described}
    return body


def _responses(call: Call, prompt: str, host: str | None) -> dict[str, Any]:  # noqa: ARG001 - one of three alike
    body: dict[str, Any] = {"model": call.model}
    if call.system_prompt:
        body["instructions"] = call.system_prompt
    body |= {"input": prompt, **call.params}
    if call.max_tokens is not None:
        body["max_output_tokens"] = call.max_tokens
    if call.schema is not None:
        given = call.params.get("text")
        text = dict(given) if isinstance(given, Mapping) else {}
        _refuse_own(text, "format", "text.format")
        body["text"] = {**text, "format": json_schema_format(call.schema)}
    return body


def _embeddings(call: Call, prompt: str, host: str | None) -> dict[str, Any]:  # noqa: ARG001 - one of three alike
    if call.schema is not None:
        raise InputError(
            f"The endpoint {EMBEDDINGS} answers with a vector: set output_type=Embedding(), or use another endpoint."
        )
    if call.system_prompt:
        raise InputError(
            "An embedding takes no system_prompt: leave it out, or put its text into the prompt."
        )
    return {"model": call.model, "input": prompt, **call.params}


_BODIES: Mapping[str, Callable[[Call, str, str | None], dict[str, Any]]] = {
    CHAT: _chat,
    RESPONSES: _responses,
    EMBEDDINGS: _embeddings,
}


def _refuse_own(given: Mapping[str, object], name: str, shown: str | None = None) -> None:
    if name in given:
        raise InputError(f"extra_body may not hold {shown or name!r}: set it with 'output_type'.")


def _is_modern(host: str | None) -> bool:
    return host is None or any(host == name or host.endswith(f".{name}") for name in _MODERN_HOSTS)
