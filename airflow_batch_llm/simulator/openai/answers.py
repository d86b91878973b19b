"""The bodies that OpenAI's endpoints answer with, and what they say was used."""

import base64
import math
import re
import struct
from collections.abc import Sequence
from hashlib import shake_128
from typing import Any

from airflow_batch_llm.simulator.database import BilledUsage
from airflow_batch_llm.simulator.meters import CHARS, Billing, CacheUse
from airflow_batch_llm.simulator.request import AskedRequest, Reply, StopReason, tokens

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"
_CREATED = 1_795_000_000  # bodies depend on the request alone
_FINISHES = {
    StopReason.END: "stop",
    StopReason.LENGTH: "length",
    StopReason.REFUSED: "stop",
    StopReason.FILTERED: "content_filter",
}
_REFUSAL = "I can't help with that."
_DIMENSIONS = {"text-embedding-3-large": 3072}
_USUAL_DIMENSIONS = 1536


def usage_of(request: AskedRequest, answer: Reply, billing: Billing) -> BilledUsage:
    if answer.body is not None:
        return _reported(answer.body.get("usage") or {})
    total = request.input_tokens
    if request.endpoint == EMBEDDINGS:
        return BilledUsage(total)
    cached, written = billing.fixed(total) or _cache_use(request, billing)
    visible, thought = tokens(len(answer.text)) if answer.text else 1, billing.knobs.reasoning_tokens
    return BilledUsage(total, cached, written, visible + thought, thought)


_LEAST_CACHED, _STEP = 1024, 128  # tokens
_LIFETIME = 1800.0


#: From gpt-5.6 on, what is written to the cache is charged, and a request can say what that is.
_WITH_MARKS = re.compile(r"gpt-(5\.([6-9]|\d\d)|[6-9])")


def _cache_use(request: AskedRequest, billing: Billing) -> CacheUse:
    """Whatever begins as an earlier prompt did is read from the cache, unasked, in steps of 128 tokens from 1,024 on."""
    text = request.system + request.prompt
    if tokens(len(text)) < _LEAST_CACHED:
        return CacheUse()
    key = str(request.body.get("prompt_cache_key") or "")
    charges = bool(_WITH_MARKS.match(request.model))
    mode = (request.body.get("prompt_cache_options") or {}).get("mode")
    lengths: Sequence[int] = range(_LEAST_CACHED * CHARS, len(text) + 1, _STEP * CHARS)
    if charges and mode == "explicit":
        lengths = [end for end in _marks(request.body) if tokens(end) >= _LEAST_CACHED]
    read = billing.read(request, text, lengths, _LIFETIME, key)
    written = tokens(lengths[-1]) - read if charges and lengths else 0
    return CacheUse(read, written)


def _marks(body: dict[str, Any]) -> list[int]:
    """The characters of the system prompt up to each mark. Marks elsewhere are not looked at."""
    ends, length = [], 0
    for message in body.get("messages") or ():
        if message.get("role") not in ("system", "developer") or not isinstance(message.get("content"), list):
            break
        for block in message["content"]:
            length += len(str(block.get("text", "")))
            if block.get("prompt_cache_breakpoint"):
                ends.append(length)
    return ends


def _reported(usage: dict[str, Any]) -> BilledUsage:
    """Return the usage that an upstream reported, in either spelling."""
    inputs = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    outputs = usage.get("completion_tokens_details") or usage.get("output_tokens_details") or {}
    return BilledUsage(
        usage.get("prompt_tokens") or usage.get("input_tokens") or 0,
        inputs.get("cached_tokens") or 0,
        inputs.get("cache_write_tokens") or 0,
        usage.get("completion_tokens") or usage.get("output_tokens") or 0,
        outputs.get("reasoning_tokens") or 0,
    )


def body_of(request: AskedRequest, answer: Reply, usage: BilledUsage) -> dict[str, Any]:
    """The body of a 200 answer."""
    if answer.body is not None:
        return answer.body
    if request.endpoint == EMBEDDINGS:
        return _embeddings(request, usage)
    if request.endpoint == RESPONSES:
        return _response(request, answer, usage)
    return _completion(request, answer, usage)


def _completion(request: AskedRequest, answer: Reply, usage: BilledUsage) -> dict[str, Any]:
    refused = answer.stop is StopReason.REFUSED
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if refused else answer.text,
        "refusal": (answer.text or _REFUSAL) if refused else None,
    }
    finish = _FINISHES[answer.stop]
    if request.tool is not None and answer.stop is StopReason.END:
        function = {"name": request.tool, "arguments": answer.text}
        message |= {
            "content": None,
            "tool_calls": [{"id": f"call_{request.seed:016x}", "type": "function", "function": function}],
        }
        finish = "tool_calls"
    return {
        "id": f"chatcmpl-{request.seed:016x}",
        "object": "chat.completion",
        "created": _CREATED,
        "model": request.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
        "usage": {
            "prompt_tokens": usage.input,
            "completion_tokens": usage.output,
            "total_tokens": usage.input + usage.output,
            "prompt_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": usage.cache_write},
            "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
        },
    }


def _response(request: AskedRequest, answer: Reply, usage: BilledUsage) -> dict[str, Any]:
    reasons = {StopReason.LENGTH: "max_output_tokens", StopReason.FILTERED: "content_filter"}
    reason = reasons.get(answer.stop)
    status = "incomplete" if reason else "completed"
    output: list[dict[str, Any]] = []
    if usage.reasoning:
        output.append({"id": f"rs_{request.seed:016x}", "type": "reasoning", "summary": []})
    output.append(_output_item(request, answer, status))
    return {
        "id": f"resp_{request.seed:016x}",
        "object": "response",
        "created_at": _CREATED,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": reason} if reason else None,
        "instructions": None,
        "model": request.model,
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": usage.input,
            "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": usage.cache_write},
            "output_tokens": usage.output,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning},
            "total_tokens": usage.input + usage.output,
        },
    }


def _output_item(request: AskedRequest, answer: Reply, status: str) -> dict[str, Any]:
    if request.tool is not None and answer.stop is StopReason.END:
        return {
            "id": f"fc_{request.seed:016x}",
            "type": "function_call",
            "call_id": f"call_{request.seed:016x}",
            "name": request.tool,
            "arguments": answer.text,
            "status": status,
        }
    part: dict[str, Any] = {"type": "output_text", "text": answer.text, "annotations": []}
    if answer.stop is StopReason.REFUSED:
        part = {"type": "refusal", "refusal": answer.text or _REFUSAL}
    return {
        "id": f"msg_{request.seed:016x}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [part],
    }


def _embeddings(request: AskedRequest, usage: BilledUsage) -> dict[str, Any]:
    given = request.body["input"]
    inputs = (
        given if isinstance(given, list) and not all(isinstance(item, int) for item in given) else [given]
    )
    size = request.body.get("dimensions") or _DIMENSIONS.get(request.model, _USUAL_DIMENSIONS)
    packed = request.body.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _packed(vector) if packed else vector}
        for index, vector in enumerate(unit_vector(f"{request.model} {item}", size) for item in inputs)
    ]
    return {
        "object": "list",
        "data": data,
        "model": request.model,
        "usage": {"prompt_tokens": usage.input, "total_tokens": usage.input},
    }


def unit_vector(text: str, size: int) -> list[float]:
    """A vector of length 1 that depends on the text alone."""
    raw = [byte - 127.5 for byte in shake_128(text.encode("utf-8", "replace")).digest(size)]
    length = math.sqrt(sum(value * value for value in raw))
    return [value / length for value in raw]


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
