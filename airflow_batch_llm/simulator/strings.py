"""Make strings that fit a pattern or a format of JSON Schema."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from uuid import UUID

_MASK = (1 << 64) - 1


class Draw:
    """Deterministic choices: the same seed makes the same ones in every release."""

    __slots__ = ("_state", "depth")

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK
        self.depth = 0  # levels of nesting around the value that is being made

    def below(self, limit: int) -> int:
        """An integer from 0 up to, not including, the limit."""
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) & _MASK
        return (self._state >> 24) % limit

    def share(self) -> float:
        """A number from 0 up to, not including, 1."""
        return self.below(1 << 30) / (1 << 30)

    def shuffle(self, items: list[object]) -> None:
        for last in range(len(items) - 1, 0, -1):
            other = self.below(last + 1)
            items[last], items[other] = items[other], items[last]


WORDS = (
    "amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "harbor", "inlet", "jasper", "kelp", "lagoon",
    "meadow", "nectar", "orchid", "prairie", "quartz", "river", "summit", "tundra", "umber", "valley", "willow", "yarrow",
)  # fmt: skip


def phrase(draw: Draw, words: int) -> str:
    return " ".join(WORDS[draw.below(len(WORDS))] for _ in range(words))


_PRINTABLE = [chr(code) for code in range(32, 127)]
_CATEGORIES = {
    "CATEGORY_DIGIT": "0123456789",
    "CATEGORY_WORD": "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_",
    "CATEGORY_SPACE": " ",
}
_MORE = 3  # how many times beyond the least something is repeated
_TRIES = 50


def matching(pattern: str, draw: Draw, fewest: int = 0, most: int | None = None) -> str:
    """A string that the pattern finds a match in, with as many characters as are allowed where it can have them."""
    found = ""
    for more in range(_TRIES):
        found = "".join(_walk(node, draw, _MORE + more) for node in _parsed(pattern))
        if fewest <= len(found) <= (len(found) if most is None else most):
            break
    return found


@lru_cache(maxsize=256)
def _parsed(pattern: str) -> Any:
    return re._parser.parse(pattern)  # type: ignore[attr-defined]


def _walk(node: Any, draw: Draw, more: int) -> str:
    operation, value = str(node[0]), node[1]
    match operation:
        case "LITERAL":
            return chr(value)
        case "NOT_LITERAL":
            return _pick([letter for letter in _PRINTABLE if ord(letter) != value], draw)
        case "ANY":
            return _pick(_PRINTABLE, draw)
        case "IN":
            return _pick(_members(value), draw)
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            least, most, body = value
            times = least + draw.below(min(int(most) - least, more) + 1)
            return "".join(_walk(part, draw, more) for _ in range(times) for part in body)
        case "SUBPATTERN":
            return "".join(_walk(part, draw, more) for part in value[-1])
        case "BRANCH":
            branches = value[1]
            return "".join(_walk(part, draw, more) for part in branches[draw.below(len(branches))])
        case _:
            return ""


def _pick(letters: list[str], draw: Draw) -> str:
    return letters[draw.below(len(letters))] if letters else ""


def _members(nodes: Any) -> list[str]:
    letters: list[str] = []
    negated = False
    for operation, value in nodes:
        match str(operation):
            case "NEGATE":
                negated = True
            case "LITERAL":
                letters.append(chr(value))
            case "RANGE":
                letters.extend(chr(code) for code in range(value[0], value[1] + 1))
            case "CATEGORY":
                letters.extend(_category(str(value)))
            case _:
                pass
    return [letter for letter in _PRINTABLE if letter not in letters] if negated else letters


def _category(name: str) -> list[str]:
    if "NOT_" in name:
        without = _CATEGORIES.get(name.replace("NOT_", ""), "")
        return [letter for letter in _PRINTABLE if letter not in without]
    return list(_CATEGORIES.get(name, ""))


_EPOCH = datetime(2024, 1, 1, tzinfo=UTC)


def formatted(name: str | None) -> Callable[[Draw], str] | None:
    """The maker of strings in this format; None for a format that is unknown or says nothing about the text."""
    return _MAKERS.get(name or "")


def _moment(draw: Draw) -> datetime:
    return _EPOCH + timedelta(seconds=draw.below(3 * 365 * 86_400))


def _word(draw: Draw) -> str:
    return WORDS[draw.below(len(WORDS))]


_MAKERS: dict[str, Callable[[Draw], str]] = {
    "date-time": lambda draw: _moment(draw).isoformat(),
    "date": lambda draw: _moment(draw).date().isoformat(),
    "time": lambda draw: _moment(draw).timetz().isoformat(),
    "duration": lambda draw: f"P{1 + draw.below(30)}DT{draw.below(24)}H",
    "email": lambda draw: f"{_word(draw)}{draw.below(1000)}@example.com",
    "hostname": lambda draw: f"{_word(draw)}.example.com",
    "uri": lambda draw: f"https://example.com/{_word(draw)}/{draw.below(1000)}",
    "ipv4": lambda draw: f"192.0.2.{draw.below(256)}",
    "ipv6": lambda draw: f"2001:db8::{draw.below(65_536):x}",
    "uuid": lambda draw: str(UUID(int=(draw.below(1 << 40) << 80) | draw.below(1 << 40), version=4)),
}
