"""Half the price in real time: asked where the vendor has it, and billed as the answer says."""

from decimal import Decimal
from typing import Any

import pytest

from airflow_batch_llm.core.model import Outcome
from airflow_batch_llm.core.output_type import Embedding
from airflow_batch_llm.errors import InputError, Refused
from airflow_batch_llm.stage.plan.quoting import WORTH_A_BATCH
from tests.stage.world import Bench

#: Models with the half-price tier, and their full price in dollars per million tokens of question and answer.
MODELS = {
    "openai": ("gpt-5-mini", Decimal("0.25"), Decimal(2)),
    "vertex": ("gemini-3-flash-preview", Decimal("0.5"), Decimal(3)),
}


@pytest.fixture(params=list(MODELS))
def flexible(request: pytest.FixtureRequest) -> Bench:
    bench: Bench = request.getfixturevalue(request.param)
    return bench


def asked(bench: Bench, **changes: Any) -> dict[str, Any]:
    name = bench.world.provider_name
    return {"way": "flex", "model_id": f"{name}:{MODELS[name][0]}", **changes}


def dollars(bench: Bench, tokens: dict[str, int]) -> Decimal:
    """Return the full price of these tokens."""
    _, question, answer = MODELS[bench.world.provider_name]
    return (question * tokens["input"] + answer * tokens["output"]) / 10**6


def test_an_answer_costs_half_only_if_it_says_that_the_half_price_tier_gave_it(flexible: Bench) -> None:
    bench = flexible
    bench.world.make_tickets(40)
    bench.fault(kind="downgraded", nth=5, times=6)
    report = bench.complete(**asked(bench)).report
    assert (report.final, report.batches, report.maybe_twice) == ({Outcome.SUCCEEDED: 40}, 0, 0)
    flex, now = (bench.world.ledger()["ways"][way] for way in ("flex", "now"))
    assert (flex["rows"], now["rows"]) == (34, 6)
    half, full = dollars(bench, flex["tokens"]) / 2, dollars(bench, now["tokens"])
    assert report.spent.cost == pytest.approx(float(half + full))
    assert report.spent.list_cost == pytest.approx(float(2 * half + full))
    rows = bench.world.ask("SELECT _llm_input_tokens, _llm_output_tokens, _llm_cost_usd FROM labels")
    prices = [dollars(bench, {"input": given, "output": answered}) for given, answered, _ in rows]
    parts = [round(cost / float(price), 6) for price, (_, _, cost) in zip(prices, rows, strict=True)]
    assert sorted(parts) == [0.5] * 34 + [1.0] * 6


def test_a_lack_of_room_is_not_billed_and_the_row_is_asked_again(flexible: Bench) -> None:
    bench = flexible
    bench.world.make_tickets(30)
    bench.fault(kind="no_capacity", nth=3, times=4)
    endpoint = "/v1/responses" if bench.world.provider_name == "openai" else None
    report = bench.complete(**asked(bench, endpoint=endpoint)).report
    assert (report.final, report.maybe_twice) == ({Outcome.SUCCEEDED: 30}, 0)
    assert bench.world.ledger()["ways"]["flex"]["rows"] == bench.world.charged() == 30


def test_the_plan_is_priced_at_half_and_says_what_it_rests_on(openai: Bench) -> None:
    bench = openai
    bench.world.make_tickets(10)
    plans = [
        bench.complete(f"dag/task/{way}", **asked(bench, way=way, plan_only=True)) for way in ("flex", "now")
    ]
    half, full = (plan.report.estimate["usd"] for plan in plans)
    assert half is not None
    assert half == pytest.approx((full or 0.0) / 2, rel=1e-3)
    assert any("usual tier costs the full price" in line for line in bench.said)


def test_auto_asks_few_requests_by_flex_and_many_in_a_batch_and_the_log_says_which(openai: Bench) -> None:
    bench = openai
    bench.world.make_tickets(220, distinct=WORTH_A_BATCH - 1)  # rows that share a request count once
    few = bench.complete(**asked(bench, way="auto")).report
    assert (few.final, few.batches) == ({Outcome.SUCCEEDED: 220}, 0)
    assert any("way='auto': 99 requests, by flex" in line for line in bench.said)
    bench.world.make_tickets(WORTH_A_BATCH)
    many = bench.complete("dag/task/many", **asked(bench, way="auto", only="all")).report
    assert (many.final, many.batches) == ({Outcome.SUCCEEDED: WORTH_A_BATCH}, 1)
    assert any("way='auto': 100 requests, by batch" in line for line in bench.said)
    ways = bench.world.ledger()["ways"]
    assert {name: part["rows"] for name, part in ways.items()} == {"batch": 100, "flex": 99, "now": 0}


def test_auto_makes_a_batch_where_the_vendor_has_no_half_price_in_real_time(anthropic: Bench) -> None:
    anthropic.world.make_tickets(3)
    report = anthropic.complete(way="auto").report
    assert (report.final, report.batches) == ({Outcome.SUCCEEDED: 3}, 1)
    assert any("by batch, since flex is not possible. Anthropic" in line for line in anthropic.said)


def test_a_run_that_goes_on_keeps_the_way_that_auto_chose(openai: Bench) -> None:
    bench = openai
    bench.world.make_tickets(30)
    bench.fault(kind="status", endpoint="chat", status=403, nth=10, times=None)
    with pytest.raises(Refused):
        bench.complete(**asked(bench, way="auto"))
    bench.world.simulator.clear_faults()
    report = bench.complete(**asked(bench, way="auto")).report
    assert (report.final, bench.world.ledger()["ways"]["flex"]["rows"]) == ({Outcome.SUCCEEDED: 30}, 30)
    assert not any("way" in line and "differ" in line for line in bench.said)


@pytest.mark.parametrize(
    ("provider", "changes", "why"),
    [
        ("anthropic", {}, "Anthropic sells half price in batches only"),
        ("openai", {"model_id": "openai:gpt-4o"}, "no flex tier of the model 'gpt-4o'"),
        (
            "openai",
            {"endpoint": "/v1/embeddings", "output_type": Embedding()},
            "no flex tier for /v1/embeddings",
        ),
        ("openai", {"extra_body": {"service_tier": "default"}}, "'service_tier' together with way='flex'"),
        ("vertex", {"model_id": "vertex:gemini-2.5-flash"}, "no Flex PayGo of the model 'gemini-2.5-flash'"),
    ],
)
def test_what_has_no_half_price_in_real_time_is_refused_before_anything_is_sent(
    provider: str, changes: dict[str, Any], why: str, request: pytest.FixtureRequest
) -> None:
    bench: Bench = request.getfixturevalue(provider)
    bench.world.make_tickets(3)
    with pytest.raises(InputError, match=why):
        bench.complete(way="flex", **changes)
    assert bench.world.charged() == 0
