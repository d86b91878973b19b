"""Say in a request what OpenAI is to cache.

OpenAI caches unasked what prompts begin with. A key sends requests with the same beginning to the same cache. Models that
charge for writing to it cache only what a request marks, once its mode is explicit.
"""

import re
from collections.abc import Mapping
from typing import Any

from airflow_batch_llm.core.model import Caching, Call
from airflow_batch_llm.core.request import digest

_LEAST_CACHED = 1_024

#: The models with marks: from gpt-5.6 on.
_WITH_MARKS = re.compile(r"gpt-(5\.([6-9]|\d\d)|[6-9])")

_EXPLICIT = {"mode": "explicit"}


def least_cached(call: Call, host: str | None) -> int | None:
    """Return the tokens from which a shared part is cached. None: the request cannot ask for it, or does so itself."""
    is_own = any(name.startswith("prompt_cache") for name in call.params)
    return _LEAST_CACHED if call.system_prompt and not is_own and _is_vendor(host) else None


def cache_words(call: Call, host: str | None, *, marks: bool = False) -> dict[str, Any]:
    """Return what a body says of the cache. `marks`: the endpoint takes the system prompt as a block with a mark."""
    explicit = {"prompt_cache_options": _EXPLICIT} if _WITH_MARKS.match(call.model) else {}
    if call.cache_system_prompt == Caching.OFF:
        return explicit if _is_vendor(host) and "prompt_cache_options" not in call.params else {}
    if call.cache_system_prompt != Caching.ON or least_cached(call, host) is None:
        return {}
    key = digest(call.model.encode(), str(call.system_prompt).encode(errors="replace"))
    return {"prompt_cache_key": key, **(explicit if marks else {})}


def marked(text: str, words: Mapping[str, Any]) -> object:
    """Return the system prompt as the content of a message, with a mark at its end if the body asks for marks."""
    if not {"prompt_cache_key", "prompt_cache_options"} <= words.keys():
        return text
    return [{"type": "text", "text": text, "prompt_cache_breakpoint": _EXPLICIT}]


def _is_vendor(host: str | None) -> bool:
    return host is None or host.endswith(".openai.com")
