"""Turn an answer's text into typed values, by the stored output type alone.

An answer that does not fit is `Invalid`, with the place where it does not fit: nothing is guessed. A message never holds a
value of the answer, nor a property name that the answer made up.

A person's answer is written as the text that a model would have given, so that one parser judges both.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation, localcontext
from enum import StrEnum
from functools import partial
from itertools import repeat
from operator import call
from typing import Any, assert_never

import orjson

from airflow_batch_llm.core.answer_schema import branches_at
from airflow_batch_llm.core.model import ColumnType
from airflow_batch_llm.core.output_type import AnswerKind, Column, OutputType
from airflow_batch_llm.core.request import canonical
from airflow_batch_llm.core.schema_rules import AddedNulls, walk

_FENCE, _LANGUAGE = "```", re.compile(r"[a-zA-Z]*[ \t]*")
#: A number as JSON and people write it. An exponent with more digits is not a real amount.
_DECIMAL = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d{1,4})?", re.ASCII)
_LEAST, _MOST = -(2**63), 2**63 - 1  # of 64 bits
_MAX_MESSAGE = 300


class AnswerFault(StrEnum):
    """The reason for which an answer does not fit the output type."""

    EMPTY = "empty_answer"
    NOT_JSON = "not_json"
    SCHEMA = "schema_mismatch"
    LABEL = "unknown_label"
    RANGE = "value_out_of_range"  # of its column's type: an integer beyond 64 bits, a date that is none


@dataclass(frozen=True, slots=True)
class Answer:
    """The values of an answer, in the order of the output type's columns."""

    values: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Invalid:
    """An answer that does not fit, and where."""

    code: AnswerFault
    message: str


@dataclass(frozen=True, slots=True)
class AnswerParser:
    """Judges many answers by one compiled output type."""

    _judge: Callable[[str], Answer | Invalid]
    _is_text: bool = False

    @classmethod
    def of(cls, output_type: OutputType) -> "AnswerParser":
        """Compile the schema once."""
        match output_type.kind:
            case AnswerKind.TEXT:
                return cls(_text, _is_text=True)
            case AnswerKind.VECTOR:
                return cls(partial(_vector, dimensions=output_type.dimensions))
            case AnswerKind.LABEL:
                return cls(_Labels(output_type))
            case AnswerKind.OBJECT | AnswerKind.VALUE:
                return cls(_Json(output_type))

    def item_text(self, answer: str) -> str:
        """Return the answer to one item of a packed request as text. `answer` is JSON, in which free text is quoted."""
        text = json.loads(answer) if self._is_text else answer
        return text if isinstance(text, str) else answer

    def parse(self, text: str) -> Answer | Invalid:
        """Return the answer's values, or the reason why it has none."""
        if not text or text.isspace():
            return Invalid(AnswerFault.EMPTY, "The answer is empty.")
        return self._judge(text)


def _text(text: str) -> Answer:
    return Answer((storable(text),))


def _vector(text: str, dimensions: int | None) -> Answer | Invalid:
    try:
        numbers = orjson.loads(text)
    except orjson.JSONDecodeError:
        numbers = None
    if not isinstance(numbers, list) or not all(type(number) in (int, float) for number in numbers):
        return Invalid(AnswerFault.NOT_JSON, "The answer is not a list of numbers.")
    if len(numbers) != (dimensions or len(numbers)) or not numbers:
        return Invalid(
            AnswerFault.SCHEMA, f"The embedding has {len(numbers)} dimensions, not {dimensions or 'some'}."
        )
    return Answer(([float(number) for number in numbers],))


class _Labels:
    """Finds the label that an answer means: the exact text, or one that differs in case and surrounding space only."""

    def __init__(self, output_type: OutputType) -> None:
        self._path = output_type.columns[0].path
        self._exact = {label: Answer((label,)) for label in output_type.labels}
        folded = [label.strip().casefold() for label in output_type.labels]
        self._folded = {
            fold: self._exact[label]
            for fold, label in zip(folded, output_type.labels, strict=True)
            if folded.count(fold) == 1
        }

    def __call__(self, text: str) -> Answer | Invalid:
        said = _unfenced(text)
        try:
            label = orjson.loads(said)
        except orjson.JSONDecodeError:
            label = said  # the bare label, from a model that was not bound to JSON
        if isinstance(label, dict):
            label = _at(label, self._path)
        if not isinstance(label, str):
            return Invalid(AnswerFault.SCHEMA, f"The answer has no text at {_place(self._path)}.")
        found = self._exact.get(label) or self._folded.get(label.strip().casefold())
        return found or Invalid(AnswerFault.LABEL, "The answer is none of the labels.")


class _Json:
    """Validates an answer against the schema, and extracts its columns."""

    def __init__(self, output_type: OutputType) -> None:
        import jsonschema_rs

        assert output_type.schema is not None
        self._validator = jsonschema_rs.validator_for(dict(output_type.schema))
        self._nulls = AddedNulls(output_type.schema)
        self._columns = output_type.columns
        self._readers = [_reader(column) for column in output_type.columns]
        self._exact = [column.type is ColumnType.DECIMAL for column in output_type.columns]
        self._names = frozenset(_property_names(output_type.schema))

    def __call__(self, text: str) -> Answer | Invalid:
        try:
            text = _unfenced(text)
            value = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            return Invalid(
                AnswerFault.NOT_JSON, f"The answer is not JSON (line {error.lineno}, column {error.colno})."
            )
        if not isinstance(value, dict):
            return Invalid(AnswerFault.SCHEMA, "The answer is not a JSON object.")
        try:
            return self._fitting(value, text)
        except (ValueError, RecursionError):
            return Invalid(AnswerFault.SCHEMA, "The answer is nested too deeply.")

    def _fitting(self, value: dict[str, Any], text: str) -> Answer | Invalid:
        if not self._validator.is_valid(value):
            # A request may require every property, and allow null for the optional ones.
            value = self._nulls.drop(value)
            if not self._validator.is_valid(value):
                return Invalid(AnswerFault.SCHEMA, self._mismatch(value))
        return self._values(value, text)

    def _values(self, value: Mapping[str, Any], text: str) -> Answer | Invalid:
        sources: Iterable[Mapping[str, Any]] = repeat(value)
        if any(self._exact):
            # Parsing a number as a float loses digits, so a decimal is parsed again from its text.
            exact = json.loads(text, parse_float=str, parse_int=str)
            sources = [exact if is_exact else value for is_exact in self._exact]
        values: list[object] = []
        try:
            values.extend(map(call, self._readers, sources))
        except (ValueError, OverflowError, TypeError, AttributeError):
            return Invalid(AnswerFault.RANGE, _not_a(self._columns[len(values)]))
        return Answer(tuple(values))

    def _mismatch(self, value: object) -> str:
        places = []
        for error in self._validator.iter_errors(value):
            rule = next(
                (str(key) for key in reversed(error.schema_path) if not isinstance(key, int)), "schema"
            )
            missing = getattr(error.kind, "property", None) if rule == "required" else None
            names = (*error.instance_path, *([missing] if missing is not None else []))
            places.append(f"{_place(names, self._names)} breaks '{rule}'")
        return f"The answer does not fit its schema: {'; '.join(places)}"[:_MAX_MESSAGE]


def _unfenced(text: str) -> str:
    """Return the text without white space around it and without one code fence around all of it."""
    bare = text.strip()
    if not (bare.startswith(_FENCE) and bare.endswith(_FENCE)):
        return bare
    language, newline, inside = bare[len(_FENCE) : -len(_FENCE)].partition("\n")
    return inside.strip() if newline and _LANGUAGE.fullmatch(language) else bare


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def _property_names(schema: Mapping[str, Any]) -> Iterator[str]:
    for _, node, _ in walk(schema):
        yield from node.get("properties", ())
        yield from node.get("required", ())


def _place(path: tuple[str | int, ...], names: frozenset[str] | None = None) -> str:
    """Return a path such as `$.buyer.lines[2].price`.

    A name that is not in the schema comes from the answer, and is shown as `*`.
    """
    shown = (
        f"[{part}]" if isinstance(part, int) else f".{part}" if names is None or part in names else ".*"
        for part in path
    )
    return "$" + "".join(shown)


def _not_a(column: Column) -> str:
    return f"The answer at {_place(column.path)} is not a {column.type.value} that a table can hold."


def storable(text: str) -> str:
    """Return the text as every database takes it: U+0000 and lone surrogates, which some cannot hold, become U+FFFD and `?`."""
    whole = text if text.isascii() else text.encode(errors="replace").decode()
    return whole.replace("\0", "\ufffd")


def _integer(value: Any) -> int:
    if type(value) is int and _LEAST <= value <= _MOST:
        return value
    whole = int(value)
    rounded = isinstance(value, float) and abs(value) > 2**53  # digits beyond 64 bits were lost in reading
    if whole != value or not _LEAST <= whole <= _MOST or rounded:
        raise ValueError
    return whole


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _decimal(value: str, digits: tuple[int, int]) -> Decimal:
    """Return the number with all of its digits. Raises an error if a column of this many digits would round it."""
    most, places = digits
    written = value.strip()
    if not _DECIMAL.fullmatch(written):
        raise ValueError
    number = Decimal(written)
    with localcontext() as context:
        context.prec, context.traps[InvalidOperation] = most, False
        exact = number.quantize(Decimal(1).scaleb(-places))
    if exact != number:  # also where it is not a number, since it has more digits than that
        raise ValueError
    return exact


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _timestamp(value: str) -> datetime:
    """Return the time in UTC. A time without a zone counts as UTC."""
    moment = datetime.fromisoformat(value.strip())
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _date(value: str) -> date:
    return date.fromisoformat(value.strip())


def _json(value: object) -> str:
    text = canonical(value).decode()
    return canonical(_storable_within(value)).decode() if "\\u0000" in text else text


def _storable_within(value: object) -> object:
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, list):
        return [_storable_within(item) for item in value]
    if isinstance(value, dict):
        return {storable(name): _storable_within(item) for name, item in value.items()}
    return value


def _reader(column: Column) -> Callable[[Mapping[str, Any]], object]:
    """Return a function that extracts the column's value from a valid answer. It raises for a value of another type."""
    convert, path = _converter(column), column.path
    if len(path) > 1:
        return lambda answer: None if (found := _at(answer, path)) is None else convert(found)
    (name,) = path
    return lambda answer: None if (found := answer.get(name)) is None else convert(found)


def _converter(column: Column) -> Callable[[Any], object]:
    match column.type:
        case ColumnType.STRING:
            return storable
        case ColumnType.INTEGER:
            return _integer
        case ColumnType.NUMBER:
            return _number
        case ColumnType.DECIMAL:
            return partial(_decimal, digits=column.digits)
        case ColumnType.BOOLEAN:
            return _boolean
        case ColumnType.TIMESTAMP:
            return _timestamp
        case ColumnType.DATE:
            return _date
        case ColumnType.JSON:
            return _json
        case ColumnType.VECTOR:
            raise AssertionError("an embedding is its answer's only column, and is read by _vector")
        case _:
            assert_never(column.type)


@dataclass(frozen=True, slots=True)
class HumanAnswerParser:
    """Judges the answers of people by one compiled output type."""

    _type: OutputType
    _parser: AnswerParser

    @classmethod
    def of(cls, output_type: OutputType) -> "HumanAnswerParser":
        """Compile the output type, or the part of it that the columns show."""
        shown = _as_shown(output_type)
        return cls(shown, AnswerParser.of(shown))

    def parse(self, values: Sequence[object]) -> Answer | Invalid:
        """Return the typed values of the answer's columns, or the reason why they are not an answer.

        Values may come from a driver.
        """
        if all(value is None for value in values):
            return Invalid(AnswerFault.EMPTY, "The answer is empty.")
        try:
            return self._parser.parse(self._text(values))
        except (orjson.JSONEncodeError, ValueError):
            return Invalid(AnswerFault.NOT_JSON, "A value of the answer cannot be written as JSON.")

    def _text(self, values: Sequence[object]) -> str:
        match self._type.kind:
            case AnswerKind.TEXT:
                return str(values[0])
            case AnswerKind.VECTOR:
                return values[0] if isinstance(values[0], str) else orjson.dumps(values[0]).decode()
            case AnswerKind.LABEL | AnswerKind.OBJECT | AnswerKind.VALUE:
                return orjson.dumps(self._document(values)).decode()
            case _:
                assert_never(self._type.kind)

    def _document(self, values: Sequence[object]) -> Mapping[str, Any]:
        document: dict[str, Any] = {}
        for column, value in zip(self._type.columns, values, strict=True):
            document[column.path[0]] = None if value is None else json_value(value, column.type)
        return document


def _as_shown(output_type: OutputType) -> OutputType:
    """Return the output type as far as its columns show it: an object with a property for each column."""
    schema = output_type.schema
    if schema is None or {column.path for column in output_type.columns} == {
        (name,) for name in schema.get("properties", ())
    }:
        return output_type
    never_null = set(output_type.never_null)
    shown = {
        "type": "object",
        "properties": {column.name: _property(schema, column) for column in output_type.columns},
        "required": [column.name for column in output_type.columns if column.name in never_null],
        **{name: schema[name] for name in ("$defs", "definitions") if name in schema},
    }
    columns = tuple(replace(column, path=(column.name,)) for column in output_type.columns)
    return replace(output_type, schema=shown, columns=columns)


def _property(schema: Mapping[str, Any], column: Column) -> dict[str, Any]:
    return {"anyOf": list(branches_at(schema, column.path))}


def json_value(value: Any, kind: ColumnType) -> object:
    """Convert a driver's value to one of JSON. A value of another kind stays as it is, and the schema refuses it."""
    match kind:
        case ColumnType.INTEGER | ColumnType.NUMBER:
            return _number_value(value)
        case ColumnType.DECIMAL:
            is_number = isinstance(_number_value(value), int | float)
            return orjson.Fragment(_digits(value)) if is_number else value
        case ColumnType.BOOLEAN:
            found = _number_value(value)
            return bool(found) if found in (0, 1) else value  # SQLite has no truth values
        case ColumnType.TIMESTAMP:
            return _in_utc(value).isoformat() if isinstance(value, datetime) else value
        case ColumnType.DATE:
            return value.isoformat() if isinstance(value, date) else value
        case ColumnType.JSON:
            return orjson.loads(value) if isinstance(value, str) else value
        case ColumnType.STRING | ColumnType.VECTOR:
            return value
        case _:
            assert_never(kind)


def _number_value(value: Any) -> Any:
    """Return a number, also one that a column of text holds. Other values stay as they are."""
    if isinstance(value, str):
        try:
            value = Decimal(value)
        except InvalidOperation:
            return value
    if not isinstance(value, Decimal | float):
        return value
    return int(value) if math.isfinite(value) and value == int(value) else float(value)


def _digits(value: Decimal | float | str) -> str:
    return format(Decimal(str(value)), "f")


def _in_utc(moment: datetime) -> datetime:
    """Return an instant with its zone. One without a zone is in UTC, as the package writes it."""
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
