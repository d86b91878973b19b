"""The two hashes that decide what is bought."""

import hashlib
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_batch_llm.core.spec import (
    Spec,
    changed_fields,
    earlier_input_hashes,
    input_hash,
    input_hashes,
    spec_hash,
)

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"why": {"type": "string"}, "label": {"type": "string", "enum": ["a", "b"]}},
    "required": ["why", "label"],
}
SPEC = Spec(
    provider="anthropic",
    model="claude-haiku-4-5",
    prompt={"template": "Subject: {{ subject }}"},
    prompt_params={"day": date(2026, 1, 2), "n": 1},
    system_prompt="You triage.",
    schema=SCHEMA,
    params={"temperature": 0.5},
    max_tokens=100,
)
ROW = {
    "text": 'é "x"\n\u2028\0',
    "none": None,
    "yes": True,
    "n": 7,
    "ratio": 0.1,
    "price": Decimal("12.50"),
    "at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    "day": date(2026, 1, 2),
    "tags": ["a", {"b": 1.0, "a": None}],
    "raw": b"\x00\xff",
}


def test_the_hashes_are_those_of_every_release() -> None:
    assert spec_hash(SPEC) == "ba098926db909767d41e06ce191495e8"
    assert (
        spec_hash(Spec(provider="openai", model="gpt-4.1-nano", prompt={"template": "{{ a }}"}))
        == "3618605a106feaec70b8128c3938bd91"
    )
    assert input_hash({}) == "e3b0c44298fc1c149afbf4c8996fb924"
    assert input_hash({"subject": "Hi"}) == "76ef47465477e4001422619d51872aa2"
    assert input_hash(ROW) == "de2053f44658cba6fa2dbbf24f4627a7"


def test_an_input_is_hashed_as_texts_with_their_lengths() -> None:
    text = b"t2:atn3:1.5t1:bz0:t1:ct4:\xc3\xa9\x00x"
    row = {"c": "\u00e9\0x", "b": None, "at": Decimal("1.50")}
    assert input_hash(row) == hashlib.sha256(text).hexdigest()[:32]


def test_the_hashes_of_earlier_releases_are_known() -> None:
    assert earlier_input_hashes({"subject": ["Hi"]}) == ["dbb853602cd92188b4a059d979b506d5"]
    assert earlier_input_hashes({name: [value] for name, value in ROW.items()}) == [
        "0144fd289f85fad375885582bcedc76d"
    ]
    assert earlier_input_hashes({"n": [2**64], "text": ["\ud800"]}) == earlier_input_hashes(
        {"n": [2**64], "text": ["\ufffd"]}
    )


@pytest.mark.parametrize(
    "change",
    [
        {"provider": "openai"},
        {"model": "claude-sonnet-4-6"},
        {"prompt": {"template": "Subject: {{ subject }} "}},
        {"prompt": {"function": "m.f", "source": "def f(row): ..."}},
        {"prompt_params": {"day": date(2026, 1, 3), "n": 1}},
        {"prompt_params": {"day": date(2026, 1, 2), "n": "1"}},
        {"prompt_params": {}},
        {"system_prompt": None},
        {"system_prompt": ""},
        {"examples": [["Hi", "a"]]},
        {"schema": None},
        {"schema": {**SCHEMA, "properties": dict(reversed(SCHEMA["properties"].items()))}},
        {"params": {"temperature": 0.6}},
        {"params": {}},
        {"max_tokens": 101},
        {"max_tokens": None},
        {"endpoint": "/v1/responses"},
        {"host": "127.0.0.1"},
    ],
)
def test_each_thing_that_decides_what_is_asked_changes_the_hash(change: dict[str, Any]) -> None:
    assert spec_hash(replace(SPEC, **change)) != spec_hash(SPEC)
    assert changed_fields(SPEC, replace(SPEC, **change)) == tuple(change)
    assert changed_fields(replace(SPEC, **change), SPEC) == tuple(change)


def test_the_order_of_parameters_and_keywords_does_not_change_the_hash() -> None:
    turned = replace(
        SPEC,
        prompt_params=dict(reversed(SPEC.prompt_params.items())),
        schema=dict(reversed(SCHEMA.items())),
    )
    assert spec_hash(turned) == spec_hash(SPEC)
    assert changed_fields(SPEC, turned) == ()


def test_all_the_fields_that_have_changed_are_named_in_the_order_of_a_spec() -> None:
    other = replace(SPEC, max_tokens=None, model="claude-sonnet-4-6", prompt={"template": "{{ body }}"})

    assert changed_fields(SPEC, other) == ("model", "prompt", "max_tokens")


def test_a_spec_that_was_stored_has_the_same_hash() -> None:
    stored = orjson.loads(orjson.dumps(SPEC.to_json()))
    assert spec_hash(Spec.from_json(stored)) == spec_hash(SPEC)
    again = Spec.from_json(stored)
    assert Spec.from_json(orjson.loads(orjson.dumps(again.to_json()))) == again
    assert changed_fields(again, SPEC) == ()


def test_a_spec_stored_by_a_later_release_can_be_read() -> None:
    assert Spec.from_json({**SPEC.to_json(), "added_later": 1}).model == SPEC.model


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, Decimal("1.00")),
        (0.1, Decimal("0.10")),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00Z"),
        ((1, 2), [1, 2]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ],
)
def test_equal_values_give_equal_hashes(one: object, other: object) -> None:
    assert input_hash({"x": one}) == input_hash({"x": other})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, "1"),
        (1, True),
        (0, False),
        (None, ""),
        (None, "null"),
        ("a", "A"),
        ("é", "e\u0301"),
        (0.1 + 0.2, 0.3),
        (2**63, float(2**63) + 2048),
        ([1, 2], [2, 1]),
        ([], None),
        (datetime(2026, 1, 2), datetime(2026, 1, 2, tzinfo=UTC)),  # noqa: DTZ001
    ],
)
def test_different_values_give_different_hashes(one: object, other: object) -> None:
    assert input_hash({"x": one}) != input_hash({"x": other})


def test_the_columns_names_count_and_their_order_does_not() -> None:
    assert input_hash({"a": 1, "b": 2}) == input_hash({"b": 2, "a": 1})
    assert input_hash({"a": 1}) != input_hash({"b": 1})
    assert input_hash({"a": 1, "b": None}) != input_hash({"a": 1})


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec=None), max_size=10),
    st.dates(),
    st.binary(max_size=4),
    st.lists(st.integers(), max_size=3),
)


@given(st.lists(st.tuples(VALUES, VALUES), max_size=6))
@example([(-(2**63) - 1, Decimal(2**63))])
@example([("\ud800", Decimal("0.5")), (1, None)])
def test_a_batch_has_the_hashes_of_its_rows(rows: list[tuple[object, object]]) -> None:
    columns = {"b": [b for b, _ in rows], "é": [e for _, e in rows]}
    assert input_hashes(columns) == [input_hash({"é": e, "b": b}) for b, e in rows]
