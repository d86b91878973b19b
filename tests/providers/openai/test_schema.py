from typing import Any

import pytest

from airflow_batch_llm.errors import OutputTypeError
from airflow_batch_llm.providers.openai.request import json_schema_format, strict_schema


def shape(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


TREE: dict[str, Any] = {
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/Node"}}},
            "required": ["children"],
        }
    },
    **shape(root={"$ref": "#/$defs/Node"}),
}


def test_every_property_is_required_every_object_closed_and_an_optional_one_may_be_null() -> None:
    schema = {
        "type": "object",
        "properties": {
            "a": {"type": "string"},
            "b": {"type": "object", "properties": {"c": {"type": "integer"}}},
        },
        "required": ["a"],
    }
    c = {"anyOf": [{"type": "integer"}, {"type": "null"}]}
    b = {"type": "object", "properties": {"c": c}, "required": ["c"], "additionalProperties": False}
    assert strict_schema(schema) == {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"anyOf": [b, {"type": "null"}]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("node", "strict"),
    [
        ({"type": "string", "maxLength": 5}, {"type": "string", "description": '{"maxLength": 5}'}),
        ({"type": "string", "format": "date"}, {"type": "string", "format": "date"}),
        ({"type": "string", "format": "uri"}, {"type": "string", "description": '{"format": "uri"}'}),
        ({"type": "integer", "minimum": 1}, {"type": "integer", "minimum": 1}),
        ({"type": "integer", "default": 3}, {"type": "integer"}),
        ({"oneOf": [{"type": "string"}, {"const": 1}]}, {"anyOf": [{"type": "string"}, {"const": 1}]}),
        (
            {"allOf": [{"type": "string", "description": "theirs"}], "description": "mine"},
            {"type": "string", "description": "mine"},
        ),
    ],
)
def test_what_the_strict_subset_cannot_say_is_told_in_the_description(node: Any, strict: Any) -> None:
    told = strict_schema(shape(x=node))
    assert told is not None
    assert told["properties"]["x"] == strict


def test_a_schema_that_contains_itself_stays_strict_with_its_definition() -> None:
    strict = strict_schema(TREE)
    assert strict is not None
    assert strict["properties"]["root"] == {"$ref": "#/$defs/Node"}
    assert strict["$defs"]["Node"]["additionalProperties"] is False


@pytest.mark.parametrize(
    "schema",
    [
        shape(x={"type": "object", "additionalProperties": {"type": "string"}}),
        shape(x={}),
        shape(x={"not": {"type": "string"}}),
        shape(x={"allOf": [{"type": "string"}, {"minLength": 1}]}),
        shape(x={"enum": [str(n) for n in range(1001)]}),
        shape(**{f"p{n}": {"type": "string"} for n in range(5001)}),
    ],
)
def test_a_schema_beyond_the_strict_subset_is_asked_for_as_it_is(schema: dict[str, Any]) -> None:
    described = json_schema_format(schema)
    assert (described["strict"], described["schema"]) == (False, schema)


def test_nesting_beyond_the_strict_subset_is_asked_for_as_it_is() -> None:
    schema: dict[str, Any] = shape(x={"type": "string"})
    for _ in range(8):
        schema = shape(x=schema)
    assert strict_schema(schema) is not None
    assert strict_schema(shape(x=shape(x=schema))) is None


@pytest.mark.parametrize(
    ("title", "name"), [(None, "answer"), ("Ticket Label!", "Ticket_Label_"), ("é" * 70, "_" * 64)]
)
def test_a_schema_is_named_in_the_characters_that_are_allowed(title: str | None, name: str) -> None:
    schema = shape(x={"type": "string"}) | ({"title": title} if title else {})
    assert json_schema_format(schema)["name"] == name


def test_the_root_must_be_an_object() -> None:
    with pytest.raises(OutputTypeError, match="object at the root"):
        json_schema_format({"type": "array", "items": {"type": "string"}})
