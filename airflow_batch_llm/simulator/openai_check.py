"""OpenAI's validation of a batch's input file: the first bad line fails the whole batch, and nothing is run."""

from collections import Counter
from pathlib import Path
from typing import Any

from airflow_batch_llm.simulator.bodies import MEGABYTE, lines, parse
from airflow_batch_llm.simulator.openai_answers import EMBEDDINGS
from airflow_batch_llm.simulator.openai_rows import as_request

ENDPOINTS = ("/v1/responses", "/v1/chat/completions", "/v1/embeddings")
_MOST_BYTES = 200 * MEGABYTE
_MOST_REQUESTS = 50_000


class BadInput(Exception):
    """Why the file is refused, as it stands in `errors.data`."""

    def __init__(self, code: str, message: str, param: str | None = None, line: int | None = None) -> None:
        super().__init__(message)
        self.entry = {"code": code, "message": message, "param": param, "line": line}


class Checked:
    """What a good file holds."""

    def __init__(self, model: str, total: int, tokens: int) -> None:
        self.model = model
        self.total = total
        self.tokens = tokens


def check_file(path: Path, endpoint: str) -> Checked:
    """Raises `BadInput` at the first thing that is wrong."""
    if path.stat().st_size > _MOST_BYTES:
        raise BadInput("invalid_request", f"The batch input file is larger than the {_MOST_BYTES} maximum.")
    seen: set[str] = set()
    count: Counter[str] = Counter()
    model = None
    for number, line in enumerate(lines(path), 1):
        if number > _MOST_REQUESTS:
            raise BadInput("too_many_tasks", f"The batch input file has more than {_MOST_REQUESTS} requests.")
        row = _row(line, number, endpoint)
        if row["custom_id"] in seen:
            raise BadInput("duplicate_custom_id", "The custom_id was used before.", "custom_id", number)
        seen.add(row["custom_id"])
        model = model or row["body"]["model"]
        if row["body"]["model"] != model:
            raise BadInput(
                "mismatched_model", "All requests must be for the same model.", "body.model", number
            )
        _count(row["body"], endpoint, count, number)
    if model is None:
        raise BadInput("empty_file", "The batch input file is empty.")
    return Checked(model, len(seen), count["tokens"])


def _row(line: bytes, number: int, endpoint: str) -> dict[str, Any]:
    try:
        row = parse(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise BadInput("invalid_json_line", "This line is not parseable as valid JSON.", None, number)
    for name in ("custom_id", "method", "url", "body"):
        if not row.get(name):
            raise BadInput(
                "missing_required_parameter", f"Missing required parameter: '{name}'.", name, number
            )
    if not isinstance(row["custom_id"], str) or not isinstance(row["body"], dict):
        raise BadInput("invalid_request", "custom_id must be a string, body an object.", "custom_id", number)
    if row["method"] != "POST":
        raise BadInput("invalid_method", "The method must be POST.", "method", number)
    if row["url"] != endpoint:
        raise BadInput(
            "invalid_url", f"The URL does not match the batch's endpoint {endpoint}.", "url", number
        )
    model = row["body"].get("model")
    if not isinstance(model, str):
        raise BadInput("invalid_request", "The request has no model.", "body.model", number)
    if "no-such" in model:
        raise BadInput("model_not_found", f"The model '{model}' does not exist.", "body.model", number)
    if row["body"].get("stream"):
        raise BadInput(
            "streaming_unsupported", "Streaming is not supported in batches.", "body.stream", number
        )
    return row


def _count(body: dict[str, Any], endpoint: str, count: Counter[str], number: int) -> None:
    count["tokens"] += as_request(endpoint, body, "", b"\0" * 8).input_tokens
    if endpoint == EMBEDDINGS:
        given = body.get("input")
        count["inputs"] += len(given) if isinstance(given, list) else 1
        if count["inputs"] > _MOST_REQUESTS:
            raise BadInput(
                "too_many_tasks", f"More than {_MOST_REQUESTS} embedding inputs.", "body.input", number
            )
