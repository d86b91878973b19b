"""A person's answer in the columns of a table, judged as a model's answer is: by the stored output type.

The values are written as the text that a model would have given, so that one parser judges both.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, assert_never

import orjson

from airflow_batch_llm.core.answer import Answer, AnswerFault, AnswerParser, Invalid
from airflow_batch_llm.core.answer_schema import branches_at
from airflow_batch_llm.core.model import ColumnType
from airflow_batch_llm.core.output_type import AnswerKind, Column, OutputType


@dataclass(frozen=True, slots=True)
class HumanAnswerParser:
    """An output type, compiled to judge the answers of people."""

    _type: OutputType
    _parser: AnswerParser

    @classmethod
    def of(cls, output_type: OutputType) -> "HumanAnswerParser":
        """Compile the output type, or the part of it that the columns show."""
        shown = _as_shown(output_type)
        return cls(shown, AnswerParser.of(shown))

    def parse(self, values: Sequence[object]) -> Answer | Invalid:
        """Return the typed values of the answer's columns, or why they are not an answer. Values may be a driver's."""
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
    """Write a driver's value as JSON would have it. A value of another kind stays, and the schema refuses it."""
    match kind:
        case ColumnType.INTEGER | ColumnType.NUMBER:
            return _number(value)
        case ColumnType.DECIMAL:
            is_number = isinstance(_number(value), int | float)
            return orjson.Fragment(_digits(value)) if is_number else value
        case ColumnType.BOOLEAN:
            found = _number(value)
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


def _number(value: Any) -> Any:
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
