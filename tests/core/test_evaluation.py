"""Answers beside golden values: what counts as right, and what the gates say."""

from decimal import Decimal
from typing import Any

import pytest

from airflow_batch_llm.core.evaluation import (
    ColumnResult,
    Comparison,
    Evaluation,
    Expected,
    Golden,
    Measure,
    Pairs,
    Side,
    compare,
    key_of,
)
from airflow_batch_llm.core.evaluation_result import EvaluationResult, GateRuling, Subject, judge, page
from airflow_batch_llm.core.model import ColumnType
from airflow_batch_llm.core.output_type import Column
from airflow_batch_llm.errors import InputError

SUBJECT = Subject(
    run_id="dag/task/run/g1",
    model_id="anthropic:m",
    spec_hash="0" * 32,
    target="evaluated",
    evaluated_at=0.0,
    cost_usd=0.5,
    baseline="stored",
)


@pytest.mark.parametrize(
    ("kind", "expected", "golden", "answer", "right"),
    [
        ("string", {}, "bug", "bug", True),
        ("string", {}, "bug", "Bug", False),
        ("string", {"metric": "casefold"}, " Straße  7", "STRASSE 7", True),
        ("string", {"metric": "casefold"}, "a b", "ab", False),
        ("integer", {}, "7", 7, True),  # a file of text
        ("number", {}, Decimal("1.50"), 1.5, True),
        ("decimal", {}, "1.50", Decimal("1.5"), True),
        ("decimal", {}, "one", Decimal(1), False),
        ("boolean", {}, 1, True, True),  # a database without truth values
        ("number", {"metric": "number", "tolerance": 0.1}, 0.3, 0.4, True),
        ("number", {"metric": "number", "tolerance": 0.1}, 0.3, 0.41, False),
        ("number", {"metric": "number", "tolerance": 9}, None, 1.0, False),
        ("number", {"metric": "number", "tolerance": 9}, float("nan"), 1.0, False),
        ("json", {}, '{"b": 1, "a": 2}', {"a": 2, "b": 1.0}, True),
        ("json", {"metric": "set"}, '["x", "y"]', ["y", "x", "x"], True),
        ("json", {"metric": "set", "min_overlap": 0.5}, ["x", "y"], ["y", "z"], False),  # 1 of 3
        ("json", {"metric": "set", "min_overlap": 0.5}, ["x", "y"], ["y"], True),
        ("json", {"metric": "set"}, [], None, True),
        ("string", {"function": lambda golden, answer: golden in answer}, "sun", "a sunny day", True),
        ("string", {"function": lambda golden, answer: golden in answer}, "rain", "a sunny day", False),
    ],
)
def test_what_counts_as_right(
    kind: str, expected: dict[str, Any], golden: Any, answer: Any, right: bool
) -> None:
    measure = Measure(column=Column("a", ColumnType(kind)), expected=Expected(column="b", **expected))

    assert (measure.error(golden, answer) == 0) is right


def test_rows_are_counted_and_the_worst_keys_shown_first() -> None:
    amount = Measure(
        column=Column("amount", ColumnType.NUMBER),
        expected=Expected(column="g", metric="number", tolerance=1),
    )
    label = Measure(
        column=Column("label", ColumnType.STRING),
        expected=Expected(column="h"),
        labels=("x", "y"),
        always_filled=True,
    )
    keys = [key_of([number]) for number in range(5)]
    golden = Golden(
        values=dict(zip(keys, [(1, "x"), (2, "y"), (3, "x"), (4, None), (5, "x")], strict=True)),
        shown={key: f"k{number}" for number, key in enumerate(keys)},
    )
    answers = Side(answers=dict(zip(keys, [(1, "x"), (9, "x"), (6, "x"), (4, "y")], strict=False)))
    stored = Side(answers={keys[0]: (7, "x"), keys[1]: (2, "y")}, is_stored=True)

    numbers, labels = compare([amount, label], golden, answers, stored, 0.95)

    assert (numbers.rows, numbers.right, numbers.no_answer, numbers.worst) == (5, 2, 1, ("k4", "k1", "k2"))
    assert (labels.rows, labels.right, labels.no_answer, labels.unlabelled) == (4, 2, 1, 1)
    assert labels.confusion == (("x", "x", 2), ("x", "(no answer)", 1), ("y", "x", 1))
    assert numbers.comparison == Comparison(pairs=Pairs(rows=2, lost=1, gained=1), right=1, left_out=3)
    assert labels.comparison == Comparison(pairs=Pairs(rows=2, lost=1, gained=0), right=2, left_out=2)


def result(evaluation: Evaluation, rows: int, right: int, lost: int = 0, gained: int = 0) -> EvaluationResult:
    """Judge one column, whose interval is that of the rows."""
    from airflow_batch_llm.core.evaluation import wilson

    low, high = wilson(right, rows, evaluation.confidence)
    column = ColumnResult(
        name="topic", golden="g", metric="exact", rows=rows, right=right, no_answer=0, unlabelled=0, low=low, high=high,
        comparison=Comparison(
            pairs=Pairs(rows=rows, lost=lost, gained=gained), right=right + lost - gained, left_out=0
        ),
    )  # fmt: skip
    return judge(SUBJECT, evaluation, [column])


@pytest.mark.parametrize(
    ("gates", "counts", "ruling", "words"),
    [
        ({"min_accuracy": 0.8}, (500, 450), GateRuling.PASSED, "is above min_accuracy=0.8."),
        ({"min_accuracy": 0.8}, (500, 300), GateRuling.FAILED, "is below min_accuracy=0.8."),
        (
            {"min_accuracy": 0.8},
            (50, 39),
            GateRuling.FAILED,
            "though 50 rows do not show that its true accuracy is.",
        ),
        ({"min_accuracy": 0.8}, (50, 42), GateRuling.UNCLEAR, "can't tell with 50 rows; to tell takes about"),
        (
            {"max_regression": 0},
            (500, 425, 69, 34),
            GateRuling.FAILED,
            "is 7.0 points worse than the baseline",
        ),
        ({"max_regression": 0}, (500, 460, 34, 69), GateRuling.PASSED, "keeps within max_regression=0"),
        ({"max_regression": 0}, (500, 460, 30, 28), GateRuling.UNCLEAR, "can't tell with 500 rows"),
        ({"max_regression": 0.05}, (500, 460, 30, 28), GateRuling.PASSED, "keeps within max_regression=0.05"),
        ({"max_regression": 0.05}, (500, 425, 69, 34), GateRuling.UNCLEAR, "can't tell with 500 rows"),
        ({"max_regression": 0}, (0, 0), GateRuling.UNCLEAR, "the baseline has no row"),
        ({"min_accuracy": 0.8}, (0, 0), GateRuling.FAILED, "has no golden row to compare with"),
    ],
)
def test_a_gate_passes_fails_or_cannot_tell(
    gates: dict[str, float], counts: tuple[int, ...], ruling: GateRuling, words: str
) -> None:
    judged = result(Evaluation(**gates), *counts)  # type: ignore[arg-type]
    strict = result(Evaluation(**gates, fail_when_unclear=True), *counts)  # type: ignore[arg-type]

    (finding,) = judged.findings
    assert finding.ruling is ruling
    assert words in finding.words
    assert finding.words in judged.verdict
    assert judged.passed is (ruling is not GateRuling.FAILED)
    assert strict.passed is (ruling is GateRuling.PASSED)
    assert EvaluationResult.from_json(judged.to_json()) == judged


def test_an_unknown_answer_column_is_refused_and_by_default_all_are_compared() -> None:
    columns = [Column("topic", ColumnType.STRING), Column("urgent", ColumnType.BOOLEAN)]

    found = Evaluation().measured(columns)
    assert {name: one.column for name, one in found.items()} == {
        "topic": "expected_topic",
        "urgent": "expected_urgent",
    }
    with pytest.raises(InputError, match="expected names label, which is not a column of the answer"):
        Evaluation(expected={"label": "x"}).measured(columns)  # type: ignore[dict-item]


def test_the_page_escapes_what_comes_from_tables_and_loads_nothing() -> None:
    label = Measure(
        column=Column("<b>", ColumnType.STRING), expected=Expected(column="g"), labels=("<i>x", "y&\x1b")
    )
    keys = [key_of([name]) for name in ("one", "two")]
    golden = Golden(
        values={keys[0]: ("<i>x",), keys[1]: ("y&\x1b",)},
        shown={keys[0]: "<script>alert(1)</script>", keys[1]: '"two"'},
    )
    side = Side(answers={keys[0]: ("y&\x1b",), keys[1]: ("<i>x",)})
    columns = compare([label], golden, side, side, 0.95)

    drawn = page(judge(SUBJECT, Evaluation(min_accuracy=0.5, max_regression=0.1), columns))

    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in drawn
    assert "&lt;b&gt;" in drawn
    for marker in ("<script", "<i>", "<b>", "\x1b", "http:", "https:", "src=", "@import", "url("):
        assert marker not in drawn
