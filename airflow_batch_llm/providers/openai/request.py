"""Write the parts of a request that are OpenAI's own: the schema of the answer, and what is to be cached.

A JSON Schema is rewritten to OpenAI's strict subset if that can express it, and is sent as it is otherwise. In the strict
subset each property is required, so an optional one may be null instead, and landing reads such a null as absence. Keywords
that the subset lacks move into the description. OpenAI caches the beginning of prompts without being asked. A key sends
requests with the same beginning to the same cache. Models that charge for writing to it cache only what a request marks,
once its mode is explicit.
"""

import re
from collections.abc import Mapping
from typing import Any

from airflow_batch_llm.core.model import Caching, Call
from airflow_batch_llm.core.request import digest
from airflow_batch_llm.core.schema_rules import (
    Schema,
    inline_plain_refs,
    is_object,
    is_open_map,
    map_children,
    measure,
    require_all,
    told_in_words,
    walk,
)
from airflow_batch_llm.errors import OutputTypeError

_MAX_DEPTH = 10
_MAX_PROPERTIES = 5_000
_MAX_ENUM_VALUES = 1_000
_MAX_NAME_CHARS = 120_000

# Keywords that change the meaning of a schema and have no equivalent in the strict subset.
_NOT_STRICT = frozenset(
    {
        "allOf",
        "not",
        "if",
        "then",
        "else",
        "dependentRequired",
        "dependentSchemas",
        "patternProperties",
        "prefixItems",
    }
)
_KEPT = frozenset(
    {
        *("type", "properties", "required", "items", "anyOf", "enum", "const", "description", "title"),
        *("additionalProperties", "$ref", "$defs", "pattern", "minimum", "maximum", "exclusiveMinimum"),
        *("exclusiveMaximum", "multipleOf", "minItems", "maxItems"),
    }
)
_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"})
# Keywords that the shape repeats already, or that do not help a model.
_SILENT = frozenset({"default", "discriminator", "$schema", "$id", "examples"})


def json_schema_format(schema: Schema) -> dict[str, Any]:
    """Return the `json_schema` format that asks for answers of this schema."""
    if not is_object(schema):
        raise OutputTypeError(
            "OpenAI needs an object at the root of the output type. Put the value into a property."
        )
    name = re.sub(r"[^A-Za-z0-9_-]", "_", str(schema.get("title") or "answer"))[:64]
    strict = strict_schema(schema)
    return {
        "type": "json_schema",
        "name": name,
        "schema": dict(schema) if strict is None else strict,
        "strict": strict is not None,
    }


def strict_schema(schema: Schema) -> dict[str, Any] | None:
    """Return the schema in the strict subset, or None if the subset cannot express it."""
    plain = inline_plain_refs(_without_lone_all_of(schema))
    if any(is_open_map(node) or node.keys() & _NOT_STRICT or _is_any(node) for _, node, _ in walk(plain)):
        return None
    strict: dict[str, Any] = _strict(require_all(plain))
    size = measure(strict)
    fits = (
        size.depth <= _MAX_DEPTH
        and size.properties <= _MAX_PROPERTIES
        and size.enum_values <= _MAX_ENUM_VALUES
        and size.name_chars <= _MAX_NAME_CHARS
    )
    return strict if fits else None


def _is_any(node: Schema) -> bool:
    return not node.keys() & {"type", "anyOf", "oneOf", "allOf", "enum", "const", "properties", "$ref"}


def _without_lone_all_of(node: Any) -> Any:
    """Replace an `allOf` around one schema by that schema. Such an `allOf` only adds a description to a reference."""
    if not isinstance(node, Mapping):
        return node
    copy = map_children(node, _without_lone_all_of)
    if len(copy.get("allOf", ())) == 1:
        (only,) = copy.pop("allOf")
        copy = {**only, **copy}
    return copy


def _strict(node: Any) -> Any:
    if not isinstance(node, Mapping):
        return node
    copy = map_children(node, _strict)
    if "oneOf" in copy:
        copy["anyOf"] = copy.pop("oneOf")
    told = {key: value for key, value in copy.items() if not _is_kept(key, value) and key not in _SILENT}
    native = {key: value for key, value in copy.items() if _is_kept(key, value)}
    if is_object(copy):
        native["additionalProperties"] = False
    if told:
        native["description"] = told_in_words(native.get("description"), told)
    return native


def _is_kept(key: str, value: object) -> bool:
    return value in _FORMATS if key == "format" else key in _KEPT


_LEAST_CACHED = 1_024

#: The models with marks: from gpt-5.6 on.
_WITH_MARKS = re.compile(r"gpt-(5\.([6-9]|\d\d)|[6-9])")

_EXPLICIT = {"mode": "explicit"}


def least_cached(call: Call, host: str | None) -> int | None:
    """Return the tokens from which a shared part is cached, or None if the request cannot ask for it or already does."""
    is_own = any(name.startswith("prompt_cache") for name in call.params)
    return _LEAST_CACHED if call.system_prompt and not is_own and _is_vendor(host) else None


def cache_words(call: Call, host: str | None, *, marks: bool = False) -> dict[str, Any]:
    """Return the body's fields about the cache. `marks`: the endpoint takes the system prompt as a block with a mark."""
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
