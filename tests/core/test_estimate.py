"""Estimate the cost of a run before the first cent is spent."""

import math
import random
from dataclasses import replace
from decimal import Decimal
from statistics import mean, stdev
from typing import Literal

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from airflow_batch_llm.core.caching import CachedRun
from airflow_batch_llm.core.estimate import Later, Measured, RequestSize, estimate, likely, usual_answer
from airflow_batch_llm.core.output_type import Embedding, OutputType
from airflow_batch_llm.core.price import PriceList

PRICES = PriceList.of("openai", "m", {"m": {"input": 2, "output": 8}}, at=0)
UNKNOWN = PriceList.of("openai", "unheard-of", at=0)


def test_a_counted_sample_is_scaled_up_to_all_requests() -> None:
    size = RequestSize(
        requests=1000, prompt_bytes=400_000, sample=[(300, 150), (500, 200)], max_tokens=50, answer_tokens=10
    )
    guess = estimate(PRICES, size)
    assert guess.input_tokens == 175_000
    assert guess.output_tokens == 10_000
    assert guess.expected == Decimal("0.175") + Decimal("0.04")
    assert guess.low == Decimal("0.175") + Decimal("0.004")
    assert guess.high == Decimal("0.175") + Decimal("0.2")
    assert guess.per_request == Decimal("0.000215")
    assert "2 prompts" in guess.assumptions[0]


def test_what_each_request_repeats_does_not_grow_with_the_prompts() -> None:
    sample = [(400, 1100)] * 5  # of which 1000 tokens are the system prompt
    size = RequestSize(requests=10, prompt_bytes=8000, sample=sample, max_tokens=1)
    assert estimate(PRICES, size).input_tokens == 12_000


def test_without_a_sample_the_bytes_decide_and_the_range_is_wider() -> None:
    size = RequestSize(requests=100, prompt_bytes=40_000, shared_bytes=400, max_tokens=10, answer_tokens=10)
    guess = estimate(PRICES, size)
    assert guess.input_tokens == 20_000
    assert "4 to a token" in guess.assumptions[0]
    assert guess.expected == Decimal("0.024")
    assert guess.low is not None
    assert guess.high is not None
    assert guess.low < Decimal("0.024") < guess.high


def test_an_unknown_price_makes_no_dollars_and_says_how_to_give_one() -> None:
    guess = estimate(UNKNOWN, RequestSize(requests=1, prompt_bytes=4))
    assert guess.low is guess.expected is guess.high is guess.per_request is None
    assert "prices={'unheard-of': {'input'" in guess.assumptions[-1]


def test_an_assumed_price_is_among_the_assumptions() -> None:
    assumed = PriceList.of("openai", "text-embedding-3-small", at=1_795_000_000)
    guess = estimate(assumed, RequestSize(requests=1, prompt_bytes=4))
    assert assumed.assumed in guess.assumptions


def test_a_prompt_that_may_pass_into_a_dearer_tier_is_mentioned() -> None:
    tiered = PriceList.of("openai", "gpt-6-luna", at=1_795_000_000)
    said = estimate(
        tiered, RequestSize(requests=20, prompt_bytes=2_000_000, largest_bytes=1_990_000)
    ).assumptions
    assert any("above 272,000 input tokens" in line for line in said)
    said = estimate(tiered, RequestSize(requests=2, prompt_bytes=2000, largest_bytes=1000)).assumptions
    assert not any("272,000" in line for line in said)


def test_an_answer_without_a_limit_still_has_a_high_end() -> None:
    guess = estimate(PRICES, RequestSize(requests=1, prompt_bytes=0, sample=[(0, 0)], max_tokens=None))
    assert guess.high is not None
    assert guess.expected is not None
    assert guess.high > guess.expected


def test_no_requests_cost_nothing() -> None:
    guess = estimate(PRICES, RequestSize(requests=0, prompt_bytes=0))
    assert (guess.low, guess.expected, guess.high) == (0, 0, 0)
    assert guess.per_request == 0


class Ticket(BaseModel):
    urgent: bool
    summary: str
    steps: list[str]
    topic: Literal["bug", "other"] | None


@pytest.mark.parametrize(
    ("wanted", "tokens"), [(str, 300), (["a", "b"], 12), (int, 12), (Ticket, 144), (Embedding, 0)]
)
def test_the_usual_answer_depends_on_its_type(wanted: object, tokens: int) -> None:
    assert usual_answer(OutputType.of(wanted)) == tokens


def test_an_embedding_pays_for_no_output() -> None:
    guess = estimate(
        PRICES, RequestSize(requests=1, prompt_bytes=0, sample=[(0, 100)], max_tokens=1024, answer_tokens=0)
    )
    assert guess.output_tokens == 0
    assert guess.low == guess.expected == guess.high


@given(
    requests=st.integers(0, 10**6),
    mean=st.integers(0, 10**5),
    sample=st.lists(st.tuples(st.integers(0, 10**5), st.integers(1, 10**5)), max_size=5),
    max_tokens=st.one_of(st.none(), st.integers(1, 10**5)),
    answer=st.integers(0, 10**4),
)
def test_low_expected_and_high_are_in_order_and_can_be_stored(
    requests: int, mean: int, sample: list[tuple[int, int]], max_tokens: int | None, answer: int
) -> None:
    size = RequestSize(
        requests=requests,
        prompt_bytes=requests * mean,
        sample=sample,
        max_tokens=max_tokens,
        answer_tokens=answer,
    )
    guess = estimate(PRICES, size)
    assert guess.low is not None
    assert guess.expected is not None
    assert guess.high is not None
    assert 0 <= guess.low <= guess.expected <= guess.high
    stored = orjson.loads(orjson.dumps(guess.to_json()))
    assert stored["expected"] == float(guess.expected)


def drawn_night(chance: random.Random, prompts: int) -> float:
    """Return the dollars of a night like those of `EARLIER`, in which chance decides."""
    dollars = 0.0
    for number in range(prompts):
        hit = number > 0 and chance.random() < 0.6
        dollars += 300 * 2e-6 + 1000 * (1e-6 if hit else 2e-6) + chance.gauss(50, 20) * 8e-6
    going = sum(chance.random() < 0.15 for _ in range(prompts))
    requests = math.ceil(going / 10)
    return dollars + requests * 0.004 + going * 0.0005


EARLIER = Measured(
    requests=10_000,
    prompt_bytes=1200.0,
    input_tokens=1300.0,
    output_tokens=50.0,
    output_variance=400.0,
    packed=Later(
        requests=150,
        prompts=1500,
        input_tokens=600_000,
        output_tokens=75_000,
        dollars=150 * 0.004 + 1500 * 0.0005,
        prompt_dollars=1500 * 0.0005,
    ),
)
HALF_READ = PriceList.of("openai", "m", {"m": {"input": 4, "output": 16, "cached": 2}}, at=0)


@pytest.mark.parametrize("prompts", [5, 70])
def test_nine_drawn_nights_in_ten_are_within_the_likely_range(prompts: int) -> None:
    cached = CachedRun(hit_rate=0.6, cached_tokens=600.0, written_tokens=0.0, won=1.0, requests=10_000)
    guess = estimate(
        HALF_READ,
        RequestSize(
            requests=prompts,
            prompt_bytes=1200 * prompts,
            rows_per_request=10,
            measured=EARLIER,
            cached=cached.among(prompts),
        ),
    )
    assert guess.expected is not None
    assert guess.spread is not None
    chance = random.Random(prompts)
    nights = [drawn_night(chance, prompts) for _ in range(1500)]
    assert float(guess.expected) == pytest.approx(mean(nights), rel=0.02)
    assert guess.spread == pytest.approx(stdev(nights), rel=0.05)
    low, high = likely(float(guess.expected), guess.spread)
    assert 0.86 < mean(low <= night <= high for night in nights) < 0.98


def test_few_later_requests_that_all_hit_the_cache_make_no_later_night_too_cheap() -> None:
    """Asked within seconds, they read what the first round has written. Each cost 10 cents in place of a dollar."""
    pair = Later(requests=2, prompts=2, dollars=0.2, prompt_dollars=0.1, hits=2, won=1.8)
    guesses = []
    for alone in (Later(), pair):
        measured = replace(EARLIER, requests=20, packed=Later(), alone=alone)
        size = RequestSize(requests=10_000, prompt_bytes=12_000_000, measured=measured)
        guesses.append(estimate(PRICES, size).expected)
    before, after = guesses
    assert before is not None
    assert after is not None
    assert float(after - before) == pytest.approx(10_000 * 0.1 * 0.1, rel=0.02)


def test_a_small_night_weighs_little_beside_a_large_one_and_a_changed_answer_shows_after_a_few() -> None:
    small = replace(EARLIER, requests=70, output_tokens=100.0, packed=Later())
    both = small.after(EARLIER)
    assert both.output_tokens == pytest.approx((70 * 100 + 1000 * 50) / 1070)
    assert both.packed.prompts / both.prompts == pytest.approx(0.15 * 1000 / 1070)
    assert replace(EARLIER, output_tokens=100.0).after(EARLIER).output_tokens > 95
    assert small.after(replace(EARLIER, is_packed=True)) is small
    assert Measured.from_json(both.to_json()) == both


def test_what_an_earlier_release_measured_still_counts() -> None:
    stored = {"requests": 40, "prompt_bytes": 100.0, "input_tokens": 90.0, "output_tokens": 5.0}
    later = {"items": 1.0, "is_packed": False, "later_dollars": 0.2, "later_input_tokens": 3.0}
    size = RequestSize(
        requests=10, prompt_bytes=1000, measured=Measured.from_json(orjson.dumps(stored | later))
    )
    guess = estimate(PRICES, size)
    assert (guess.input_tokens, guess.output_tokens, guess.spread) == (900, 50, None)
