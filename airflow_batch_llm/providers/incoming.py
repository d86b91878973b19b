"""Read what a vendor sends: the types of its JSON, the size of its downloads, and its result lines.

A gateway may answer in the vendor's place, and a wrong type that slips through fails far from here. Their errors become
`Unavailable` in `patiently`, and `UnknownFate` during the creation of a batch.

A line ends at the byte `\\n` and nowhere else: an answer may hold U+2028 or U+0085 and is still one line.
"""

import io
import json
import sys
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import orjson

from airflow_batch_llm.core.model import MOST_TOKENS
from airflow_batch_llm.errors import Unavailable, UnknownFate, raise_alone


class NotUnderstood(ValueError):
    """The vendor cannot have given this answer. The message is the name of the error from reading it."""


@contextmanager
def understood() -> Iterator[None]:
    """Read an answer in this block. Any error there becomes `NotUnderstood`."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise_alone(error if isinstance(error, NotUnderstood) else NotUnderstood(type(error).__name__))


def not_understood(error: ValueError) -> Unavailable:
    """Return the error of a call that is safe to repeat. It quotes nothing of the answer."""
    return Unavailable(
        f"The answer is not one that the provider's API gives ({_kind(error)}). A gateway, a proxy or a login page may "
        "have answered in its place: look at the connection's host if this stays."
    )


def fate_unknown(error: Exception) -> UnknownFate:
    """Return the error of a creation whose answer is not a batch."""
    return UnknownFate(
        f"The answer to the creation is not a batch ({_kind(error)}): a gateway or a proxy may have given it. "
        "The batch may exist: it is searched for before anything is sent again."
    )


def _kind(error: Exception) -> str:
    return str(error) if isinstance(error, NotUnderstood) else type(error).__name__


def text(value: Any) -> str:
    """Return the value if it is a text that is not empty."""
    if not isinstance(value, str):
        raise TypeError
    if not value:
        raise ValueError
    return value


def count(value: Any) -> int:
    """Return the value if it is a whole number of zero or more."""
    if type(value) is not int:
        raise TypeError
    if value < 0:
        raise ValueError
    return value


def count_or_zero(value: Any) -> int:
    """Return the value as `count` does, or 0 if it is missing."""
    return 0 if value is None else count(value)


def record(value: Any) -> Mapping[str, Any]:
    """Return the value if it is an object."""
    if not isinstance(value, Mapping):
        raise TypeError
    return value


def entries(value: Any) -> Sequence[Any]:
    """Return the value if it is a list."""
    if not isinstance(value, list):
        raise TypeError
    return value


def following(page: Mapping[str, Any], ids: Sequence[str], after: str | None) -> str | None:
    """Return the cursor of a list's next page, or None on the last page. Raises for a cursor that leads nowhere."""
    if not page.get("has_more"):
        return None
    cursor = text(page.get("last_id") or (ids[-1] if ids else None))
    if cursor == after:
        raise ValueError
    return cursor


#: The most bytes of a plain answer, unpacked. The largest page of a thousand batches has a tenth of it.
MOST_PLAIN_BYTES = 64 << 20

#: The bytes that downloaded results may unpack to: this many times what was sent, plus this many bytes. Each line has ids of its
#: own, so real lines shrink to a twentieth at best.
MOST_UNPACKED, UNPACKED_FREE = 100, 64 << 20

#: A request says by this header that it downloads results.
DOWNLOAD = "application/binary"

#: All that the clients ask for.
ENCODINGS = "gzip"

_PIECE = 1 << 20
_GZIP = 31


class OutOfBounds(NotUnderstood):
    """The answer is larger than any answer of the vendor, or is packed in a way that was not asked for."""


class _Unpacker:
    """Unpacks one body, and stops at the bound."""

    def __init__(self, encoding: str, *, download: bool) -> None:
        if encoding not in ("", "identity", "gzip"):
            raise OutOfBounds("the answer is packed in a way that was not asked for")
        self._zlib = zlib.decompressobj(_GZIP) if encoding == "gzip" else None
        self._download = download
        self._sent = self._unpacked = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the unpacked bytes of this piece of the body, in pieces of a bounded size."""
        self._sent += len(chunk)
        if self._zlib is None:
            yield self._counted(chunk)
            return
        while chunk:
            try:
                piece = self._zlib.decompress(chunk, _PIECE)
            except zlib.error as error:
                raise OutOfBounds("the answer is not the gzip that it says it is") from error
            chunk = self._zlib.unconsumed_tail
            yield self._counted(piece)

    def _counted(self, piece: bytes) -> bytes:
        self._unpacked += len(piece)
        most = UNPACKED_FREE + MOST_UNPACKED * self._sent if self._download else MOST_PLAIN_BYTES
        if self._unpacked > most:
            raise OutOfBounds(f"the answer unpacks to more than {most:,} bytes")
        return piece


def bounded(client: Any) -> Any:
    """Return an SDK's client that refuses answers beyond the bounds. Its HTTP client is one of httpx or httpx2."""
    bound_client(client._client)
    return client.with_options(default_headers={"Accept-Encoding": ENCODINGS})


def bound_client(http: Any) -> None:
    """Return an HTTP client of httpx or httpx2 that refuses answers beyond the bounds."""
    library = http_library(http)
    hooks = http.event_hooks
    hook = _ahook(library) if hasattr(http, "aclose") else _hook(library)
    http.event_hooks = {**hooks, "response": [*hooks.get("response", ()), hook]}


_CLIENTS = frozenset({"Client", "AsyncClient"})


def http_library(http: Any) -> Any:
    """Return the module of an HTTP client: httpx or httpx2."""
    kinds = type(http).__mro__
    return sys.modules[next(kind.__module__ for kind in kinds if kind.__name__ in _CLIENTS).partition(".")[0]]


def _unpacker(response: Any) -> _Unpacker:
    """Return the unpacker of this response's body, which its library must not unpack."""
    encoding = response.headers.pop("content-encoding", "").strip().lower()
    return _Unpacker(encoding, download=response.request.headers.get("accept") == DOWNLOAD)


def _hook(library: Any) -> Callable[[Any], None]:
    class Body(library.SyncByteStream):  # type: ignore[misc]  # of a library that is loaded only when used
        def __init__(self, stream: Any, unpacker: _Unpacker) -> None:
            self._stream = stream
            self._unpacker = unpacker

        def __iter__(self) -> Iterator[bytes]:
            for chunk in self._stream:
                yield from self._unpacker.feed(chunk)

        def close(self) -> None:
            self._stream.close()

    def hook(response: Any) -> None:
        response.stream = Body(response.stream, _unpacker(response))

    return hook


def _ahook(library: Any) -> Callable[[Any], Any]:
    class Body(library.AsyncByteStream):  # type: ignore[misc]
        def __init__(self, stream: Any, unpacker: _Unpacker) -> None:
            self._stream = stream
            self._unpacker = unpacker

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for chunk in self._stream:
                for piece in self._unpacker.feed(chunk):
                    yield piece

        async def aclose(self) -> None:
            await self._stream.aclose()

    async def hook(response: Any) -> None:
        response.stream = Body(response.stream, _unpacker(response))

    return hook


def bound_session(session: Any) -> None:
    """Return a session of `requests` that refuses plain answers beyond the bounds. Streamed answers pass."""
    session.headers["Accept-Encoding"] = ENCODINGS
    session.hooks["response"].append(_unpacked)


def _unpacked(response: Any, **how: Any) -> None:
    if how.get("stream"):
        return
    pieces: list[bytes] = []
    try:
        unpacker = _Unpacker(response.headers.get("content-encoding", "").strip().lower(), download=False)
        for chunk in response.raw.stream(_PIECE >> 4, decode_content=False):
            pieces += unpacker.feed(chunk)
    except BaseException:
        pieces.clear()  # the error's frames outlive the next attempt
        response.close()
        raise
    response.raw = io.BytesIO(b"".join(pieces))


_LINES_AT_ONCE = 100

#: The most bytes of a result line in memory. The longest real one has an answer and a request of 20 MB.
MOST_LINE_BYTES = 64 << 20


class UnusableUsage(ValueError):
    """A line's token count is a text, a fraction, below zero, or larger than that of any answer."""

    def __init__(self) -> None:
        super().__init__("a token count of the line is not a count")


def split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a stream of chunks, without line ends and without empty lines.

    A line beyond `MOST_LINE_BYTES` is cut off, and then it is one that cannot be read.
    """
    pending: list[bytes] = []
    held = 0
    for chunk in chunks:
        head, *rest = chunk.split(b"\n")
        if held < MOST_LINE_BYTES:
            pending.append(head)
            held += len(head)
        if not rest:
            continue
        rest.insert(0, b"".join(pending))
        pending = [rest.pop()]
        held = len(pending[0])
        for piece in rest:
            if line := piece.rstrip(b"\r"):
                yield line
    if line := b"".join(pending):
        yield line


def joined_lines(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same lines with their ends, many of them in a block."""
    rest = iter(lines)
    while block := list(islice(rest, _LINES_AT_ONCE)):
        yield b"\n".join(block) + b"\n"


def parse_line(line: bytes) -> dict[str, Any]:
    """Return the JSON object of a line. Raises `ValueError` if it has none. A lone surrogate in an answer becomes U+FFFD."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        value = _leniently(line)
    if isinstance(value, dict):
        return value
    raise ValueError("the line is not a JSON object")


def _leniently(line: bytes) -> Any:
    try:
        return _without_lone_surrogates(json.loads(line))
    except RecursionError:
        raise ValueError("the line is nested too deeply") from None


def _without_lone_surrogates(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case list():
            return [_without_lone_surrogates(item) for item in value]
        case dict():
            return {
                _without_lone_surrogates(key): _without_lone_surrogates(item) for key, item in value.items()
            }
        case _:
            return value


def tokens(usage: Mapping[str, Any], name: str) -> int:
    """Return a token count of a line's usage, or 0 if it is missing. Raises `UnusableUsage`."""
    count = usage.get(name)
    if count is None:
        return 0
    if type(count) is float and count.is_integer():
        count = int(count)
    if type(count) is not int or not 0 <= count <= MOST_TOKENS:
        raise UnusableUsage
    return count


def part_of(usage: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return an object within a line's usage, or an empty one if it is missing. Raises `UnusableUsage`."""
    part = usage.get(name) or {}
    if type(part) is not dict:
        raise UnusableUsage
    return part
