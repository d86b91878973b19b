"""The rules of Vertex's importer, which reads a request file as if it were a table.

One line that breaks them fails the whole job after it was accepted, so they are checked while encoding. All lines
come from one template, so a template that keeps the rules keeps them for the file: there is one type per path.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,299}")

_MAX_DEPTH = 15


class Violation(NamedTuple):
    """Where a line breaks which rule."""

    path: str
    reason: str


def violations(line: Mapping[str, Any]) -> Iterator[Violation]:
    """What the importer would fail the job for, in the order of the line."""
    yield from _Importer().column("", line, depth=1)


class _Importer:
    """A walk over one line that remembers the type of each path."""

    def __init__(self) -> None:
        self._kinds: dict[str, str] = {}

    def column(self, path: str, value: object, depth: int) -> Iterator[Violation]:
        kind = _kind(value)
        if kind == "null":
            yield Violation(path, "it is null; leave it out")
            return
        known = self._kinds.setdefault(path, kind)
        if known != kind:
            yield Violation(path, f"it is {known} in one place and {kind} in another")
        if isinstance(value, Mapping):
            yield from self._record(path, value, depth)
        elif isinstance(value, list):
            yield from self._elements(path, value, depth)

    def _record(self, path: str, value: Mapping[str, Any], depth: int) -> Iterator[Violation]:
        if not value:
            yield Violation(path, "it is an empty object; give it at least one key")
        if depth > _MAX_DEPTH:
            yield Violation(path, f"it lies deeper than {_MAX_DEPTH} levels; flatten it")
            return
        folded: set[str] = set()
        for key, inner in value.items():
            below = f"{path}.{key}" if path else key
            if not _COLUMN.fullmatch(key):
                yield Violation(below, "its name may hold only letters, digits and underscores")
            if key.lower() in folded:
                yield Violation(below, "its name differs from another only in upper and lower case")
            folded.add(key.lower())
            yield from self.column(below, inner, depth + 1)

    def _elements(self, path: str, values: list[Any], depth: int) -> Iterator[Violation]:
        inside = f"{path}[]"
        for value in values:
            if isinstance(value, list):
                yield Violation(path, "it is a list of lists")
            else:
                yield from self.column(inside, value, depth)


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "an object"
