"""The filter language of Vertex's lists, as far as batch prediction jobs have it.

Comparisons of `display_name`, `model_display_name`, `state`, `create_time` and `labels.<key>`, joined by AND, OR
and NOT, with parentheses.
"""

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

Test = Callable[[Mapping[str, Any]], bool]
_TOKEN = re.compile(r'\s*(?:(\(|\))|(!=|<=|>=|=|<|>|:)|"((?:[^"\\]|\\.)*)"|([^\s()!=<>:"]+(?::\d[^\s()]*)?))')
_FIELDS = {
    "display_name": "displayName",
    "model_display_name": "model",
    "state": "state",
    "create_time": "createTime",
}


class FilterError(ValueError):
    """The filter cannot be understood."""


def compile_filter(text: str) -> Test:
    """A test of jobs in their wire form."""
    if not text.strip():
        return lambda _: True
    parser = _Parser(text)
    test = parser.either()
    if parser.rest():
        raise FilterError(f"unexpected {parser.rest()!r} in the filter")
    return test


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        position = 0
        text = text.rstrip()
        while position < len(text):
            found = _TOKEN.match(text, position)
            if not found:
                raise FilterError(f"cannot read the filter at {text[position:]!r}")
            for kind, value in zip(("mark", "operator", "text", "word"), found.groups(), strict=True):
                if value is not None:
                    self._tokens.append((kind, value))
            position = found.end()

    def rest(self) -> str:
        return self._tokens[0][1] if self._tokens else ""

    def either(self) -> Test:
        tests = [self.both()]
        while self._take("OR"):
            tests.append(self.both())
        return lambda job: any(test(job) for test in tests)

    def both(self) -> Test:
        tests = [self.one()]
        while self._take("AND") or (self._tokens and self.rest() not in ("OR", ")")):
            tests.append(self.one())
        return lambda job: all(test(job) for test in tests)

    def one(self) -> Test:
        if self._take("NOT"):
            inner = self.one()
            return lambda job: not inner(job)
        if self._take("("):
            inner = self.either()
            if not self._take(")"):
                raise FilterError("a parenthesis is not closed")
            return inner
        return self._comparison()

    def _comparison(self) -> Test:
        if len(self._tokens) < 3:
            raise FilterError("the filter breaks off")
        (_, field), (kind, operator), (_, wanted) = self._tokens[:3]
        del self._tokens[:3]
        if kind != "operator":
            raise FilterError(f"{operator!r} is not an operator")
        if field.startswith("labels."):
            return _label(field.removeprefix("labels.").strip('"'), operator, wanted)
        if field not in _FIELDS:
            raise FilterError(f"there is no field {field!r} to filter by")
        return _field(_FIELDS[field], operator, wanted)

    def _take(self, word: str) -> bool:
        if self._tokens and self._tokens[0] in (("word", word), ("mark", word)):
            del self._tokens[0]
            return True
        return False


def _label(key: str, operator: str, wanted: str) -> Test:
    if operator == ":":
        return lambda job: key in job["labels"]
    if operator not in ("=", "!="):
        raise FilterError(f"labels cannot be compared by {operator}")
    return lambda job: (job["labels"].get(key) == wanted) == (operator == "=")


def _field(name: str, operator: str, wanted: str) -> Test:
    if name == "createTime":
        moment = datetime.fromisoformat(wanted)
        return lambda job: _compare(datetime.fromisoformat(job[name]), operator, moment)
    if operator == ":":
        pattern = re.compile(".*".join(re.escape(part) for part in wanted.split("*")))
        return lambda job: pattern.search(job[name]) is not None
    if operator not in ("=", "!="):
        raise FilterError(f"{name} cannot be compared by {operator}")
    return lambda job: (job[name] == wanted) == (operator == "=")


def _compare(value: datetime, operator: str, other: datetime) -> bool:
    match operator:
        case "=":
            return value == other
        case "!=":
            return value != other
        case "<":
            return value < other
        case "<=":
            return value <= other
        case ">":
            return value > other
        case ">=":
            return value >= other
        case _:
            raise FilterError(f"create_time cannot be compared by {operator}")
