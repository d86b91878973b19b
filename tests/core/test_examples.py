"""Examples are checked when they are given, and stand in the part that all requests share."""

from datetime import date
from decimal import Decimal
from typing import Any, Literal

import orjson
import pytest
from pydantic import BaseModel

from airflow_batch_llm.core.output_type import Embedding, OutputType
from airflow_batch_llm.core.prompt import compile_prompt, examples_of, identity_of_examples, with_examples
from airflow_batch_llm.core.settings import Source, Stage
from airflow_batch_llm.errors import InputError

PROMPT = compile_prompt("{{ subject }} in {{ params.days }} days", {"days": 3})


class Triage(BaseModel):
    topic: Literal["billing", "bug"]
    due: date
    fee: Decimal
    note: str | None = None


def lines(examples: Any, output_type: Any) -> list[Any]:
    text = with_examples("Be brief.", examples_of(examples), PROMPT, OutputType.of(output_type))
    assert text is not None
    head, _, shown = text.partition("\n\n")
    assert head == "Be brief."
    return [orjson.loads(line) for line in shown.split("\n")[1:]]


@pytest.mark.parametrize(
    ("output_type", "answer", "shown"),
    [
        (str, "A \u2028 text\n", "A \u2028 text\n"),
        (["billing", "bug"], "bug", {"label": "bug"}),
        (list[int], [1, 2], {"answer": [1, 2]}),
        (
            Triage,
            Triage(topic="bug", due=date(2026, 1, 2), fee=Decimal("1.50")),
            {"topic": "bug", "due": "2026-01-02", "fee": 1.5, "note": None},
        ),
        (
            Triage,
            {"topic": "bug", "due": date(2026, 1, 2), "fee": 2},
            {"topic": "bug", "due": "2026-01-02", "fee": 2},
        ),
    ],
)
def test_an_answer_is_shown_as_the_model_must_give_it(output_type: Any, answer: Any, shown: Any) -> None:
    assert lines([("Hi", answer)], output_type) == [{"input": "Hi", "answer": shown}]


def test_an_input_is_a_text_or_a_row() -> None:
    given = [
        ("Late", "bug"),
        {"input": {"subject": "Paid twice"}, "answer": "billing"},
        [{"subject": None}, "bug"],
    ]
    inputs = [line["input"] for line in lines(given, ["billing", "bug"])]
    assert inputs == ["Late", "Paid twice in 3 days", " in 3 days"]


@pytest.mark.parametrize(
    ("output_type", "examples", "message"),
    [
        (
            ["a", "b"],
            [("secret", "a"), ("secret", "secret")],
            r"examples\[1\]: the answer is none of the labels",
        ),
        (["a", "b"], [("secret", "A")], "none of the labels"),
        (str, [("secret", 7)], "must be a text"),
        (str, [("secret", "")], r"examples\[0\]: The answer is empty"),
        (Triage, [("secret", {"topic": "secret"})], r"examples\[0\]: The answer does not fit its schema"),
        (Triage, [("secret", {"topic": b"secret"})], "no form in JSON|does not fit"),
        (Embedding(), [("secret", "secret")], "answers in words"),
        (str, [("secret",)], "examples must be pairs"),
        (str, ("secret", "secret"), "examples must be pairs"),
        (str, "secret", "examples must be pairs"),
    ],
)
def test_what_does_not_fit_is_refused_when_the_stage_is_made(
    output_type: Any, examples: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message) as refused:
        Stage(
            source=Source(table="t"),
            key="id",
            model_id="openai:gpt-5-mini",
            target="labels",
            prompt="{{ subject }}",
            output_type=output_type,
            examples=examples,
        )
    assert "secret" not in str(refused.value)


def test_a_column_that_an_input_lacks_is_named() -> None:
    with pytest.raises(InputError, match=r"examples\[0\]: the input lacks subject"):
        lines([({"body": "x"}, "a")], ["a"])


def test_without_examples_nothing_changes() -> None:
    assert with_examples("Be brief.", (), PROMPT, OutputType.of(str)) == "Be brief."
    assert with_examples(None, (), PROMPT, OutputType.of(str)) is None
    assert identity_of_examples(()) is None
