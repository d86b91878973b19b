"""The real SDK clients, pointed at a simulator, with their own retries off."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import anthropic
import openai
import orjson
from google import genai
from google.genai.types import HttpOptions
from google.oauth2.credentials import Credentials

from airflow_batch_llm.simulator.handle import Simulator

CLAUDE = "claude-haiku-4-5"
GPT = "gpt-5-nano"
GEMINI = "publishers/google/models/gemini-2.5-flash"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "label": {"type": "string", "enum": ["billing", "bug", "question"]},
        "urgent": {"type": "boolean"},
        "reason": {"type": "string"},
    },
    "required": ["label", "urgent", "reason"],
    "additionalProperties": False,
}


_OPEN = ExitStack()


def close_clients() -> None:
    """Close the clients that a test has opened."""
    _OPEN.close()


def anthropic_client(simulator: Simulator, key: str = "any", **options: Any) -> anthropic.Anthropic:
    options = {"max_retries": 0, **options}
    return _OPEN.enter_context(anthropic.Anthropic(base_url=simulator.url, api_key=key, **options))


def openai_client(simulator: Simulator, key: str = "any") -> openai.OpenAI:
    return _OPEN.enter_context(openai.OpenAI(base_url=simulator.openai_url, api_key=key, max_retries=0))


def gemini_client(simulator: Simulator, location: str = "us-central1", version: str = "v1") -> genai.Client:
    options = HttpOptions(base_url=simulator.url, api_version=version)
    return genai.Client(
        vertexai=True,
        project="my-project",
        location=location,
        credentials=Credentials(token="any"),
        http_options=options,
    )


def message_params(text: str = "My invoice is wrong.", **params: Any) -> dict[str, Any]:
    return {"model": CLAUDE, "max_tokens": 200, "messages": [{"role": "user", "content": text}], **params}


def anthropic_requests(count: int, **params: Any) -> list[Any]:
    return [{"custom_id": f"r-{n}", "params": message_params(f"ticket {n}", **params)} for n in range(count)]


def openai_line(custom_id: str, body: Mapping[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    body = body or {"model": GPT, "input": f"ticket {custom_id}"}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/responses", "body": body, **fields}


def jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


def openai_batch(client: openai.OpenAI, rows: Sequence[Mapping[str, Any]], **options: Any) -> Any:
    """Upload the rows and create a batch of them."""
    file = client.files.create(file=("in.jsonl", jsonl(rows)), purpose="batch")
    endpoint = options.pop("endpoint", "/v1/responses")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **options)


def openai_results(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    """The lines of a result file by custom_id."""
    assert file_id is not None
    lines = client.files.content(file_id).content.split(b"\n")
    return {row["custom_id"]: row for row in map(orjson.loads, filter(None, lines))}
