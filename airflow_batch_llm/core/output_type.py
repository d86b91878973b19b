"""Define the type of an answer, and the columns it makes.

An output type is made once from the user's argument, and stored with the plan as JSON. Landing follows the stored form
and needs no Python class. It validates against the JSON Schema; what a Pydantic class checks beyond its schema
(validator functions) is not checked.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from airflow_batch_llm.core.answer_schema import (
    branches_at,
    check,
    column_type,
    decimal_digits,
    has_columns,
    is_always_filled,
    string_enum,
    with_root,
    wrapped,
)
from airflow_batch_llm.core.model import ColumnType
from airflow_batch_llm.errors import OutputTypeError

_RESERVED = "_llm_"
_JSON_TYPES = frozenset({"string", "integer", "number", "boolean", "object", "array", "null"})


class AnswerKind(StrEnum):
    """The shapes an answer can have."""

    TEXT = "text"  # free text, in one column
    LABEL = "label"  # one of a few fixed texts, in one column
    OBJECT = "object"  # an object: a column for each property
    VALUE = "value"  # anything else that JSON can say, in one column
    VECTOR = "vector"  # an embedding


#: The property under which a label or a value is asked for, and the default name of a single column.
_SINGLE = {
    AnswerKind.TEXT: "answer",
    AnswerKind.LABEL: "label",
    AnswerKind.VALUE: "answer",
    AnswerKind.VECTOR: "embedding",
}


@dataclass(frozen=True, slots=True)
class Embedding:
    """Return the output type of a model that answers with a vector of the requested length."""

    dimensions: int | None = None  # None: as many as the model gives by itself


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the target table, and the place of its value in the answer."""

    name: str
    type: ColumnType
    path: tuple[str, ...] = ()
    digits: tuple[int, int] = (0, 0)
    """The most digits of a decimal, in all and after the point."""

    @classmethod
    def of(cls, name: str, schema: Mapping[str, Any], path: tuple[str, ...]) -> "Column":
        """Return the column for the value at `path` in an answer of this schema."""
        kind = column_type(schema, path)
        digits = decimal_digits(schema, path) if kind is ColumnType.DECIMAL else (0, 0)
        return cls(name, kind, path, digits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """The user's choice of names for the answer's columns, and the names that are taken."""

    columns: Mapping[str, str] | None = None  # name -> path in the answer ("buyer.name"): these and no others
    output_column: str | None = None  # the name of an answer's only column
    taken: Collection[str] = ()  # key and carried columns


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputType:
    """An answer's kind, its JSON Schema (an object at the root; None: not asked for), and its columns."""

    kind: AnswerKind
    columns: tuple[Column, ...]
    schema: Mapping[str, Any] | None = None
    dimensions: int | None = None

    @classmethod
    def of(cls, wanted: object, naming: Naming | None = None) -> "OutputType":
        """Make one from `str`, labels (a list, or a dict with descriptions), a JSON Schema, `Embedding`, or a Python type."""
        naming = naming or Naming()
        if wanted is str:
            return _single(AnswerKind.TEXT, Column(_SINGLE[AnswerKind.TEXT], ColumnType.STRING), naming)
        if wanted is Embedding or isinstance(wanted, Embedding):
            dimensions = wanted.dimensions if isinstance(wanted, Embedding) else None
            column = Column(_SINGLE[AnswerKind.VECTOR], ColumnType.VECTOR)
            return _single(AnswerKind.VECTOR, column, naming, dimensions=dimensions)
        if isinstance(wanted, Mapping):
            described = _is_labels(wanted)
            return _of_labels(list(wanted), wanted, naming) if described else _of_schema(wanted, naming)
        if isinstance(wanted, Sequence):
            return _of_labels(list(wanted), {}, naming)
        from airflow_batch_llm.core.python_type import json_schema

        return _of_schema(json_schema(wanted), naming)

    def is_choice(self, column: Column) -> bool:
        """Return whether the values of a column are out of a fixed set."""
        if self.schema is None:
            return False
        branches = branches_at(self.schema, column.path)
        return all({"enum", "const"} & branch.keys() or branch.get("type") == "null" for branch in branches)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels to choose from; empty for any other kind."""
        if self.kind is not AnswerKind.LABEL or self.schema is None:
            return ()
        return tuple(self.schema["properties"][_SINGLE[AnswerKind.LABEL]]["enum"])

    @property
    def never_null(self) -> tuple[str, ...]:
        """The columns that hold a value in every valid answer."""
        schema = self.schema
        return tuple(
            column.name for column in self.columns if schema is None or is_always_filled(schema, column.path)
        )

    @property
    def request_params(self) -> Mapping[str, object]:
        """Return the request parameters that describe the answer, besides its schema."""
        return {} if self.dimensions is None else {"dimensions": self.dimensions}

    def to_json(self) -> dict[str, Any]:
        """For the frozen plan."""
        return {
            "kind": self.kind.value,
            "columns": [
                [column.name, column.type.value, list(column.path), list(column.digits)]
                for column in self.columns
            ],
            "schema": self.schema,
            "dimensions": self.dimensions,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "OutputType":
        """From the frozen plan."""
        return cls(
            kind=AnswerKind(stored["kind"]),
            columns=tuple(
                Column(name, ColumnType(kind), tuple(path), (digits[0], digits[1]))
                for name, kind, path, digits in stored["columns"]
            ),
            schema=stored["schema"],
            dimensions=stored["dimensions"],
        )


def _is_labels(wanted: Mapping[Any, object]) -> bool:
    """Return whether a dict holds labels with descriptions; otherwise it is a JSON Schema."""
    words = all(isinstance(value, str) for value in wanted.values())
    return (
        words
        and wanted.get("type") not in _JSON_TYPES
        and not any(str(key).startswith("$") for key in wanted)
    )


def _of_labels(labels: list[Any], described: Mapping[Any, Any], naming: Naming) -> OutputType:
    if not labels or not all(isinstance(label, str) and label.strip() for label in labels):
        raise OutputTypeError("The labels of an output type are texts, at least one, and none of them empty.")
    if len(set(labels)) < len(labels):
        raise OutputTypeError("A label of the output type is named twice.")
    choice: dict[str, Any] = {"type": "string", "enum": labels}
    if described:
        choice["description"] = "\n".join(f"{label}: {text}" for label, text in described.items() if text)
    return _of_schema(choice, naming)


def _of_schema(schema: Mapping[str, Any], naming: Naming) -> OutputType:
    check(schema)
    schema = with_root(schema)
    if has_columns(schema):
        return _of_object(schema, naming)
    kind = AnswerKind.LABEL if string_enum(schema) else AnswerKind.VALUE
    name = _SINGLE[kind]
    whole = wrapped(schema, name)
    return _single(kind, Column.of(name, whole, (name,)), naming, schema=whole)


def _of_object(schema: Mapping[str, Any], naming: Naming) -> OutputType:
    if naming.output_column is not None:
        raise OutputTypeError(
            "output_column names the only column of an answer, and this output type makes a column of each "
            "property. Use columns={'name': 'property'} instead."
        )
    properties = schema["properties"]
    paths = naming.columns if naming.columns is not None else {name: name for name in properties}
    columns = tuple(
        Column.of(name, schema, (path,) if path in properties else tuple(path.split(".")))
        for name, path in paths.items()
    )
    _check_names(columns, naming)
    return OutputType(kind=AnswerKind.OBJECT, schema=schema, columns=columns)


def _single(
    kind: AnswerKind,
    column: Column,
    naming: Naming,
    *,
    schema: Mapping[str, Any] | None = None,
    dimensions: int | None = None,
) -> OutputType:
    if naming.columns is not None:
        raise OutputTypeError(
            "columns= names the columns of an answer's properties, and this output type has none. "
            "Use output_column= to name its column."
        )
    columns = (replace(column, name=naming.output_column or column.name),)
    _check_names(columns, naming)
    return OutputType(kind=kind, schema=schema, columns=columns, dimensions=dimensions)


def _check_names(columns: Sequence[Column], naming: Naming) -> None:
    """Refuse names that differ in case alone: warehouses fold the case of names."""
    if not columns:
        raise OutputTypeError("The output type makes no column.")
    taken = {name.lower() for name in naming.taken}
    seen: set[str] = set()
    for column in columns:
        folded = column.name.lower()
        if not folded.strip():
            raise OutputTypeError("A column of the output type has an empty name.")
        if folded.startswith(_RESERVED):
            problem = f"begins with {_RESERVED}, which is kept for bookkeeping"
        elif folded in taken:
            problem = "is also a key or carried column"
        elif folded in seen:
            problem = "is named twice"
        else:
            seen.add(folded)
            continue
        raise OutputTypeError(
            f"The answer's column {column.name!r} {problem}. Give it another name with columns= or output_column=."
        )
