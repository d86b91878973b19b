"""Caching is asked for where it pays: by the prices, by what earlier runs measured, by the number of requests."""

from dataclasses import replace

import pytest

from airflow_batch_llm.core.caching import CachedRun, CacheTotals, LastRuns, SharedPart, decide
from airflow_batch_llm.core.model import Caching, Usage, Way
from airflow_batch_llm.core.price import CacheFactors, PriceList
from airflow_batch_llm.core.settings import Request
from airflow_batch_llm.errors import InputError

FACTORS = CacheFactors(write=2.0, read=0.1)
NOW = 1_795_000_000.0


def part(
    tokens: float = 2000, least: int | None = 1024, requests: int = 1000, way: Way = Way.BATCH
) -> SharedPart:
    return SharedPart(tokens=tokens, least=least, requests=requests, way=way)


def run(hit_rate: float, won: float) -> CachedRun:
    return CachedRun(hit_rate=hit_rate, cached_tokens=0.0, written_tokens=0.0, won=won)


@pytest.mark.parametrize("way", [Way.BATCH, Way.NOW])
@pytest.mark.parametrize(
    ("model", "percent"), [("claude-haiku-4-5", 53), ("claude-sonnet-4-6", 53), ("claude-sonnet-5-5", 51)]
)
def test_an_hour_in_the_cache_pays_above_this_share_of_hits(model: str, percent: int, way: Way) -> None:
    prices = PriceList.of("anthropic", model, at=NOW).by(way)
    assert prices.cache_factors is not None
    even = prices.cache_factors.break_even
    assert round(even * 100) == percent

    def cost(hits: float) -> object:
        read, tokens = round(hits * 1_000_000), 1_000_000
        return prices.cost(Usage(tokens, read, tokens - read))

    plain = prices.cost(Usage(1_000_000))
    assert plain is not None
    assert cost(even + 0.01) < plain < cost(even - 0.01)  # type: ignore[operator]


def test_what_costs_no_more_to_write_always_pays() -> None:
    factors = PriceList.of("openai", "gpt-5-mini", at=NOW).cache_factors
    assert factors is not None
    assert (factors.write, round(factors.read, 2), factors.break_even) == (1.0, 0.1, 0.0)
    flat = PriceList.of("anthropic", "mine", {"mine": {"input": 1.0}}, at=NOW).cache_factors
    assert flat is not None
    assert flat.break_even == 1.0


@pytest.mark.parametrize(
    ("changes", "before", "asks"),
    [
        ({}, None, True),
        ({"tokens": 700}, None, False),
        ({"tokens": 900}, None, True),  # it may be long enough, and a mark that is not costs nothing
        ({"least": None}, None, False),
        ({"requests": 5}, None, False),
        ({"requests": 7}, None, True),
        ({"requests": 9, "way": Way.NOW}, None, False),
        ({"requests": 11, "way": Way.NOW}, None, True),
        ({}, run(0.6, 1.0), True),
        ({"requests": 7}, run(0.54, 1.0), False),
        ({}, run(0.5, -1.0), False),
    ],
)
def test_auto_asks_where_it_is_expected_to_pay(
    changes: dict[str, object], before: CachedRun | None, asks: bool
) -> None:
    given = part(**changes)  # type: ignore[arg-type]
    last = LastRuns(asked=before)
    how = decide(Caching.AUTO, given, FACTORS, last).how
    assert how is (Caching.ON if asks else Caching.OFF if before and before.won < 0 else Caching.AUTO)
    always = decide(Caching.ON, given, FACTORS, last).how
    assert always is (Caching.AUTO if given.least is None else Caching.ON)
    assert decide(Caching.OFF, given, FACTORS, last).how is Caching.OFF


def test_auto_never_asks_at_an_unknown_price() -> None:
    assert decide(Caching.AUTO, part(), None).how is Caching.AUTO


def test_who_has_lost_money_is_told() -> None:
    decision = decide(Caching.AUTO, part(), FACTORS, LastRuns(asked=run(0.312, -1.5)))
    assert decision.warns
    assert "lost $1.5000" in decision.why
    assert "31.2% of hits" in decision.why


@pytest.mark.parametrize(
    ("given", "means"),
    [(True, "on"), (False, "off"), ("on", "on"), ("off", "off"), ("auto", "auto"), (None, "auto")],
)
def test_the_choice_is_a_word_or_the_boolean_of_older_files(given: object, means: str) -> None:
    request = Request() if given is None else Request(cache_system_prompt=given)  # type: ignore[arg-type]
    assert request.cache_system_prompt == means


def test_another_word_is_refused() -> None:
    with pytest.raises(InputError, match="cache_system_prompt must be one of 'auto', 'on' or 'off'"):
        Request(cache_system_prompt="always")  # type: ignore[arg-type]


def test_the_first_request_of_a_small_run_is_expected_to_find_nothing() -> None:
    measured = CachedRun(hit_rate=0.6, cached_tokens=600.0, written_tokens=400.0, won=1.0)
    four, one = measured.among(4), measured.among(1)
    assert (four.hit_rate, four.cached_tokens, four.written_tokens) == pytest.approx((0.45, 450.0, 550.0))
    assert (one.cached_tokens, one.written_tokens) == (0.0, 1000.0)
    assert replace(measured, written_tokens=0.0).among(2).written_tokens == 0.0


def test_what_the_vendor_does_unasked_is_turned_off_where_it_lost_money() -> None:
    lost = LastRuns(unasked=run(0.1, -1.5))
    assert decide(Caching.AUTO, part(least=None), FACTORS, lost).how is Caching.OFF
    assert decide(Caching.AUTO, part(requests=1), FACTORS, lost).how is Caching.OFF
    assert decide(Caching.AUTO, part(), FACTORS, lost).how is Caching.ON


def test_a_run_of_the_same_size_is_expected_to_use_the_cache_as_it_did() -> None:
    usage = Usage(input_tokens=20_000, cached_tokens=6 * 1000, cache_write_tokens=4 * 1000)
    measured = CachedRun.of(CacheTotals(answers=10, hits=6, won=1.0), usage, 10, Way.BATCH)
    same = measured.among(10)
    assert (same.hit_rate, same.cached_tokens, same.written_tokens) == pytest.approx((0.6, 600.0, 400.0))
    more = measured.among(1000)
    assert more.hit_rate == pytest.approx(6 / 9, rel=0.01)


def test_in_real_time_no_more_requests_are_taken_to_find_nothing_than_did() -> None:
    usage = Usage(input_tokens=200_000, cached_tokens=99_000)
    all_but_one = CachedRun.of(CacheTotals(answers=100, hits=99, won=1.0), usage, 100, Way.NOW)
    fewer = CachedRun.of(CacheTotals(answers=100, hits=60, won=1.0), usage, 100, Way.NOW)
    assert (all_but_one.among(10).hit_rate, all_but_one.hit_rate) == (0.9, 1.0)
    assert fewer.among(10).hit_rate == pytest.approx(0.6 * 60 / 96)


def test_earlier_runs_count_as_a_thousand_requests_at_the_most() -> None:
    earlier = CachedRun(hit_rate=0.6, cached_tokens=600.0, written_tokens=400.0, won=5.0, requests=7000)
    both = replace(earlier, hit_rate=0.3, won=-1.0, requests=100).after(earlier)
    assert both.hit_rate == pytest.approx((100 * 0.3 + 1000 * 0.6) / 1100)
    assert (both.won, both.requests) == (-1.0, 1100)


def test_small_runs_decide_together_whether_caching_has_lost_money() -> None:
    small = CachedRun(hit_rate=0.3, cached_tokens=300.0, written_tokens=700.0, won=-1.0, requests=24)
    both = small.after(replace(small, won=0.25))
    assert (small.is_telling, small.is_decisive, both.is_decisive, both.won) == (True, False, False, -0.75)
    assert (both.after(small).is_decisive, both.after(small).won) == (True, -1.75)
    assert not replace(small, requests=8).is_telling
    assert replace(small, requests=0).is_decisive, "an earlier release kept none that were smaller"
