"""Define a request as a responder sees it, and its answer, without any vendor's wire format.

Both are tuples, as one is made per row.

The JSON Schemas that vendors refuse for structured output are known here, too. Each check returns the reason, or None for a
schema that is taken. Vendors check per request, so the results for the few schemas of a run are remembered.
"""

from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

import orjson

from airflow_batch_llm.core.attachment import measured

_UNASKED = frozenset(
    {
        "metadata",
        "labels",
        "user",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_options",
        "service_tier",
    }
)


def content_digest(scope: str, body: Mapping[str, Any]) -> bytes:
    """Sixteen bytes that depend on what the request asks, within a vendor's endpoint and model."""
    if not _UNASKED.isdisjoint(body):
        body = {key: value for key, value in body.items() if key not in _UNASKED}
    text = orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
    return blake2b(text, digest_size=16, key=scope.encode()[:64]).digest()


def seed_of(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "little")


class StopReason(StrEnum):
    """The reason for which an answer ends."""

    END = "end"
    LENGTH = "length"
    REFUSED = "refused"
    FILTERED = "filtered"


class AskedRequest(NamedTuple):
    """The argument of a responder: `def respond(request: AskedRequest) -> str | dict | list`."""

    provider: str
    endpoint: str
    custom_id: str
    model: str
    system: str
    prompt: str
    """The text of all messages but the system prompt, joined by line ends."""
    schema: dict[str, Any] | None
    """The JSON Schema that the answer must conform to, in whichever way the request carried it."""
    tool: str | None
    """The name of the tool that the model is forced to call; `schema` is then the schema of its input."""
    max_tokens: int | None
    body: dict[str, Any]
    """The request itself, as the vendor's real-time endpoint would take it."""
    seed: int
    """A number that depends on the content of the request alone."""
    media: "tuple[Medium, ...]" = ()
    """The images and PDFs that come with the prompt."""
    media_tokens: int = 0

    @property
    def input_tokens(self) -> int:
        return tokens(len(self.system) + len(self.prompt)) + self.media_tokens


class Medium(NamedTuple):
    """An image or a PDF of a request. The simulator fetches nothing: what has a URI has a size that is made up."""

    name: str
    """Its URI, or a hash of its bytes."""
    is_pdf: bool
    width: int = 1000
    height: int = 1000
    pages: int = 3

    @classmethod
    def at(cls, uri: object, schemes: tuple[str, ...], *, is_pdf: bool) -> "Medium":
        """Return a medium with a URI. Raises ValueError if the vendor does not fetch it."""
        if not isinstance(uri, str) or not uri.startswith(schemes):
            raise ValueError(f"a URI must begin with {' or '.join(schemes)}")
        return cls(uri, is_pdf)

    @classmethod
    def within(cls, media_type: object, data: object, types: frozenset[str], most: int) -> "Medium":
        """Return a medium with its bytes in base64. Raises ValueError if the vendor does not take it."""
        if media_type not in types:
            raise ValueError(f"the media type must be one of {', '.join(sorted(types))}")
        if not isinstance(data, str) or len(data) > most:
            raise ValueError(f"the data must be base64 of at most {most} letters")
        content = b64decode(data, validate=True)
        found = measured(content)
        if found is None or found.media_type != media_type:
            raise ValueError("the data does not match the media type")
        return cls.of(content)

    @classmethod
    def of(cls, content: bytes) -> "Medium":
        """One with its bytes. Raises ValueError if they are not an image or a PDF."""
        found = measured(content)
        if found is None:
            raise ValueError("the file is no image and no PDF")
        name = blake2b(content, digest_size=16).hexdigest()
        return cls(name, found.is_pdf, found.width or 1000, found.height or 1000, found.pages or 3)


#: Returns the image or PDF with an id. Raises ValueError if there is none.
FindMedium = Callable[[object], Medium]


def no_file(file_id: object) -> Medium:
    """Find no file: the vendor keeps none for this kind of request."""
    raise ValueError(f"there is no file {file_id}")


class RowError(NamedTuple):
    """A request that was answered by an error."""

    status: int
    code: str
    message: str
    param: str | None = None


class Reply(NamedTuple):
    """The answer to a request: a text, an error, or a whole body that an upstream wrote in the same protocol."""

    text: str = ""
    stop: StopReason = StopReason.END
    error: RowError | None = None
    body: dict[str, Any] | None = None


def tokens(characters: int) -> int:
    """Count a text's tokens as the simulator does: four characters to a token, at least one."""
    return max(1, (characters + 3) // 4)


_ANTHROPIC_UNSUPPORTED = (
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    "minLength", "maxLength", "maxItems", "uniqueItems", "not", "if", "patternProperties",
)  # fmt: skip
_ANTHROPIC_FORMATS = {
    "date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid",
}  # fmt: skip
_OPENAI_UNSUPPORTED = (
    "allOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies",
    "patternProperties", "oneOf",
)  # fmt: skip
_OPENAI_PROPERTIES = 5000
_OPENAI_LEVELS = 10
_OPENAI_ENUM = 1000


def anthropic_refusal(schema: Any) -> str | None:
    """Return the reason for which Anthropic's `output_config.format` or a strict tool refuses the schema, or None."""
    return _anthropic(orjson.dumps(schema))


def openai_refusal(schema: Any) -> str | None:
    """Return the reason for which OpenAI's strict mode refuses the schema, or None."""
    return _openai(orjson.dumps(schema))


@lru_cache(maxsize=256)
def _anthropic(document: bytes) -> str | None:
    schema = orjson.loads(document)
    if not isinstance(schema, dict):
        return "the schema is not an object"
    for part, _ in _parts(schema, 0):
        if reason := _anthropic_part(part):
            return reason
    return "recursive schemas are not supported" if _recursive(schema, schema, ()) else None


def _anthropic_part(part: dict[str, Any]) -> str | None:
    if _is_object(part) and part.get("additionalProperties") is not False:
        return "for 'object' type, 'additionalProperties' must be explicitly set to false"
    if unsupported := [word for word in _ANTHROPIC_UNSUPPORTED if word in part]:
        return f"for '{part.get('type', 'any')}' type, property '{unsupported[0]}' is not supported"
    if part.get("minItems", 0) not in (0, 1):
        return "for 'array' type, 'minItems' values other than 0 or 1 are not supported"
    if (name := part.get("format")) is not None and name not in _ANTHROPIC_FORMATS:
        return f"string format '{name}' is not supported"
    reference = part.get("$ref")
    return "external '$ref' is not supported" if reference and not str(reference).startswith("#") else None


@lru_cache(maxsize=256)
def _openai(document: bytes) -> str | None:
    schema = orjson.loads(document)
    if not isinstance(schema, dict) or schema.get("type") != "object" or "anyOf" in schema:
        return "schema must have type 'object' and not have 'anyOf' at the top level."
    count = 0
    for part, level in _parts(schema, 1):
        count += len(part.get("properties", ()))
        if level > _OPENAI_LEVELS:
            return f"{level} levels of nesting exceeds limit of {_OPENAI_LEVELS}."
        if reason := _openai_part(part):
            return reason
    if count > _OPENAI_PROPERTIES:
        return f"{count} properties exceeds limit of {_OPENAI_PROPERTIES}."
    return None


def _openai_part(part: dict[str, Any]) -> str | None:
    if _is_object(part):
        if part.get("additionalProperties") is not False:
            return "'additionalProperties' is required to be supplied and to be false."
        absent = [name for name in part.get("properties", {}) if name not in part.get("required", ())]
        if absent:
            return (
                "'required' is required to be supplied and to be an array including every key in properties. "
                f"Missing '{absent[0]}'."
            )
    if unsupported := [word for word in _OPENAI_UNSUPPORTED if word in part]:
        return f"'{unsupported[0]}' is not permitted."
    if len(part.get("enum", ())) > _OPENAI_ENUM:
        return f"an enum of {len(part['enum'])} values exceeds limit of {_OPENAI_ENUM}."
    return None


def _is_object(part: dict[str, Any]) -> bool:
    kind = part.get("type")
    return kind == "object" or (isinstance(kind, list) and "object" in kind) or "properties" in part


def _parts(schema: Any, level: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Return the schema and all schemas in it, each with its depth in objects."""
    if not isinstance(schema, dict):
        return
    yield schema, level
    for word in ("properties", "$defs", "definitions"):
        for part in (schema.get(word) or {}).values():
            yield from _parts(part, level + (word == "properties"))
    for word in ("items", "additionalProperties"):
        yield from _parts(schema.get(word), level)
    for word in ("anyOf", "allOf", "oneOf", "prefixItems"):
        for part in schema.get(word) or ():
            yield from _parts(part, level)


def _recursive(part: Any, root: Any, following: tuple[str, ...]) -> bool:
    if isinstance(part, list):
        return any(_recursive(item, root, following) for item in part)
    if not isinstance(part, dict):
        return False
    reference = part.get("$ref")
    if isinstance(reference, str):
        if reference in following:
            return True
        target = root
        for step in reference.lstrip("#").strip("/").split("/"):
            target = target.get(step, {}) if step else target
        if _recursive(target, root, (*following, reference)):
            return True
    return any(
        _recursive(value, root, following)
        for key, value in part.items()
        if key not in ("$defs", "definitions", "$ref")
    )
