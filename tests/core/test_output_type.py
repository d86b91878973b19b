"""From what a user writes to a schema and columns."""

import enum
import subprocess
import sys
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import jsonschema_rs
import orjson
import pytest
from pydantic import BaseModel, Field

from airflow_batch_llm.core.model import ColumnType
from airflow_batch_llm.core.output_type import AnswerKind, Embedding, Naming, OutputType
from airflow_batch_llm.errors import OutputTypeError


class Buyer(BaseModel):
    name: str
    country: str | None = None


class Line(BaseModel):
    sku: str
    parts: list["Line"] = []


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Order(BaseModel):
    """An order."""

    number: int
    total: Decimal
    weight: float | None
    paid: bool
    day: date
    at: datetime | None = None
    state: Literal["open", "closed"]
    color: Color
    buyer: Buyer
    seller: Buyer | None = None
    lines: list[Line]
    counts: dict[str, int]
    either: int | str
    note: Annotated[str, Field(max_length=10)] = ""


class Address(TypedDict):
    city: str


class Person(TypedDict):
    """A person."""

    name: Annotated[str, Field(description="in full")]
    age: NotRequired[int | None]
    address: Address | None
    former: list[Address]


def columns(output_type: OutputType) -> dict[str, ColumnType]:
    return {column.name: column.type for column in output_type.columns}


def test_a_model_makes_a_typed_column_of_each_property() -> None:
    made = OutputType.of(Order)
    assert made.kind is AnswerKind.OBJECT
    assert columns(made) == {
        "number": ColumnType.INTEGER,
        "total": ColumnType.DECIMAL,
        "weight": ColumnType.NUMBER,
        "paid": ColumnType.BOOLEAN,
        "day": ColumnType.DATE,
        "at": ColumnType.TIMESTAMP,
        "state": ColumnType.STRING,
        "color": ColumnType.STRING,
        "buyer": ColumnType.JSON,
        "seller": ColumnType.JSON,
        "lines": ColumnType.JSON,
        "counts": ColumnType.JSON,
        "either": ColumnType.JSON,
        "note": ColumnType.STRING,
    }
    assert all(column.path == (column.name,) for column in made.columns)


def test_a_typed_dict_is_as_good_as_a_model() -> None:
    made = OutputType.of(Person)
    assert made.schema is not None
    assert made.schema["required"] == ["name", "address", "former"]
    assert made.schema["properties"]["name"]["description"] == "in full"
    assert columns(made) == {
        "name": ColumnType.STRING,
        "age": ColumnType.INTEGER,
        "address": ColumnType.JSON,
        "former": ColumnType.JSON,
    }


@pytest.mark.parametrize(
    ("wanted", "fits", "misfit"),
    [
        (list[Line], [{"sku": "a", "parts": [{"sku": "b"}]}], [{"parts": []}]),
        (Line | None, None, {"parts": []}),
        (Buyer | Line, {"name": "Ann"}, {"country": "FR"}),
        (dict[str, Buyer], {"x": {"name": "Ann"}}, {"x": {}}),
        (list[Person], [{"name": "A", "address": None, "former": [{"city": "B"}]}], [{"name": "A"}]),
        (
            {
                "type": "array",
                "items": {"$ref": "#/definitions/n"},
                "definitions": {"n": {"type": "integer"}},
            },
            [1],
            [""],
        ),
        (
            {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"$ref": "#"}}]},
            [1, [2, [3]]],
            [1, ["2"]],
        ),
    ],
)
def test_an_answer_that_is_no_object_is_wrapped_and_its_references_resolve(
    wanted: object, fits: object, misfit: object
) -> None:
    made = OutputType.of(wanted)
    assert made.kind is AnswerKind.VALUE
    assert columns(made) == {"answer": ColumnType.JSON}
    validator = jsonschema_rs.validator_for(made.schema)
    assert validator.is_valid({"answer": fits})
    assert not validator.is_valid({"answer": misfit})
    assert not validator.is_valid({})


def test_a_model_that_contains_itself_has_its_properties_at_the_root() -> None:
    made = OutputType.of(Line)
    assert columns(made) == {"sku": ColumnType.STRING, "parts": ColumnType.JSON}
    assert made.schema is not None
    assert made.schema["type"] == "object"
    assert jsonschema_rs.validator_for(made.schema).is_valid(
        {"sku": "a", "parts": [{"sku": "b", "parts": []}]}
    )


@pytest.mark.parametrize(
    ("wanted", "column"),
    [
        (int, ColumnType.INTEGER),
        (float, ColumnType.NUMBER),
        (bool, ColumnType.BOOLEAN),
        (bool | None, ColumnType.BOOLEAN),
        (date, ColumnType.DATE),
        (datetime, ColumnType.TIMESTAMP),
        (Decimal, ColumnType.DECIMAL),
        (Decimal | int | None, ColumnType.DECIMAL),
        ({"type": "string", "format": "decimal"}, ColumnType.DECIMAL),
        ({"type": ["number", "null"], "format": "decimal"}, ColumnType.DECIMAL),
        (int | float, ColumnType.NUMBER),
        (str | date, ColumnType.STRING),
        (str | None, ColumnType.STRING),
        (Literal[1, 2], ColumnType.INTEGER),
        (Literal["a", 1], ColumnType.JSON),
        (list[str], ColumnType.JSON),
        ({"type": ["integer", "null"]}, ColumnType.INTEGER),
        ({"const": True}, ColumnType.BOOLEAN),
        ({"allOf": [{"$ref": "#/$defs/n"}], "$defs": {"n": {"type": "number"}}}, ColumnType.NUMBER),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, ColumnType.JSON),
    ],
)
def test_a_single_value_makes_one_column_of_its_type(wanted: object, column: ColumnType) -> None:
    made = OutputType.of(wanted)
    assert (made.kind, columns(made)) == (AnswerKind.VALUE, {"answer": column})


def test_free_text_has_no_schema() -> None:
    made = OutputType.of(str)
    assert (made.kind, made.schema, columns(made)) == (AnswerKind.TEXT, None, {"answer": ColumnType.STRING})


@pytest.mark.parametrize(
    "wanted",
    [
        ["red", "blue"],
        ("red", "blue"),
        {"red": "warm", "blue": "cold"},
        Color,
        Literal["red", "blue"],
        {"enum": ["red", "blue"]},
    ],
)
def test_labels_make_one_column_however_they_are_written(wanted: object) -> None:
    made = OutputType.of(wanted)
    assert (made.kind, columns(made)) == (AnswerKind.LABEL, {"label": ColumnType.STRING})
    assert made.labels == ("red", "blue")
    assert made.schema is not None
    assert made.schema["required"] == ["label"]


def test_the_descriptions_of_labels_reach_the_model() -> None:
    made = OutputType.of({"bug": "something broke", "other": ""})
    assert made.schema is not None
    assert made.schema["properties"]["label"]["description"] == "bug: something broke"


def test_a_label_may_be_called_as_a_keyword_of_schemas() -> None:
    assert OutputType.of({"title": "about a title", "type": "about a type"}).labels == ("title", "type")
    assert OutputType.of({"type": "string"}).kind is AnswerKind.VALUE


@pytest.mark.parametrize("labels", [[], ["a", "a"], ["a", ""], ["a", 1], {}])
def test_labels_that_cannot_be_told_apart_are_refused(labels: object) -> None:
    with pytest.raises(OutputTypeError, match=r"[Ll]abel"):
        OutputType.of(labels)


def test_an_embedding_makes_a_vector() -> None:
    assert columns(OutputType.of(Embedding)) == {"embedding": ColumnType.VECTOR}
    assert OutputType.of(Embedding(dimensions=256)).dimensions == 256


def test_columns_choose_from_the_answer_by_path() -> None:
    naming = Naming(
        columns={"buyer_name": "buyer.name", "Country": "seller.country", "n": "number", "who": "buyer"}
    )
    made = OutputType.of(Order, naming)
    assert [(column.name, column.type, column.path) for column in made.columns] == [
        ("buyer_name", ColumnType.STRING, ("buyer", "name")),
        ("Country", ColumnType.STRING, ("seller", "country")),
        ("n", ColumnType.INTEGER, ("number",)),
        ("who", ColumnType.JSON, ("buyer",)),
    ]


def test_a_path_that_leads_nowhere_is_refused_beside_what_there_is() -> None:
    with pytest.raises(OutputTypeError, match=r"'buyer\.nam'\. There are: country, name"):
        OutputType.of(Order, Naming(columns={"x": "buyer.nam.first"}))


@pytest.mark.parametrize("wanted", [str, ["a", "b"], int, Embedding])
def test_the_only_column_can_be_named_without_changing_what_is_asked(wanted: object) -> None:
    made = OutputType.of(wanted, Naming(output_column="verdict"))
    assert list(columns(made)) == ["verdict"]
    assert made.schema == OutputType.of(wanted).schema


def test_the_two_ways_of_naming_are_not_mixed_up() -> None:
    with pytest.raises(OutputTypeError, match="columns="):
        OutputType.of(Order, Naming(output_column="x"))
    with pytest.raises(OutputTypeError, match="output_column="):
        OutputType.of(["a"], Naming(columns={"x": "label"}))


@pytest.mark.parametrize(
    ("naming", "message"),
    [
        (Naming(taken=("Name",)), "key or carried"),
        (Naming(columns={"_LLM_x": "name"}), "_llm_"),
        (Naming(columns={"a": "name", "A": "country"}), "named twice"),
        (Naming(columns={" ": "name"}), "empty"),
        (Naming(columns={}), "no column"),
    ],
)
def test_names_that_a_table_cannot_have_are_refused(naming: Naming, message: str) -> None:
    with pytest.raises(OutputTypeError, match=message):
        OutputType.of(Buyer, naming)


@pytest.mark.parametrize(
    "wanted",
    [
        {"type": "no such type", "minimum": 1},
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}},
        {"type": "object", "properties": {"a": {"$ref": "https://example.com/schema.json"}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        object(),
        3,
        type("Plain", (), {}),
    ],
)
def test_what_cannot_be_asked_for_is_refused(wanted: object) -> None:
    with pytest.raises(OutputTypeError):
        OutputType.of(wanted)


def test_a_chain_of_references_without_an_end_makes_a_json_column_or_is_refused() -> None:
    looped = {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "integer"}]}
    wanted = {"type": "object", "properties": {"x": {"$ref": "#/$defs/a"}}, "$defs": {"a": looped}}
    assert columns(OutputType.of(wanted)) == {"x": ColumnType.JSON}


@pytest.mark.parametrize(
    "wanted", [str, ["a", "b"], Order, list[Line], Embedding(3), Person, {"bug": "x"}, bool | None]
)
def test_the_stored_form_is_the_whole_output_type(wanted: object) -> None:
    made = OutputType.of(wanted)
    stored: Mapping[str, Any] = orjson.loads(orjson.dumps(made.to_json()))
    assert OutputType.from_json(stored) == made


def test_importing_output_types_does_not_import_pydantic() -> None:
    code = (
        "import sys, airflow_batch_llm.core.output_type, airflow_batch_llm.core.answer;"
        "sys.exit(bool({'pydantic', 'jsonschema_rs'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_columns_that_no_valid_answer_leaves_null_are_known() -> None:
    class Sale(BaseModel):
        buyer: Buyer
        seller: Buyer | None
        color: Color
        note: str = ""

    paths = {"name": "buyer.name", "country": "buyer.country", "seller_name": "seller.name", "color": "color"}
    assert OutputType.of(Sale, Naming(columns={**paths, "note": "note"})).never_null == ("name", "color")
    assert OutputType.of(["a", "b"]).never_null == ("label",)
    assert OutputType.of(str).never_null == ("answer",)
    assert OutputType.of({"type": ["integer", "null"]}).never_null == ()
    assert OutputType.of({"type": "object", "properties": {"x": {}}, "required": ["x"]}).never_null == ()
