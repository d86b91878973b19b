"""One call to Gemini as a line of a batch job's input.

The id travels twice, beside `request` and in `request.labels`: that the first comes back is not documented, so the
second is there to be read instead.
"""

from collections.abc import Mapping
from typing import Any

from airflow_batch_llm.core.model import Call
from airflow_batch_llm.core.request import CUSTOM_ID, PROMPT, LineTemplate
from airflow_batch_llm.errors import InputError, OutputTypeError
from airflow_batch_llm.providers.vertex.importer import violations
from airflow_batch_llm.providers.vertex.schema import response_schema

ID_LABEL = "airflow_batch_llm_id"

# What this package writes into a request, and the argument that says it instead.
_MANAGED = {
    "contents": "prompt",
    "systemInstruction": "system_prompt",
    "cachedContent": "nothing: batch jobs read no explicit cache",
}
_MANAGED_GENERATION = {
    "maxOutputTokens": "max_tokens",
    "candidateCount": "nothing: one answer is read per row",
}
_MANAGED_BY_SCHEMA = {
    "responseSchema": "output_type",
    "responseJsonSchema": "output_type",
    "responseMimeType": "output_type",
}
_GENERATION_WORDS = {
    *_MANAGED_GENERATION,
    *_MANAGED_BY_SCHEMA,
    "frequencyPenalty",
    "logprobs",
    "mediaResolution",
    "presencePenalty",
    "responseLogprobs",
    "responseModalities",
    "seed",
    "stopSequences",
    "temperature",
    "thinkingConfig",
    "topK",
    "topP",
}


def encode(call: Call) -> LineTemplate:
    """The request line of a call. Raises `InputError` for what the importer or the model would refuse."""
    if call.endpoint is not None:
        raise InputError(f"Vertex has one endpoint for batches; leave out endpoint={call.endpoint!r}.")
    if call.vector:
        raise OutputTypeError(
            "Embeddings are not asked of Vertex here. Ask a model of OpenAI at endpoint='/v1/embeddings'."
        )
    request = generate_content(call, PROMPT)
    request["labels"] = {**request.get("labels", {}), ID_LABEL: CUSTOM_ID}
    line = {"request": request, "custom_id": CUSTOM_ID}
    for path, reason in violations(line):
        where = path.removeprefix("request.")
        in_schema = where.startswith("generationConfig.responseSchema") and call.schema is not None
        kind = OutputTypeError if in_schema else InputError
        raise kind(f"Vertex cannot import a request with {where!r}: {reason}.")
    return LineTemplate.of(line)


def generate_content(call: Call, prompt: str) -> dict[str, Any]:
    """The `GenerateContentRequest` of a call with this prompt."""
    _check_params(call)
    params: dict[str, Any] = dict(call.params)
    request: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": prompt}]}]}
    if call.system_prompt:
        request["systemInstruction"] = {"parts": [{"text": call.system_prompt}]}
    generation = dict(params.pop("generationConfig", {}))
    if call.max_tokens is not None:
        generation["maxOutputTokens"] = call.max_tokens
    if call.schema is not None:
        generation["responseMimeType"] = "application/json"
        generation["responseSchema"] = response_schema(call.schema)
    if generation:
        request["generationConfig"] = generation
    return request | params


def _check_params(call: Call) -> None:
    for name in call.params:
        if name in _GENERATION_WORDS:
            raise InputError(f"extra_body: {name!r} belongs below 'generationConfig'.")
        _refuse_managed(name, _MANAGED)
    generation = call.params.get("generationConfig", {})
    if not isinstance(generation, Mapping):
        raise InputError("extra_body: 'generationConfig' must be a mapping.")
    for name in generation:
        _refuse_managed(name, _MANAGED_GENERATION | (_MANAGED_BY_SCHEMA if call.schema is not None else {}))
    labels = call.params.get("labels", {})
    if not isinstance(labels, Mapping) or ID_LABEL in labels:
        raise InputError(f"extra_body: 'labels' must be a mapping without {ID_LABEL!r}, which names the row.")


def _refuse_managed(name: str, managed: Mapping[str, str]) -> None:
    if "_" in name:
        # Both spellings of one field in one request would be an error of every row.
        raise InputError(f"extra_body: {name!r} is spelled in camelCase.")
    if name in managed:
        raise InputError(f"extra_body: {name!r} is set by this package; use {managed[name]}.")
