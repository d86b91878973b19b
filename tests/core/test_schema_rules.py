from typing import Any

import pytest

from airflow_batch_llm.core.schema_rules import (
    AddedNulls,
    inline_plain_refs,
    inline_refs,
    is_open_map,
    measure,
    require_all,
)
from airflow_batch_llm.errors import OutputTypeError

NODE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
    },
    "required": ["name"],
}
TREE: dict[str, Any] = {
    "$defs": {"Node": NODE},
    "type": "object",
    "properties": {"root": {"$ref": "#/$defs/Node"}},
}
PERSON: dict[str, Any] = {
    "$defs": {"City": {"type": "object", "properties": {"zip": {"type": "string"}}, "description": "a city"}},
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "born": {"$ref": "#/$defs/City", "description": "birthplace"},
        "lives": {"$ref": "#/$defs/City"},
        "nick": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["name", "lives"],
}


def test_references_are_replaced_by_what_they_refer_to_and_the_words_beside_them_stay() -> None:
    inlined = inline_refs(PERSON)
    assert "$defs" not in inlined
    assert inlined["properties"]["born"] == {
        "type": "object",
        "properties": {"zip": {"type": "string"}},
        "description": "birthplace",
    }
    assert inlined["properties"]["lives"]["description"] == "a city"


def test_a_reference_to_a_reference_is_followed() -> None:
    schema = {
        "$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"type": "integer"}},
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/A"}},
    }
    assert inline_refs(schema)["properties"]["a"] == {"type": "integer"}


def test_a_property_that_is_called_like_a_keyword_is_a_property() -> None:
    schema = {"type": "object", "properties": {"items": {"type": "string"}, "enum": {"type": "integer"}}}
    assert inline_refs(schema) == schema
    assert measure(schema).properties == 2


def test_a_schema_that_contains_itself_is_refused_with_the_place() -> None:
    with pytest.raises(OutputTypeError, match=r"contains itself.*#/\$defs/Node"):
        inline_refs(TREE)


def test_a_definition_that_contains_itself_can_be_kept() -> None:
    schema = {**TREE, "$defs": {**TREE["$defs"], "Plain": {"type": "integer"}}}
    schema["properties"] = {**TREE["properties"], "n": {"$ref": "#/$defs/Plain"}}
    kept = inline_plain_refs(schema)
    assert kept["properties"] == {"root": {"$ref": "#/$defs/Node"}, "n": {"type": "integer"}}
    assert kept["$defs"] == {"Node": NODE}


def test_a_root_that_contains_itself_is_refused() -> None:
    with pytest.raises(OutputTypeError, match=r"contains itself.*'#'"):
        inline_refs({"type": "object", "properties": {"next": {"$ref": "#"}}})


@pytest.mark.parametrize("ref", ["https://example.com/schema.json", "#/$defs/Nowhere", 7])
def test_a_reference_that_leads_nowhere_is_refused(ref: object) -> None:
    with pytest.raises(OutputTypeError, match="refers to"):
        inline_refs({"type": "object", "properties": {"a": {"$ref": ref}}})


def test_every_property_becomes_required_and_an_optional_one_may_be_null() -> None:
    strict = require_all(inline_refs(PERSON))
    assert strict["required"] == ["name", "born", "lives", "nick"]
    assert strict["properties"]["name"] == {"type": "string"}
    assert strict["properties"]["born"]["anyOf"][1] == {"type": "null"}
    assert strict["properties"]["nick"] == PERSON["properties"]["nick"]
    assert strict["properties"]["lives"]["properties"]["zip"]["anyOf"][1] == {"type": "null"}


@pytest.mark.parametrize(
    ("answer", "meant"),
    [
        (
            {"name": "a", "lives": {"zip": None}, "born": None, "nick": None},
            {"name": "a", "lives": {}, "nick": None},
        ),
        ({"name": "a", "lives": {"zip": "1"}}, {"name": "a", "lives": {"zip": "1"}}),
        ({"name": None, "lives": None}, {"name": None, "lives": None}),  # a wrong answer stays wrong
        (["unexpected"], ["unexpected"]),
    ],
)
def test_nulls_that_stand_for_absence_are_left_out_again(answer: object, meant: object) -> None:
    assert AddedNulls(PERSON).drop(answer) == meant


def test_nulls_are_left_out_in_lists_unions_and_schemas_that_contain_themselves() -> None:
    item = {"type": "object", "properties": {"x": {"type": "integer"}}}
    schema = {
        "type": "object",
        "properties": {"items": {"type": "array", "items": {"anyOf": [item, {"type": "null"}]}}},
    }
    assert AddedNulls(schema).drop({"items": [{"x": None}, None]}) == {"items": [{}, None]}
    answer = {"root": {"name": "a", "children": [{"name": "b", "children": None}]}}
    assert AddedNulls(TREE).drop(answer) == {"root": {"name": "a", "children": [{"name": "b"}]}}


def test_a_schema_is_measured_in_the_terms_that_vendors_limit() -> None:
    schema = {
        "type": "object",
        "properties": {
            "kind": {"enum": ["a", "bc"]},
            "tags": {"type": "array", "items": {"type": ["string", "null"]}},
        },
        "required": ["kind"],
    }
    size = measure(schema)
    assert (size.depth, size.properties, size.optional, size.unions) == (3, 2, 1, 1)
    assert (size.enum_values, size.name_chars) == (2, len("kind" + "tags" + "a" + "bc"))


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({"type": "object", "additionalProperties": {"type": "string"}}, True),
        ({"type": "object"}, True),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": False}, False),
        ({"type": "object", "properties": {"a": {}}}, False),
        ({"type": "object", "properties": {}, "additionalProperties": False}, False),
        ({"type": "string"}, False),
    ],
)
def test_an_object_with_free_property_names_is_recognised(node: dict[str, Any], expected: bool) -> None:
    assert is_open_map(node) is expected
