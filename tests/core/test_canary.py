"""A canary's tokens as an estimate, and the budgets that they are held against."""

import pytest

from airflow_batch_llm.core.canary import RouteSample, over_budget
from airflow_batch_llm.core.model import Usage, Way
from airflow_batch_llm.core.price import PriceList

#: One dollar for a million tokens of either kind in real time, and half of it in a batch.
PRICES = PriceList.of("openai", "any", {"any": {"input": 1.0, "output": 1.0}}, at=0.0)


def sample(**changes: object) -> RouteSample:
    """Ten requests in real time with a thousand tokens each, and ninety more in a batch."""
    given = {
        "name": "strong",
        "asked": 10,
        "usage": Usage(input_tokens=8_000, output_tokens=2_000),
        "cost": 0.01,
        "unpriced": 0,
        "prices": PRICES,
        "ways": (Way.NOW, Way.BATCH),
        "rest": 90,
        **changes,
    }
    return RouteSample(**given)  # type: ignore[arg-type]


def test_the_rest_costs_what_the_canary_did_at_the_price_of_its_own_way() -> None:
    asked, rest = sample().estimates()
    assert (asked["expected"], rest["expected"]) == pytest.approx((0.01, 0.045))
    assert (rest["requests"], rest["input_tokens"], rest["output_tokens"]) == (90, 72_000, 18_000)
    assert sample(ways=(Way.BATCH, Way.BATCH), cost=0.005).estimates()[1]["expected"] == pytest.approx(0.045)


def test_answers_whose_tokens_are_not_known_are_not_in_the_mean() -> None:
    _, rest = sample(unpriced=5).estimates()
    assert (rest["expected"], rest["output_tokens"]) == (pytest.approx(0.09), 36_000)
    assert sample(unpriced=10, usage=Usage(), cost=0.0).estimates()[1]["expected"] is None


@pytest.mark.parametrize(
    ("route_budget", "unmeasured", "budget", "said"),
    [
        (None, 0.0, None, ""),
        (0.06, 0.0, 0.06, ""),
        (0.05, 0.0, 1.0, "100 requests of the route strong are estimated at $0.0550"),
        (None, 0.0, 0.05, "above max_cost_usd=0.05"),
        (None, 0.5, 0.3, "estimated at $0.5550"),
    ],
)
def test_the_first_budget_that_is_too_small_is_named(
    route_budget: float | None, unmeasured: float, budget: float | None, said: str
) -> None:
    why = over_budget([sample(max_cost_usd=route_budget)], unmeasured, budget)
    assert said in why
    assert bool(why) == bool(said)


def test_the_items_of_packed_requests_are_told_as_items() -> None:
    packed = sample(is_packed=True)
    assert packed.estimates()[1]["assumptions"] == ["Tokens are the mean of 10 items of the canary."]
    assert "100 items are estimated at" in over_budget([packed], 0.0, 0.01)
