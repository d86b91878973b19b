"""Made-up values: every one is accepted by the schema that it was made for."""

import re
from typing import Any

import jsonschema
import pytest

from airflow_batch_llm.simulator.answers import Draw, conforming, matching

SEEDS = range(0, 10**9, 10**7 + 7)
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["name", "children", "next"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "enum": ["a", "b"]},
        {"const": 3},
        {"type": "integer", "minimum": 5, "maximum": 6},
        {"type": "integer", "exclusiveMinimum": 5, "exclusiveMaximum": 7},
        {"type": "integer", "minimum": -3, "maximum": 40, "multipleOf": 7},
        {"type": "number", "minimum": 0, "maximum": 1},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.01},
        {"type": "number", "maximum": -5},
        {"type": "number", "multipleOf": 0.5, "minimum": 1, "maximum": 3},
        {"type": "boolean"},
        {"type": "null"},
        {"type": ["string", "null"]},
        {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4},
        {"type": "array", "items": {"enum": [1, 2, 3]}, "minItems": 3, "uniqueItems": True},
        {
            "type": "array",
            "prefixItems": [{"type": "string"}, {"type": "integer"}],
            "items": False,
            "minItems": 2,
        },
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {"type": "object", "properties": {"a": {"type": "string"}}, "minProperties": 2},
        {"type": "string", "minLength": 30, "maxLength": 31},
        {"type": "string", "maxLength": 3},
        {"type": "string", "pattern": r"^[A-Z]{3}-\d{4}$"},
        {"type": "string", "pattern": r"^(low|high)_[^a-z]+x?$"},
        {"allOf": [{"properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"type": "object"}]},
        {"oneOf": [{"type": "integer"}, {"type": "string"}]},
        {"anyOf": [{"type": "object", "required": ["a"], "properties": {"a": {}}}, {"type": "null"}]},
        TREE,
        {"type": "array", "items": {"$ref": "#/$defs/p"}, "$defs": {"p": {"type": "boolean"}}},
        {},
    ],
)
def test_a_value_conforms_to_its_schema(schema: dict[str, Any]) -> None:
    for seed in SEEDS:
        jsonschema.validate(conforming(schema, seed), schema)


@pytest.mark.parametrize(
    "name", ["date-time", "date", "time", "email", "uri", "ipv4", "ipv6", "uuid", "hostname"]
)
def test_a_string_has_the_format_that_is_asked_for(name: str) -> None:
    schema = {"type": "string", "format": name}
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    for seed in SEEDS:
        jsonschema.validate(conforming(schema, seed), schema, format_checker=checker)


def test_google_s_spelling_is_understood() -> None:
    schema = {
        "type": "OBJECT",
        "properties": {
            "a": {"type": "INTEGER", "minimum": 1, "maximum": 2},
            "b": {"type": "STRING", "nullable": True},
        },
        "required": ["a", "b"],
    }
    values = [conforming(schema, seed) for seed in SEEDS]
    assert all(value["a"] in (1, 2) for value in values)
    assert {type(value["b"]) for value in values} == {str, type(None)}


def test_the_same_seed_gives_the_same_value_and_others_differ() -> None:
    schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    assert conforming(schema, 7) == conforming(schema, 7)
    assert len({conforming(schema, seed)["text"] for seed in SEEDS}) > 20


def test_every_label_of_an_enum_is_drawn_about_equally_often() -> None:
    schema = {"enum": ["a", "b", "c"]}
    drawn = [conforming(schema, seed * 2_654_435_761) for seed in range(3000)]
    assert all(800 < drawn.count(label) < 1200 for label in "abc")


@pytest.mark.parametrize("pattern", [r"\w+@\w+\.com", r"[^\W\d_]{2,5}", r"(a|b)*c", r"\S\s\D", r"x{0}y"])
def test_a_string_matches_a_plain_pattern(pattern: str) -> None:
    for seed in SEEDS:
        assert re.search(pattern, matching(pattern, Draw(seed)))
