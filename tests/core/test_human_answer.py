"""A person's answer is judged as a model's, from the values that a database driver gives."""

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel

from airflow_batch_llm.core.answer import Answer, AnswerFault, HumanAnswerParser, Invalid
from airflow_batch_llm.core.output_type import Embedding, Naming, OutputType


class Buyer(BaseModel):
    name: str
    address: str


class Order(BaseModel):
    number: int
    total: Decimal
    paid: bool
    at: datetime
    day: date
    lines: list[str]
    note: str | None = None
    buyer: Buyer | None = None


ORDER = (
    7,
    Decimal("12.50"),
    True,
    datetime(2026, 3, 1, 9, tzinfo=UTC),
    date(2026, 3, 1),
    '["a"]',
    None,
    None,
)


@pytest.mark.parametrize(
    ("wanted", "given", "typed"),
    [
        (str, ("a text",), ("a text",)),
        (["bug", "1"], ("1",), ("1",)),
        (["bug", "other"], (" Bug ",), ("bug",)),
        (list[int], ("[1, 2]",), ("[1,2]",)),
        (Embedding(2), ("[1, 2.5]",), ([1.0, 2.5],)),
        (Order, ORDER, ORDER),
        (Order, (7.0, 12.5, 1, datetime(2026, 3, 1, 9), "2026-03-01", ["a"], None, None), ORDER),  # noqa: DTZ001
        (Order, ("7", "12.50", "1", "2026-03-01 09:00:00", "2026-03-01", '["a"]', None, None), ORDER),
    ],
    ids=["text", "label", "label but for case", "value", "embedding", "object", "another driver", "texts"],
)
def test_an_answer_that_fits_has_the_types_of_a_model_s(
    wanted: Any, given: tuple[Any, ...], typed: Any
) -> None:
    assert HumanAnswerParser.of(OutputType.of(wanted)).parse(given) == Answer(typed)


@pytest.mark.parametrize(
    ("wanted", "given", "code"),
    [
        (str, (None,), AnswerFault.EMPTY),
        (["bug"], ("something else",), AnswerFault.LABEL),
        (list[int], ('["a"]',), AnswerFault.SCHEMA),
        (list[int], ("[1",), AnswerFault.NOT_JSON),
        (Order, (7.5, *ORDER[1:]), AnswerFault.SCHEMA),
        (Order, (None, *ORDER[1:]), AnswerFault.SCHEMA),
        (Order, (2**70, *ORDER[1:]), AnswerFault.NOT_JSON),
        (Order, ("seven", *ORDER[1:]), AnswerFault.SCHEMA),
        (Order, (7, "NaN", *ORDER[2:]), AnswerFault.NOT_JSON),
        (Order, (*ORDER[:4], "tomorrow", *ORDER[5:]), AnswerFault.RANGE),
    ],
    ids=[
        "nothing",
        "label",
        "type",
        "json",
        "fraction",
        "required",
        "too large",
        "word",
        "not a number",
        "no day",
    ],
)
def test_one_that_does_not_is_invalid_without_a_value_in_the_message(
    wanted: Any, given: tuple[Any, ...], code: AnswerFault
) -> None:
    found = HumanAnswerParser.of(OutputType.of(wanted)).parse(given)

    assert isinstance(found, Invalid)
    assert found.code is code
    assert not any(str(value) in found.message for value in given if value not in (None, True))


def test_columns_that_show_a_part_of_the_answer_are_judged_by_that_part() -> None:
    columns = {"number": "number", "buyer_name": "buyer.name"}
    parser = HumanAnswerParser.of(OutputType.of(Order, Naming(columns=columns)))

    assert parser.parse((7, "Ada")) == Answer((7, "Ada"))
    assert parser.parse((7, None)) == Answer((7, None))
    assert isinstance(parser.parse((None, "Ada")), Invalid)
    assert isinstance(parser.parse((7, 8)), Invalid)
