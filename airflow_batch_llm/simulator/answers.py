"""Values that conform to a JSON Schema, made without a model.

A schema is compiled once into nested functions from `Draw` to a value. Recursive schemas end because, below a certain
depth, optional properties are left out, lists stay as short as they may, and the branch without a reference is taken.
Google's spelling (upper-case types, `nullable`) is understood too.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any

import orjson

from airflow_batch_llm.core.answer_schema import DECIMAL, DECIMAL_PLACES, MAX_DIGITS
from airflow_batch_llm.core.schema_rules import rules_in_words
from airflow_batch_llm.simulator.strings import Draw, formatted, matching, phrase

Maker = Callable[[Draw], Any]
_DEEP = 4
_TEXTUAL = {"minLength", "maxLength", "pattern", "format"}
_NUMERIC = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}


def conforming(schema: Mapping[str, Any], seed: int) -> Any:
    """A value that the schema accepts; the same for the same seed."""
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
        # A rule that a vendor's schema has no word for is told to the model in the description.
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
    """The least and the greatest value; `step` is the distance that an exclusive bound asks for."""
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
    """The schema of a decimal in the words that JSON Schema has: a step and a greatest value."""
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
