"""Intervals and tests beside values that are worked out in another way."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_batch_llm.core.evaluation import Pairs, rows_for_share, wilson

CONFIDENCE = 0.95


def test_wilsons_interval_has_the_published_values() -> None:
    # Newcombe 1998, table I, method 3.
    assert wilson(81, 263, CONFIDENCE) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148, CONFIDENCE) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20, CONFIDENCE) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(0, 0, CONFIDENCE) == (0.0, 1.0)


def test_mcnemars_test_is_the_binomial_one() -> None:
    assert Pairs(rows=50, lost=9, gained=1).p_worse() == pytest.approx(11 / 1024)
    assert Pairs(rows=50, lost=9, gained=1).p_different == pytest.approx(22 / 1024)
    assert Pairs(rows=50, lost=1, gained=9).p_better() == pytest.approx(11 / 1024)
    assert Pairs(rows=50, lost=0, gained=0).p_different == 1.0


@pytest.mark.parametrize(("lost", "gained"), [(9, 2), (2, 9), (4, 0), (0, 0)])
def test_the_ends_of_the_interval_of_a_drop_are_where_tangos_score_rejects(lost: int, gained: int) -> None:
    pairs = Pairs(rows=50, lost=lost, gained=gained)

    scores = [_score(pairs, end) for end in pairs.drop_between(CONFIDENCE)]

    assert scores == pytest.approx([1.96, -1.96], abs=0.01)


@given(st.integers(1, 60), st.integers(0, 60), st.integers(0, 60))
def test_the_interval_of_a_drop_holds_the_drop_and_turns_with_the_sides(
    rows: int, lost: int, gained: int
) -> None:
    pairs = Pairs(rows=rows + lost + gained, lost=lost, gained=gained)

    low, high = pairs.drop_between(CONFIDENCE)

    assert -1 <= low <= pairs.drop <= high <= 1
    assert pairs.swapped.drop_between(CONFIDENCE) == pytest.approx((-high, -low), abs=1e-9)
    assert pairs.p_worse(0.02) + pairs.p_better(0.02) == pytest.approx(1)


def test_a_real_drop_is_seen_and_chance_is_not() -> None:
    # 500 rows, of which the baseline has 92 % right: candidates with 85 % and with 92 %.
    found = {0.85: 0, 0.92: 0}
    for seed in range(100):
        for truth in found:
            found[truth] += _pairs(random.Random(f"{seed} {truth}"), 500, 0.92, truth).p_worse() <= 0.05

    assert found[0.85] >= 90
    assert found[0.92] <= 5


def test_as_many_rows_as_are_said_to_be_needed_are_enough_in_four_of_five_cases() -> None:
    asked = Pairs(rows=100, lost=12, gained=7)
    needed = asked.rows_needed(0.0, CONFIDENCE)
    assert needed is not None

    draws = [_drawn(random.Random(seed), needed, 0.12, 0.07) for seed in range(200)]

    assert 0.72 <= sum(pairs.p_worse() <= 0.05 for pairs in draws) / len(draws) <= 0.9
    assert Pairs(rows=100, lost=5, gained=5).rows_needed(0.0, CONFIDENCE) is None
    share = rows_for_share(0.9, 0.85, CONFIDENCE)
    assert share is not None
    assert math.isclose(share, 283, abs_tol=5)


def _score(pairs: Pairs, drop: float) -> float:
    """The score at a true drop, with the likeliest share of gained rows found by trying all of them."""
    least, most = max(0.0, -drop), (1 - drop) / 2
    tried = [least + (most - least) * (step + 0.5) / 20_000 for step in range(20_000)]
    both = pairs.rows - pairs.lost - pairs.gained

    def likelihood(gained: float) -> float:
        return (
            pairs.lost * math.log(gained + drop)
            + pairs.gained * math.log(gained)
            + both * math.log(1 - 2 * gained - drop)
        )

    gained = max(tried, key=likelihood)
    return (pairs.lost - pairs.gained - pairs.rows * drop) / math.sqrt(
        pairs.rows * (2 * gained + drop - drop**2)
    )


def _pairs(chance: random.Random, rows: int, theirs: float, mine: float) -> Pairs:
    drawn = [(chance.random() < theirs, chance.random() < mine) for _ in range(rows)]
    return Pairs(rows=rows, lost=drawn.count((True, False)), gained=drawn.count((False, True)))


def _drawn(chance: random.Random, rows: int, lost: float, gained: float) -> Pairs:
    places = [chance.random() for _ in range(rows)]
    return Pairs(
        rows=rows,
        lost=sum(place < lost for place in places),
        gained=sum(lost <= place < lost + gained for place in places),
    )
