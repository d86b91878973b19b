"""Make values that conform to a JSON Schema, without a model.

A schema is compiled once into nested functions from `Draw` to a value. Recursive schemas end because, below a certain
depth, optional properties are left out, lists stay as short as they may, and the branch without a reference is taken.
It reads Google's spelling (upper-case types, `nullable`), too.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any
from uuid import UUID

import orjson

from airflow_batch_llm.core.answer_schema import DECIMAL, DECIMAL_PLACES, MAX_DIGITS
from airflow_batch_llm.core.schema_rules import rules_in_words

_MASK = (1 << 64) - 1


class Draw:
    """Makes deterministic choices: the same seed gives the same ones in every release."""

    __slots__ = ("_state", "depth")

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK
        self.depth = 0  # levels of nesting around the value that is being made

    def below(self, limit: int) -> int:
        """Return an integer from 0 up to, not including, the limit."""
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) & _MASK
        return (self._state >> 24) % limit

    def share(self) -> float:
        """Return a number from 0 up to, not including, 1."""
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
    """Return a string that the pattern finds a match in, with as many characters as are allowed where it can have them."""
    found = ""
    for tries in range(_TRIES):
        more = _MORE + tries if most is None else min(_MORE + tries, max(most, _MORE))
        found = "".join(_walk(node, draw, more) for node in _parsed(pattern))
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
    """Return the maker of strings in this format, or None if the format is unknown or does not restrict the text."""
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


Maker = Callable[[Draw], Any]
_DEEP = 4
_TEXTUAL = {"minLength", "maxLength", "pattern", "format"}
_NUMERIC = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}


def conforming(schema: Mapping[str, Any], seed: int) -> Any:
    """Return a value that the schema accepts; the same for the same seed."""
    return _compiled(orjson.dumps(schema))(Draw(seed))


@lru_cache(maxsize=256)
def _compiled(document: bytes) -> Maker:
    schema = orjson.loads(document)
    return _Compiler(schema).maker(schema)


class _Compiler:
    """Compiles the parts of one schema document, whose references it resolves."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._known: dict[str, Maker] = {}

    def maker(self, schema: Any) -> Maker:
        if not isinstance(schema, dict) or not schema:
            return lambda draw: phrase(draw, 2)
        # A rule that a vendor's schema cannot express is in the description.
        schema = {**rules_in_words(schema.get("description")), **schema}
        if "$ref" in schema:
            return self._reference(schema)
        if "const" in schema:
            constant = schema["const"]
            return lambda _: constant
        if "enum" in schema:
            options = schema["enum"]
            return lambda draw: options[draw.below(len(options))]
        for word in ("anyOf", "oneOf"):
            if word in schema:
                rest = {key: value for key, value in schema.items() if key != word}
                return self._union([_merged(rest, branch) for branch in schema[word]])
        if "allOf" in schema:
            rest = {key: value for key, value in schema.items() if key != "allOf"}
            for part in schema["allOf"]:
                rest = _merged(rest, self._resolved(part))
            return self.maker(rest)
        return self._typed(schema)

    def _typed(self, schema: dict[str, Any]) -> Maker:
        kinds = _kinds(schema)
        if len(kinds) > 1:
            return self._union([{**schema, "type": kind, "nullable": False} for kind in kinds])
        match kinds[0]:
            case "object":
                return self._object(schema)
            case "array":
                return self._array(schema)
            case "integer":
                return _integer(schema)
            case "number":
                return _number(schema)
            case "boolean":
                return lambda draw: draw.below(2) == 1
            case "null":
                return lambda _: None
            case _:
                return _string(schema)

    def _resolved(self, schema: Any) -> Any:
        while isinstance(schema, dict) and "$ref" in schema:
            target = self._root
            for step in str(schema["$ref"]).lstrip("#").strip("/").split("/"):
                if step:
                    target = target[step.replace("~1", "/").replace("~0", "~")]
            schema = _merged({key: value for key, value in schema.items() if key != "$ref"}, target)
        return schema

    def _reference(self, schema: dict[str, Any]) -> Maker:
        """Compiled when it is first followed, since a schema may refer to itself."""
        name = orjson.dumps(schema).decode()

        def follow(draw: Draw) -> Any:
            if name not in self._known:
                self._known[name] = self.maker(self._resolved(schema))
            draw.depth += 1
            value = self._known[name](draw)
            draw.depth -= 1
            return value

        return follow

    def _union(self, branches: Sequence[Any]) -> Maker:
        makers = [self.maker(branch) for branch in branches]
        shallow = min(range(len(branches)), key=lambda index: _weight(self._resolved(branches[index])))

        def choose(draw: Draw) -> Any:
            chosen = draw.below(len(makers))
            return makers[shallow if draw.depth > _DEEP else chosen](draw)

        return choose

    def _object(self, schema: dict[str, Any]) -> Maker:
        required = set(schema.get("required", ()))
        properties = [
            (name, self.maker(part), name in required) for name, part in schema.get("properties", {}).items()
        ]
        extra = schema.get("additionalProperties")
        wanted = int(schema.get("minProperties", 0))
        if isinstance(extra, dict) and not properties:
            wanted = max(wanted, min(2, int(schema.get("maxProperties", 2))))
        filler = self.maker(extra if isinstance(extra, dict) else {"type": "string"})

        def make(draw: Draw) -> Any:
            draw.depth += 1
            value = {
                name: part(draw)
                for name, part, needed in properties
                if needed or (draw.depth <= _DEEP and draw.below(4) > 0)
            }
            for number in range(wanted - len(value) if draw.depth <= _DEEP else 0):
                value[f"key_{number + 1}"] = filler(draw)
            draw.depth -= 1
            return value

        return make

    def _array(self, schema: dict[str, Any]) -> Maker:
        first = [self.maker(part) for part in schema.get("prefixItems", ())]
        rest = self.maker(schema.get("items", {}))
        fewest = int(schema.get("minItems", 0))
        most = int(schema.get("maxItems", max(fewest, 3)))
        if schema.get("items") is False:
            most = len(first)
        spread = max(0, min(most - fewest, 3))
        distinct = bool(schema.get("uniqueItems"))

        def make(draw: Draw) -> Any:
            draw.depth += 1
            length = fewest + (draw.below(spread + 1) if draw.depth <= _DEEP else 0)
            values = [part(draw) for part in first[: max(length, fewest)]]
            tries = 0
            while len(values) < length and tries < 50 * length:
                value = rest(draw)
                tries += 1
                if not (distinct and value in values):
                    values.append(value)
            draw.depth -= 1
            return values

        return make


def _kinds(schema: Mapping[str, Any]) -> list[str]:
    declared = schema.get("type")
    if declared is None:
        declared = _guessed(schema)
    kinds = [str(kind).lower() for kind in (declared if isinstance(declared, list) else [declared])]
    return [*kinds, "null"] if schema.get("nullable") and "null" not in kinds else kinds


def _guessed(schema: Mapping[str, Any]) -> str:
    if "properties" in schema or "additionalProperties" in schema:
        return "object"
    if "items" in schema or "prefixItems" in schema:
        return "array"
    return "number" if _NUMERIC & schema.keys() and not _TEXTUAL & schema.keys() else "string"


def _weight(schema: Any) -> int:
    """Return the weight of a branch: null is the lightest, and a reference is the heaviest."""
    if not isinstance(schema, dict):
        return 0
    text = orjson.dumps(schema)
    return (b'"$ref"' in text) * 1_000_000 + (schema.get("type") != "null") * 1000 + min(len(text), 999)


def _merged(one: Mapping[str, Any], other: Any) -> dict[str, Any]:
    if not isinstance(other, dict):
        return dict(one)
    merged = {**other, **{key: value for key, value in one.items() if key not in ("title", "description")}}
    if "properties" in one and "properties" in other:
        merged["properties"] = {**other["properties"], **one["properties"]}
    if "required" in one and "required" in other:
        merged["required"] = [*other["required"], *one["required"]]
    return merged


def _bounds(schema: Mapping[str, Any], span: float, step: float) -> tuple[float, float]:
    """Return the least and the greatest value; `step` is the distance that an exclusive bound asks for."""
    lows = [float(schema["minimum"])] if "minimum" in schema else []
    highs = [float(schema["maximum"])] if "maximum" in schema else []
    # Draft 4 wrote a boolean beside the bound; newer drafts write the bound itself.
    match schema.get("exclusiveMinimum"):
        case bool(strict):
            lows = [low + step * strict for low in lows]
        case int() | float() as bound:
            lows.append(bound + step)
        case _:
            pass
    match schema.get("exclusiveMaximum"):
        case bool(strict):
            highs = [high - step * strict for high in highs]
        case int() | float() as bound:
            highs.append(bound - step)
        case _:
            pass
    high = min(highs) if highs else None
    low = max(lows) if lows else (0.0 if high is None or high >= 0 else high - span)
    return low, low + span if high is None else high


def _integer(schema: dict[str, Any]) -> Maker:
    low, high = _bounds(schema, 100, 1)
    step = int(schema.get("multipleOf", 1)) or 1
    first, last = math.ceil(low / step), math.floor(high / step)
    span = max(last - first, 0) + 1
    return lambda draw: (first + draw.below(span)) * step


def _number(schema: dict[str, Any]) -> Maker:
    if schema.get("format") == DECIMAL:
        schema = _decimal(schema)
    if step := schema.get("multipleOf"):
        low, high = _bounds(schema, 100 * step, step)
        exact = Decimal(str(step))
        first, last = math.ceil(Decimal(str(low)) / exact), math.floor(Decimal(str(high)) / exact)
        span = max(last - first, 0) + 1
        return lambda draw: float((first + draw.below(span)) * exact)
    wide: dict[str, Any] = {
        key: schema[key]
        for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
        if key in schema
    }
    low, high = _bounds(wide, 100, 0)
    # A quarter of the way in, the value stays off both ends, so exclusive bounds hold as well.
    return lambda draw: low + (high - low) * (1 + 2 * draw.below(1024) / 1024) / 4


def _decimal(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a decimal in the words that JSON Schema has: a step and a greatest value."""
    places = int(schema.get(DECIMAL_PLACES, 2))
    step = Decimal(1).scaleb(-places)
    most = float(Decimal(1).scaleb(int(schema.get(MAX_DIGITS, 12)) - places) - step)
    return {"multipleOf": float(step), **schema, "maximum": min(most, schema.get("maximum", most))}


def _string(schema: dict[str, Any]) -> Maker:
    if schema.get("format") == DECIMAL and "pattern" not in schema:
        number = _number(schema)
        return lambda draw: format(Decimal(str(number(draw))), "f")
    fewest, most = int(schema.get("minLength", 0)), schema.get("maxLength")
    if pattern := schema.get("pattern"):
        return lambda draw: matching(pattern, draw, fewest, most)
    if known := formatted(schema.get("format")):
        return known

    def make(draw: Draw) -> str:
        text = phrase(draw, 2)
        while len(text) < fewest:
            text += " " + phrase(draw, 2)
        return text if most is None else text[: int(most)]

    return make
