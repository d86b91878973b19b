"""One request as a responder sees it, and its answer, free of any vendor's wire format.

Both are tuples because one of each is made per row.
"""

from base64 import b64decode
from collections.abc import Callable, Mapping
from enum import StrEnum
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
    """Why an answer ends where it ends."""

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
    """The images and PDFs beside the prompt."""
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
        """One with a URI. Raises ValueError if the vendor does not fetch it."""
        if not isinstance(uri, str) or not uri.startswith(schemes):
            raise ValueError(f"a URI must begin with {' or '.join(schemes)}")
        return cls(uri, is_pdf)

    @classmethod
    def within(cls, media_type: object, data: object, types: frozenset[str], most: int) -> "Medium":
        """One with its bytes in base64. Raises ValueError if the vendor does not take it."""
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
        """One with its bytes. Raises ValueError if they are no image and no PDF."""
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
    """The simulator's tokenizer: four characters to a token, at least one."""
    return max(1, (characters + 3) // 4)
