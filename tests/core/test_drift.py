"""Labels that are spread otherwise than before: how far, and if chance explains it."""

import random
from collections import Counter

import pytest

from airflow_batch_llm.core.drift import add_mixes, closed_columns, label_of, shifts
from airflow_batch_llm.core.output_type import OutputType

SHARES = {"a": 0.5, "b": 0.3, "c": 0.15, "d": 0.05}


def drawn(seed: str, rows: int, shares: dict[str, float]) -> dict[str, dict[str, int]]:
    labels = random.Random(seed).choices(list(shares), list(shares.values()), k=rows)
    return {"topic": dict(Counter(labels))}


def test_the_index_is_the_known_one() -> None:
    # Shares of 0.6, 0.4 and 0.5, 0.5: 0.1 * ln(0.6 / 0.5) - 0.1 * ln(0.4 / 0.5).
    (shift,) = shifts({"x": {"p": 500_000, "q": 500_000}}, {"x": {"p": 600_000, "q": 400_000}})

    assert shift.index == pytest.approx(0.040547, abs=1e-5)
    assert (shift.before, shift.now, shift.is_sure) == (
        0.5,
        pytest.approx(0.6 if shift.label == "p" else 0.4),
        True,
    )


def test_a_label_that_is_new_or_gone_makes_a_finite_shift() -> None:
    (shift,) = shifts({"x": {"p": 100}}, {"x": {"q": 100}})

    assert 5 < shift.index < 20
    assert shift.is_sure
    assert shifts({}, {"x": {"q": 1}}) == shifts({"x": {"q": 1}}, {}) == []


def test_chance_is_hardly_ever_called_a_shift_and_a_real_one_is_seen() -> None:
    moved = {"a": 0.3, "b": 0.5, "c": 0.15, "d": 0.05}
    false = found = 0
    for seed in range(500):
        before = add_mixes(drawn(f"{seed} {run}", 60, SHARES) for run in range(5))
        false += shifts(before, drawn(f"{seed} now", 60, SHARES))[0].is_sure
        found += shifts(before, drawn(f"{seed} now", 500, moved))[0].is_sure

    assert false <= 3
    assert found >= 485


def test_labels_and_booleans_are_counted_and_free_texts_are_not() -> None:
    schema = {
        "type": "object",
        "properties": {
            "topic": {"enum": ["a", "b", None]},
            "urgent": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
            "summary": {"type": "string"},
            "score": {"type": "integer"},
            "level": {"enum": [1, 2]},
            "many": {"enum": [f"label {number}" for number in range(51)]},
        },
    }

    assert closed_columns(OutputType.of(schema)) == ("topic", "urgent")
    assert closed_columns(OutputType.of(["x", "y"])) == ("label",)
    assert closed_columns(OutputType.of(str)) == ()
    assert [label_of(value) for value in ("a", True, None)] == ["a", "true", "(null)"]
