"""JSON Schema in Gemini's words, as a table; what cannot be said is refused with its path."""

from enum import StrEnum
from typing import Literal

import pytest
from pydantic import BaseModel, Field

from airflow_batch_llm.core.model import Call
from airflow_batch_llm.errors import OutputTypeError
from airflow_batch_llm.providers.vertex.lines import encode
from airflow_batch_llm.providers.vertex.schema import response_schema


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Buyer(BaseModel):
    name: str = Field(description="As on the ticket", min_length=1)
    age: int | None = None


class Ticket(BaseModel):
    label: Literal["bug", "wish"]
    colour: Colour | None
    score: float = Field(ge=0, le=1)
    buyer: Buyer = Field(description="Who asks")
    others: list[Buyer] = Field(max_length=3)


def around(node: object, required: bool = True) -> dict[str, object]:
    return {"type": "object", "properties": {"x": node}, "required": ["x"] if required else []}


def told(node: object) -> object:
    return response_schema(around(node))["properties"]["x"]


def test_a_model_with_nested_models_enums_and_optionals_is_inlined() -> None:
    buyer = {
        "type": "OBJECT",
        "properties": {
            "name": {"type": "STRING", "minLength": 1, "description": "As on the ticket"},
            "age": {"type": "INTEGER", "nullable": True},
        },
        "propertyOrdering": ["name", "age"],
        "required": ["name"],
    }
    assert response_schema(Ticket.model_json_schema()) == {
        "type": "OBJECT",
        "properties": {
            "label": {"type": "STRING", "format": "enum", "enum": ["bug", "wish"]},
            "colour": {"type": "STRING", "format": "enum", "enum": ["red", "blue"], "nullable": True},
            "score": {"type": "NUMBER", "minimum": 0, "maximum": 1},
            "buyer": {**buyer, "description": "Who asks"},
            "others": {"type": "ARRAY", "items": buyer, "maxItems": 3},
        },
        "propertyOrdering": ["label", "colour", "score", "buyer", "others"],
        "required": ["label", "colour", "score", "buyer", "others"],
    }


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        pytest.param({"type": "boolean"}, {"type": "BOOLEAN"}, id="boolean"),
        pytest.param({"type": ["string", "null"]}, {"type": "STRING", "nullable": True}, id="type list"),
        pytest.param(
            {"type": ["string", "integer"]},
            {"anyOf": [{"type": "STRING"}, {"type": "INTEGER"}]},
            id="types side by side",
        ),
        pytest.param(
            {"anyOf": [{"type": "integer"}, {"type": "string"}, {"type": "null"}], "description": "a or b"},
            {"anyOf": [{"type": "INTEGER"}, {"type": "STRING"}], "nullable": True, "description": "a or b"},
            id="union with null",
        ),
        pytest.param(
            {"anyOf": [{"anyOf": [{"type": "integer"}, {"type": "null"}]}, {"type": "string"}]},
            {"anyOf": [{"type": "INTEGER"}, {"type": "STRING"}], "nullable": True},
            id="a union in a union is one union",
        ),
        pytest.param(
            {"enum": ["a", 1, 2, None]},
            {
                "anyOf": [
                    {"type": "STRING", "format": "enum", "enum": ["a"]},
                    {"type": "INTEGER", "format": "enum", "enum": ["1", "2"]},
                ],
                "nullable": True,
            },
            id="enum of two types and null",
        ),
        pytest.param({"const": "a"}, {"type": "STRING", "format": "enum", "enum": ["a"]}, id="const"),
        pytest.param(
            {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 10},
            {"type": "INTEGER", "minimum": 1, "maximum": 9},
            id="open bounds",
        ),
        pytest.param(
            {"type": "string", "format": "date-time"}, {"type": "STRING", "format": "date-time"}, id="format"
        ),
        pytest.param(
            {"type": "string", "format": "uuid", "description": "a number"},
            {"type": "STRING", "description": 'a number\n\n{"format": "uuid"}'},
            id="a format Gemini lacks",
        ),
        pytest.param(
            {"type": "string", "default": None, "title": "X", "examples": ["a"]},
            {"type": "STRING"},
            id="noise",
        ),
        pytest.param(
            {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
            {"type": "ARRAY", "items": {"type": "STRING"}, "description": '{"uniqueItems": true}'},
            id="what only narrows",
        ),
    ],
)
def test_a_node_is_said_in_the_words_of_the_subset(node: object, expected: object) -> None:
    assert told(node) == expected


def test_a_description_beside_a_reference_is_kept() -> None:
    schema = {**around({"allOf": [{"$ref": "#/$defs/P"}], "description": "here"})}
    schema["$defs"] = {"P": {"type": "string", "description": "there"}}
    assert response_schema(schema)["properties"]["x"] == {"type": "STRING", "description": "here"}


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ({}, "any value"),
        (True, "any value"),
        ({"type": "array"}, r"\$\.x\[\], any value"),
        ({"type": "null"}, "always null"),
        ({"type": "object"}, "named properties"),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, "named properties"),
        ({"type": "array", "prefixItems": [{"type": "string"}]}, "prefixItems"),
        ({"allOf": [{"type": "string"}, {"minLength": 2}]}, "allOf"),
        ({"not": {"type": "string"}}, "'not'"),
        ({"const": True}, "strings, whole numbers and null"),
        ({"enum": [1.5]}, "strings, whole numbers and null"),
        ({"type": "money"}, "no type 'money'"),
    ],
)
def test_what_cannot_be_said_is_refused_with_its_path(node: object, reason: str) -> None:
    with pytest.raises(OutputTypeError, match=reason) as refusal:
        told(node)
    assert "$.x" in str(refusal.value)


class Tree(BaseModel):
    name: str
    children: "list[Tree]"


def test_recursion_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(OutputTypeError, match="contains itself"):
        encode(Call(model="gemini-2.5-flash", schema=Tree.model_json_schema()))


def nested(levels: int) -> dict[str, object]:
    return around(nested(levels - 1)) if levels else around({"type": "string"})


def test_a_schema_of_fifteen_levels_is_sent_and_one_deeper_is_refused() -> None:
    encode(Call(model="gemini-2.5-flash", schema=nested(4)))
    with pytest.raises(OutputTypeError, match="deeper than 15 levels"):
        encode(Call(model="gemini-2.5-flash", schema=nested(5)))


@pytest.mark.parametrize("name", ["buyer name", "a.b", "prix€", "$ref"])
def test_a_property_that_is_no_column_name_is_refused_with_its_path(name: str) -> None:
    schema = {"type": "object", "properties": {name: {"type": "string"}}}
    with pytest.raises(OutputTypeError, match="letters, digits and underscores") as refusal:
        encode(Call(model="gemini-2.5-flash", schema=schema))
    assert name in str(refusal.value)
