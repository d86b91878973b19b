"""Result lines as bytes: where one ends, what JSON it holds, and how much of a provider's message is kept.

A line ends at the byte `\\n` and nowhere else: an answer may hold U+2028 or U+0085 and is still one line.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import orjson

from airflow_batch_llm.core.model import MOST_TOKENS
from airflow_batch_llm.providers.failures import redacted, without_uris

MESSAGE_LENGTH = 500
_LINES_AT_ONCE = 100

#: A result line is held in memory up to here. The longest real one repeats a request of 20 MB beside its answer.
MOST_LINE_BYTES = 64 << 20


class UnusableUsage(ValueError):
    """A line's token count is not a count: a text, a fraction, below zero, or more than any answer has."""

    def __init__(self) -> None:
        super().__init__("a token count of the line is not a count")


def split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a stream of chunks, without line ends and without empty lines.

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
    """The same lines with their ends, many of them in a block."""
    rest = iter(lines)
    while block := list(islice(rest, _LINES_AT_ONCE)):
        yield b"\n".join(block) + b"\n"


def parse_line(line: bytes) -> dict[str, Any]:
    """The JSON object of a line; `ValueError` if it holds none. A lone surrogate in an answer becomes U+FFFD."""
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


def brief(message: object) -> str | None:
    """As much of a provider's message about a row as is kept, without keys and URIs; None if there is none."""
    return without_uris(redacted(str(message)))[:MESSAGE_LENGTH] if message else None


def tokens(usage: Mapping[str, Any], name: str) -> int:
    """A token count of a line's usage, 0 where it has none. Raises `UnusableUsage`."""
    count = usage.get(name)
    if count is None:
        return 0
    if type(count) is float and count.is_integer():
        count = int(count)
    if type(count) is not int or not 0 <= count <= MOST_TOKENS:
        raise UnusableUsage
    return count


def part_of(usage: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object within a line's usage, empty where it has none. Raises `UnusableUsage`."""
    part = usage.get(name) or {}
    if type(part) is not dict:
        raise UnusableUsage
    return part
