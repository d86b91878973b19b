"""From an answer's text to typed values."""

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from airflow_batch_llm.core.answer import Answer, AnswerFault, AnswerParser, Invalid
from airflow_batch_llm.core.output_type import Embedding, Naming, OutputType
from airflow_batch_llm.errors import OutputTypeError

SECRET = "4111-1111"


class Item(BaseModel):
    sku: str


class Order(BaseModel):
    model_config = ConfigDict(extra="forbid")

    number: int
    total: float | None = None
    paid: bool
    day: date
    at: datetime
    state: Literal["open", "closed"]
    buyer: dict[str, int]
    items: list[Item]
    hint: str = ""


ORDER = {
    "number": 7,
    "total": 1,
    "paid": True,
    "day": "2026-02-03",
    "at": "2026-02-03T04:05:06+02:00",
    "state": "open",
    "buyer": {"b": 2, "a": 1},
    "items": [{"sku": "x"}],
}


def parser(wanted: object, naming: Naming | None = None) -> AnswerParser:
    made = OutputType.of(wanted, naming)
    return AnswerParser.of(OutputType.from_json(orjson.loads(orjson.dumps(made.to_json()))))


def order(**changes: Any) -> str:
    return orjson.dumps(ORDER | changes).decode()


def fault(told: Answer | Invalid) -> AnswerFault:
    assert isinstance(told, Invalid), told
    assert SECRET not in told.message
    return told.code


def test_an_answer_becomes_typed_values_in_the_order_of_the_columns() -> None:
    assert parser(Order).parse(order()) == Answer(
        (
            7,
            1.0,
            True,
            date(2026, 2, 3),
            datetime(2026, 2, 3, 2, 5, 6, tzinfo=UTC),
            "open",
            '{"a":1,"b":2}',
            '[{"sku":"x"}]',
            None,
        )
    )


def test_values_are_taken_from_where_the_columns_point() -> None:
    class Sale(BaseModel):
        seller: Order | None
        item: Item

    naming = Naming(columns={"sku": "item.sku", "n": "seller.number", "seller": "seller"})
    parse = parser(Sale, naming).parse
    assert parse('{"seller": null, "item": {"sku": "x"}}') == Answer(("x", None, None))


@pytest.mark.parametrize(
    "text",
    [
        "```json\n%s\n```",
        "```\n%s```",
        "  \n```JSON  \n%s\n  ```\n",
        "\n %s \n",
    ],
)
def test_one_fence_and_white_space_around_an_answer_do_not_matter(text: str) -> None:
    assert isinstance(parser(Order).parse(text % order()), Answer)
    assert parser(["a", "b"]).parse(text % '{"label": "a"}') == Answer(("a",))


@pytest.mark.parametrize(
    "text",
    [
        "Here it is: {}",
        "{} {}",
        "```json\n{}\n``` as you asked",
        '{"number": NaN}',
        '{"number": 1',
        "{'a': 1}",
    ],
)
def test_what_is_not_json_is_invalid(text: str) -> None:
    assert fault(parser(Order).parse(text)) is AnswerFault.NOT_JSON


@pytest.mark.parametrize("text", ["", " \n\t "])
@pytest.mark.parametrize("wanted", [str, ["a"], Order, Embedding])
def test_an_empty_answer_is_invalid(wanted: object, text: str) -> None:
    assert fault(parser(wanted).parse(text)) is AnswerFault.EMPTY


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"number": SECRET}, "$.number breaks 'type'"),
        ({"state": SECRET}, "$.state breaks 'enum'"),
        ({"items": [{"sku": "x"}, {}]}, "$.items[1].sku breaks 'required'"),
        ({"items": [{"sku": [SECRET]}]}, "$.items[0].sku breaks 'type'"),
        ({SECRET: 1}, "$ breaks 'additionalProperties'"),
        ({"buyer": {SECRET: "x"}}, "$.buyer.* breaks 'type'"),
        ({"paid": None}, "$.paid"),
    ],
)
def test_a_misfit_is_told_by_place_and_rule_and_never_by_value(changes: dict[str, Any], place: str) -> None:
    told = parser(Order).parse(order(**changes))
    assert fault(told) is AnswerFault.SCHEMA
    assert isinstance(told, Invalid)
    assert place in told.message


def test_a_null_that_stands_for_an_optional_property_is_no_misfit() -> None:
    told = parser(Order).parse(order(hint=None))
    assert isinstance(told, Answer)
    assert told.values[-1] is None


@pytest.mark.parametrize("text", ["[]", "3", '"text"', "null", "true"])
def test_json_that_is_no_object_is_invalid(text: str) -> None:
    assert fault(parser({"properties": {"a": {"type": "integer"}}}).parse(text)) is AnswerFault.SCHEMA


@pytest.mark.parametrize(
    ("number", "value"),
    [
        ("0", 0),
        ("-9223372036854775808", -(2**63)),
        ("9223372036854775807", 2**63 - 1),
        ("3.0", 3),
        ("1e3", 1000),
    ],
)
def test_an_integer_is_an_integer_however_it_is_written(number: str, value: int) -> None:
    told = parser(int).parse(f'{{"answer": {number}}}')
    assert told == Answer((value,))
    assert isinstance(told, Answer)
    assert type(told.values[0]) is int


@pytest.mark.parametrize(
    "number", ["9223372036854775808", "-9223372036854775809", "18446744073709551616", "1e19"]
)
def test_an_integer_beyond_64_bits_is_invalid(number: str) -> None:
    assert fault(parser(int).parse(f'{{"answer": {number}}}')) is AnswerFault.RANGE


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-02-03T04:05:06Z", datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)),
        ("2026-02-03T04:05:06.7-01:30", datetime(2026, 2, 3, 5, 35, 6, 700_000, tzinfo=UTC)),
        ("2026-02-03 04:05", datetime(2026, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-02-03", datetime(2026, 2, 3, tzinfo=UTC)),
    ],
)
def test_a_timestamp_lands_in_utc(text: str, moment: datetime) -> None:
    told = parser(datetime).parse(orjson.dumps({"answer": text}).decode())
    assert told == Answer((moment,))
    assert isinstance(told, Answer)
    assert told.values[0].tzinfo is UTC  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ["yesterday", SECRET, "2026-02-30", "0001-01-01T00:00:00+23:00", ""])
def test_a_text_that_is_no_date_is_out_of_range(text: str) -> None:
    for wanted in (datetime, date):
        told = parser(wanted).parse(orjson.dumps({"answer": text}).decode())
        assert fault(told) is AnswerFault.RANGE


def test_a_character_that_tables_cannot_hold_is_replaced() -> None:
    assert parser(str).parse("a\0b") == Answer(("a\ufffdb",))
    answer = {"buyer": {"k\0": 1}, "hint": "\0", "items": [{"sku": "\0"}]}
    told = parser(Order).parse(order(**answer))
    assert isinstance(told, Answer)
    assert told.values[6:] == ('{"k\ufffd":1}', '[{"sku":"\ufffd"}]', "\ufffd")


def test_a_backslash_before_u0000_is_not_that_character() -> None:
    told = parser(Order).parse(order(items=[{"sku": "\\u0000"}]))
    assert isinstance(told, Answer)
    assert orjson.loads(str(told.values[7])) == [{"sku": "\\u0000"}]


@pytest.mark.parametrize("depth", [100, 300, 900])
def test_a_deeply_nested_answer_costs_no_more_than_its_row(depth: int) -> None:
    nested = "[" * depth + "]" * depth
    wanted = {"type": "object", "properties": {"a": {}, "b": {"type": "integer"}}}
    told = parser(wanted).parse(f'{{"a": {nested}, "b": null}}')
    if depth > 250:
        assert fault(told) in (AnswerFault.SCHEMA, AnswerFault.RANGE)
    else:
        assert told == Answer((nested, None))


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ('{"label": "Billing"}', "Billing"),
        ('{"label": "billing"}', "Billing"),
        ('{"label": "  BILLING\\n"}', "Billing"),
        ('"Billing"', "Billing"),
        ("Billing", "Billing"),
        (" billing\n", "Billing"),
        ('{"label": "us"}', "us"),
        ('{"label": "US"}', "US"),
        ('{"label": "STRASSE"}', "straße"),
        ('{"label": "1"}', "1"),
    ],
)
def test_a_label_is_found_by_case_and_space_where_that_is_clear(text: str, label: str) -> None:
    assert parser(["Billing", "us", "US", "straße", "1"]).parse(text) == Answer((label,))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"label": "Us"}', AnswerFault.LABEL),
        ('{"label": "4111-1111"}', AnswerFault.LABEL),
        ("It is Billing, 4111-1111.", AnswerFault.LABEL),
        ('{"label": 1}', AnswerFault.SCHEMA),
        ('{"lable": "Billing"}', AnswerFault.SCHEMA),
        ("1", AnswerFault.SCHEMA),
        ('["Billing"]', AnswerFault.SCHEMA),
    ],
)
def test_what_is_clearly_none_of_the_labels_is_invalid(text: str, code: AnswerFault) -> None:
    assert fault(parser(["Billing", "us", "US", "1"]).parse(text)) is code


@pytest.mark.parametrize("label", ["a", "b"])
def test_the_name_of_the_label_column_does_not_change_how_answers_are_read(label: str) -> None:
    parse = parser(["a", "b"], Naming(output_column="verdict")).parse
    assert parse(f'{{"label": "{label}"}}') == Answer((label,))


def test_free_text_lands_as_it_is() -> None:
    assert parser(str).parse(' ```json\n{"a": 1}\n``` ') == Answer((' ```json\n{"a": 1}\n``` ',))


def test_an_embedding_lands_as_a_list_of_floats() -> None:
    assert parser(Embedding).parse("[1, 0.5, -2e-3]") == Answer(([1.0, 0.5, -0.002],))
    assert parser(Embedding(2)).parse("[1, 2]") == Answer(([1.0, 2.0],))


@pytest.mark.parametrize("text", ["[1]", "[1, 2, 3]", "[]", "[true, 1]", '["1", 2]', "{}", "x", "[1, null]"])
def test_an_embedding_of_another_shape_is_invalid(text: str) -> None:
    assert fault(parser(Embedding(2)).parse(text)) in (AnswerFault.NOT_JSON, AnswerFault.SCHEMA)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.sampled_from([*ORDER, "x"]), children, max_size=9)
    ),
    max_leaves=12,
)


@given(
    st.one_of(
        JSON, st.builds(lambda changes: ORDER | changes, st.dictionaries(st.sampled_from([*ORDER]), JSON))
    )
)
def test_every_json_text_is_either_an_answer_of_every_column_or_invalid(value: object) -> None:
    for wanted in (Order, list[Order], Order | None, ["a", "b"], Embedding, int | str):
        parse = PARSERS.setdefault(str(wanted), parser(wanted)).parse
        told = parse(orjson.dumps(value).decode())
        if isinstance(told, Answer):
            assert len(told.values) == len(OutputType.of(wanted).columns)


@given(st.text(max_size=60))
def test_no_text_makes_the_parser_fail(text: str) -> None:
    for wanted in (Order, ["a", "b"], Embedding, str):
        parse = PARSERS.setdefault(str(wanted), parser(wanted)).parse
        assert isinstance(parse(text), Answer | Invalid)


PARSERS: dict[str, AnswerParser] = {}


@pytest.mark.parametrize(
    ("written", "exact"),
    [
        ("0.1", "0.1"),
        ("12345678901234567890123456789.123456789", "12345678901234567890123456789.123456789"),
        ("1.50e2", "150"),
        ("-0.000000001", "-0.000000001"),
        ("1.5000000000000", "1.5"),
        ('"  19.99 "', "19.99"),
        ("null", None),
    ],
)
def test_a_decimal_keeps_each_digit_that_the_answer_writes(written: str, exact: str | None) -> None:
    schema = {
        "type": "object",
        "properties": {"x": {"type": ["number", "string", "null"], "format": "decimal"}},
    }
    answer = parser(schema).parse(f'```json\n{{"x": {written}, "y": 1.0}}\n```')
    assert answer == Answer((None if exact is None else Decimal(exact),))


@pytest.mark.parametrize(
    "written",
    [
        "12.345",
        "12345.6",
        "1e9999",
        '"1e99999999999999999999"',
        '"NaN"',
        '"1_0"',
        '"money"',
        '"\u0661"',
        "1" * 5000,
    ],
)
def test_what_a_decimal_column_would_round_or_cannot_read_is_out_of_range(written: str) -> None:
    money = {"type": ["number", "string"], "format": "decimal", "maxDigits": 6, "decimalPlaces": 2}
    judged = parser({"type": "object", "properties": {"x": money}}).parse(f'{{"x": {written}}}')
    assert fault(judged) in (AnswerFault.RANGE, AnswerFault.NOT_JSON)
    assert not isinstance(judged, Answer)


def test_the_bounds_and_digits_of_a_pydantic_decimal_are_those_of_the_column() -> None:
    made = OutputType.of(Annotated[Decimal, Field(ge=0, le=100, max_digits=6, decimal_places=2)])
    assert made.columns[0].digits == (6, 2)
    assert fault(AnswerParser.of(made).parse('{"answer": 100.01}')) is AnswerFault.SCHEMA
    assert AnswerParser.of(made).parse('{"answer": 99.10}') == Answer((Decimal("99.1"),))
    with pytest.raises(OutputTypeError, match="max_digits and decimal_places"):
        OutputType.of(Annotated[Decimal, Field(max_digits=50)])
