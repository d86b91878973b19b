"""Request bodies and line files, read as streams: what is held is one element or one line, never the whole.

A JSON text that parses as an object is never the beginning of a longer one, so the elements of the `requests` array
are found by letting the standard decoder read one value from where the last one ended.
"""

import codecs
import json
import re
import shutil
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import orjson

MEGABYTE = 1 << 20
_ELEMENT_LIMIT = 64 * MEGABYTE
_READ = json.JSONDecoder().raw_decode
_SPACE = re.compile(r"[ \t\r\n]*")
_BETWEEN = re.compile(r"[ \t\r\n]*([,\]])")


class BodyError(ValueError):
    """The body is not the JSON that it must be."""


class Element(NamedTuple):
    """One element of the array: its bytes on one line, and the value that they mean."""

    line: bytes
    value: Any


class ArraySplitter:
    """Takes the body `{"requests": [ … ]}` in pieces and gives back the elements that have become complete."""

    def __init__(self, key: str = "requests") -> None:
        self._key = key
        self._text = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._inside = False
        self._after = False
        self._stuck = 0
        self._empty = True

    def feed(self, chunk: bytes) -> Iterator[Element]:
        """Return the elements that end in this piece."""
        try:
            self._text += self._decoder.decode(chunk)
        except UnicodeDecodeError as error:
            raise BodyError("the body is not UTF-8") from error
        if len(self._text) < 2 * self._stuck:
            return  # an element that did not end yet is read again only when there is twice as much of it
        if len(self._text) > _ELEMENT_LIMIT:
            raise BodyError("an element of the body does not end")
        position = 0 if self._inside else self._open()
        if self._inside:
            position = yield from self._elements(position)
        self._text = self._text[position:]
        self._stuck = len(self._text) if self._inside and not self._after else 0

    def finish(self) -> Iterator[Element]:
        """Say that the body is complete. The elements still held; raises if it is not complete."""
        self._stuck = 0
        if not self._after:
            yield from self.feed(b"")
        if not self._after:
            raise BodyError(f"the body is not a JSON object with a list of {self._key}")

    def _open(self) -> int:
        """Step over what comes before the array. Returns where its first element begins."""
        head = re.match(r"\s*\{\s*", self._text)
        if not head:
            if self._text.strip():
                raise BodyError("the body is not a JSON object")
            return 0
        position = head.end()
        try:
            while True:
                key, position = _READ(self._text, position)
                position = _expect(self._text, position, ":")
                if key == self._key:
                    position = _expect(self._text, position, "[")
                    self._inside = True
                    return position
                _, position = _READ(self._text, position)
                position = _expect(self._text, position, ",")
        except (json.JSONDecodeError, IndexError):
            return 0  # not complete yet, or `finish` will say so

    def _elements(self, position: int) -> Generator[Element, None, int]:
        text = self._text
        position = _after_space(text, position)
        if self._empty and text[position : position + 1] == "]":
            self._after = True
        while not self._after:
            try:
                value, end = _READ(text, position)
            except (json.JSONDecodeError, RecursionError):
                break
            between = _BETWEEN.match(text, end)
            if not between:
                if text[end:].strip():
                    raise BodyError("the elements of the body are not divided by commas")
                break
            self._empty = False
            yield Element(_one_line(text[position:end], value), value)
            position = _after_space(text, between.end())
            self._after = between[1] == "]"
        return position


def _after_space(text: str, position: int) -> int:
    space = _SPACE.match(text, position)
    assert space is not None
    return space.end()


def _expect(text: str, position: int, mark: str) -> int:
    """Step over blanks, the mark and blanks. IndexError if the text ends before."""
    position = _after_space(text, position)
    if text[position] != mark:
        raise BodyError("the body is not a JSON object")
    return _after_space(text, position + 1)


def _one_line(text: str, value: Any) -> bytes:
    if "\n" in text or "\r" in text:
        text = json.dumps(value)
    return text.encode()


def parse(line: bytes) -> Any:
    """Return the value of a JSON line. Escaped lone surrogates, which orjson refuses, become question marks."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        lenient = json.dumps(json.loads(line), ensure_ascii=False).encode("utf-8", "replace")
        return orjson.loads(lenient)


def lines(path: Path) -> Iterator[bytes]:
    """Return the lines of a file that are not blank, without their ends. Lines end at the byte \\n only."""
    with path.open("rb", buffering=MEGABYTE) as file:
        for line in file:
            if stripped := line.strip():
                yield stripped


def count_lines(path: Path) -> int:
    return sum(1 for _ in lines(path))


def copy_file(source: IO[bytes], target: Path) -> None:
    """Write what has arrived into a file."""
    with target.open("wb") as file:
        shutil.copyfileobj(source, file, MEGABYTE)


async def file_chunks(path: Path) -> AsyncIterator[bytes]:
    """Read the bytes of a file in a thread, so that the event loop goes on."""
    import anyio

    async with await anyio.open_file(path, "rb") as file:
        while chunk := await file.read(MEGABYTE):
            yield chunk
