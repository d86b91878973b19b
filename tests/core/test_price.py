"""Dollars for one request, and the places where the price list is silent."""

import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import genai_prices
import pytest
from genai_prices.data import providers
from hypothesis import given
from hypothesis import strategies as st

from airflow_batch_llm.core.model import Usage
from airflow_batch_llm.core.price import PriceList
from airflow_batch_llm.errors import InputError

NOW = datetime(2026, 11, 20, tzinfo=UTC)
BEFORE_BATCH_PRICES = datetime(2026, 10, 1, tzinfo=UTC)
MILLION = 1_000_000


def prices(provider: str, model: str, overrides: Any = None, at: datetime = NOW) -> PriceList:
    return PriceList.of(provider, model, overrides, at=at.timestamp())


def usage(given: int = 0, answered: int = 0, cached: int = 0, written: int = 0) -> Usage:
    return Usage(input_tokens=given, output_tokens=answered, cached_tokens=cached, cache_write_tokens=written)


def dollars(amount: str) -> Decimal:
    return Decimal(amount)


def test_a_batch_costs_half_and_the_list_price_stands_beside_it() -> None:
    priced = prices("anthropic", "claude-haiku-4-5").priced(usage(MILLION, MILLION))
    assert priced is not None
    assert priced[:2] == (dollars("3.0"), dollars("6"))


def test_the_input_tokens_are_the_total_and_cached_tokens_are_not_paid_twice() -> None:
    haiku = prices("anthropic", "claude-haiku-4-5")
    assert haiku.cost(usage(MILLION, cached=900_000)) == dollars("0.1") * dollars("0.5") + dollars("0.045")
    assert haiku.assumed is None


def test_a_cached_system_prompt_is_written_for_an_hour() -> None:
    haiku = prices("anthropic", "claude-haiku-4-5")
    assert haiku.cost(usage(MILLION, written=MILLION)) == dollars("1")
    assert haiku.list_cost(usage(MILLION, written=MILLION)) == dollars("2")


@pytest.mark.parametrize("model", ["gemini-3.5-flash", "gemini-3.7-flash"])
def test_a_model_without_a_batch_price_is_halved_and_that_is_said(model: str) -> None:
    flash = prices("vertex", model)
    listed = flash.list_cost(usage(MILLION, MILLION))
    assert listed is not None
    assert flash.cost(usage(MILLION, MILLION)) == listed / 2
    assert flash.assumed == f"No batch price of {model} is known: half of the list price is assumed."


@pytest.mark.parametrize("model", ["text-embedding-3-small", "text-embedding-3-large"])
def test_an_embedding_without_a_batch_price_is_halved_and_that_is_said(model: str) -> None:
    small = prices("openai", model)
    listed = small.list_cost(usage(MILLION))
    assert listed is not None
    assert small.cost(usage(MILLION)) == listed / 2
    assert small.assumed is not None


@pytest.mark.parametrize("model", ["claude-haiku-4-5", "claude-sonnet-4-6", "claude-sonnet-5"])
def test_claude_on_vertex_is_halved_although_the_list_gives_its_full_price(model: str) -> None:
    on_vertex = prices("vertex", model)
    listed = on_vertex.list_cost(usage(1000, 1000))
    assert listed is not None
    assert on_vertex.cost(usage(1000, 1000)) == listed / 2


def test_a_request_before_the_batch_price_began_is_halved_and_that_is_said() -> None:
    early = prices("anthropic", "claude-haiku-4-5", at=BEFORE_BATCH_PRICES)
    assert early.cost(usage(MILLION, MILLION)) == dollars("3")
    assert early.assumed is not None
    silent = genai_prices.calc_price(
        genai_prices.Usage(input_tokens=MILLION, output_tokens=MILLION),
        "claude-haiku-4-5",
        provider_id="anthropic",
        genai_request_timestamp=BEFORE_BATCH_PRICES,
        price_context={"processing": "batch"},
    )
    assert silent.total_price == 6, "the list no longer falls back to the full price: this care can go"


def test_cached_tokens_without_a_batch_price_are_halved_and_that_is_said() -> None:
    mini = prices("openai", "gpt-4.1-mini")
    assert mini.cost(usage(MILLION, cached=MILLION)) == dollars("0.05")
    assert mini.assumed == (
        "No batch price of gpt-4.1-mini is known for cache read tokens: half of the list price is assumed."
    )


@pytest.mark.parametrize("model", ["gemini-2.5-flash", "gemini-3.8-flash", "gemini-3.7-flash"])
def test_the_cache_discount_of_gemini_takes_precedence_over_the_batch_discount(model: str) -> None:
    flash = prices("vertex", model)
    fresh, cached = flash.list_cost(usage(MILLION)), flash.cost(usage(MILLION, cached=MILLION))
    assert fresh is not None
    assert cached == fresh / 10


@pytest.mark.parametrize(
    ("provider", "model", "start"),
    [
        ("anthropic", "claude-haiku-5-5", 100_000),
        ("openai", "gpt-6-luna", 272_000),
        ("vertex", "gemini-2.5-pro", 200_000),
    ],
)
def test_a_long_request_pays_its_tier_for_all_of_its_tokens_and_a_sum_of_short_ones_does_not(
    provider: str, model: str, start: int
) -> None:
    tiered = prices(provider, model)
    assert tiered.tiers == (start,)
    at_the_edge, beyond = tiered.cost(usage(start)), tiered.cost(usage(start + 1))
    assert at_the_edge is not None
    assert beyond is not None
    assert beyond > at_the_edge * dollars("1.9")
    short = tiered.cost(usage(start // 2, 10))
    summed = tiered.cost(usage(start // 2 * 4, 40))
    assert short is not None
    assert summed is not None
    assert short * 4 < summed


def test_a_price_that_changes_on_a_day_is_that_of_the_day() -> None:
    november = prices("vertex", "gemini-4-argon").cost(usage(MILLION))
    december = prices("vertex", "gemini-4-argon", at=datetime(2026, 12, 1, tzinfo=UTC)).cost(usage(MILLION))
    assert (november, december) == (dollars("1"), dollars("2"))


@pytest.mark.parametrize(
    ("provider", "model"),
    [("openai", "gpt-99-unheard-of"), ("nobody", "gpt-4.1"), ("anthropic", "gpt-4.1-nano")],
)
def test_an_unknown_model_has_no_price_rather_than_a_wrong_one(provider: str, model: str) -> None:
    unknown = prices(provider, model)
    assert not unknown.known
    assert unknown.cost(usage(1)) is unknown.list_cost(usage(1)) is unknown.priced(usage(1)) is None


def test_a_dated_model_and_a_vertex_resource_name_are_recognised() -> None:
    assert prices("openai", "gpt-4.1-nano-2025-04-14").known
    assert prices("vertex", "publishers/google/models/gemini-2.5-flash").known
    assert prices("anthropic", "claude-haiku-4-5-20251001").known


@pytest.mark.parametrize("name", ["my-model", "openai:my-model"])
def test_an_override_is_in_dollars_per_million_tokens(name: str) -> None:
    mine = prices("openai", "my-model", {name: {"input": 2, "output": "8.50", "cached": 0.2}})
    assert mine.priced(usage(MILLION, MILLION, cached=500_000))[:2] == (dollars("4.8"), dollars("9.6"))
    assert mine.assumed is None


def test_an_override_may_state_its_own_batch_discount() -> None:
    mine = prices("openai", "m", {"m": {"input": 1, "output": 1, "batch_discount": 0}})
    assert mine.priced(usage(MILLION, MILLION))[:2] == (2, 2)
    mine = prices("openai", "m", {"m": {"input": 1, "output": 1, "batch_discount": 0.75}})
    assert mine.priced(usage(MILLION, MILLION))[:2] == (dollars("0.5"), 2)


def test_an_override_of_gemini_keeps_its_cache_price_in_a_batch() -> None:
    mine = prices(
        "vertex", "gemini-2.5-flash", {"gemini-2.5-flash": {"input": 1, "output": 1, "cached": 0.1}}
    )
    assert mine.priced(usage(MILLION, cached=MILLION))[:2] == (dollars("0.1"), dollars("0.1"))


@pytest.mark.parametrize(
    "override",
    [
        {"input": -1},
        {"input": "cheap"},
        {"input": float("nan")},
        {"output": 1},
        {"input": 1, "in_put": 2},
        {"input": 1, "batch_discount": 50},
    ],
)
def test_an_override_that_makes_no_sense_is_refused(override: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"(price|batch_discount) of m"):
        prices("openai", "m", {"m": override})


def test_a_price_of_nothing_is_nothing() -> None:
    assert prices("anthropic", "claude-haiku-4-5").cost(Usage()) == 0


def _priced_in_batches() -> list[tuple[str, str]]:
    """Models whose every kind of token has a batch price in the list."""
    kinds = {"input_mtok", "output_mtok", "cache_read_mtok"}
    return sorted(
        {
            (provider.id, model.id)
            for provider in providers
            if provider.id in ("anthropic", "openai")
            for model in provider.models
            for variant in model.price_variants or ()
            if variant.when == {"processing": "batch"} and kinds <= vars(variant.prices).keys()
        }
    )


@given(
    which=st.sampled_from(_priced_in_batches()),
    given=st.integers(0, 400_000),
    answered=st.integers(0, 50_000),
    share=st.floats(0, 1),
)
def test_where_the_list_is_whole_our_prices_are_its_own(
    which: tuple[str, str], given: int, answered: int, share: float
) -> None:
    provider, model = which
    cached = int(given * share)
    theirs = genai_prices.Usage(input_tokens=given, output_tokens=answered, cache_read_tokens=cached)
    ours = prices(provider, model).priced(usage(given, answered, cached))
    assert ours is not None
    for context, cost in (({"processing": "batch"}, ours.cost), (None, ours.realtime)):
        expected = genai_prices.calc_price(
            theirs, model, provider_id=provider, genai_request_timestamp=NOW, price_context=context
        )
        assert cost == expected.total_price


def test_importing_prices_does_not_import_the_list() -> None:
    code = "import sys, airflow_batch_llm.core.price; sys.exit('genai_prices' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
