"""A run's tokens make the next estimate for the same question."""

import pytest

from airflow_batch_llm.core.settings import Escalation, Route
from tests.benchmarks.cascade import Label
from tests.stage.world import Bench
from tests.vendors import MODELS, OTHER_MODELS


def have_tickets(bench: Bench, first: int, rows: int, words: int) -> None:
    """Put tickets with new keys and texts of this length into the source."""
    bench.world.ask(
        "CREATE OR REPLACE TABLE tickets AS SELECT i AS id, 'subject ' || i AS subject,"
        f" repeat('word ', {words}) || i AS body FROM range({first}, {first + rows}) t(i)"
    )


@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_the_second_night_is_estimated_by_the_first(name: str, request: pytest.FixtureRequest) -> None:
    bench: Bench = request.getfixturevalue(name)
    bench.world.simulator.turn(reasoning_tokens=200)
    have_tickets(bench, 0, 40, words=50)
    first = bench.complete("first").report
    assert first.estimate_off["source"] in ("counted", "bytes")
    assert first.estimate_off["output_tokens"] < -0.5
    have_tickets(bench, 100, 40, words=70)
    second = bench.complete("second").report
    assert second.estimate_off["source"] == "earlier_run"
    for unit in ("input_tokens", "output_tokens", "usd"):
        assert abs(second.estimate_off[unit]) < 0.1, second.estimate_off
    assert any("mean of 40 requests of earlier runs" in said for said in bench.said)


def test_another_question_and_a_small_run_alone_teach_nothing(openai: Bench) -> None:
    have_tickets(openai, 0, 19, words=5)
    openai.complete("small")
    have_tickets(openai, 100, 1, words=5)
    assert openai.complete("single").report.estimate_off["source"] != "earlier_run"
    have_tickets(openai, 200, 5, words=5)
    other = openai.complete("other", system_prompt="Another.").report
    assert other.estimate_off["source"] != "earlier_run"
    have_tickets(openai, 300, 5, words=5)
    assert openai.complete("same", target="elsewhere").report.estimate_off["source"] == "earlier_run"


def test_packed_rows_and_their_later_rounds_are_estimated_by_the_first_night(openai: Bench) -> None:
    # The last digits decide which rows go on, so that it is the same share on both nights.
    openai.world.simulator.turn(wrong_share={MODELS["openai"]: 0.1}, truth_find="[0-9]{3}\n")
    given = {
        "output_type": Label,
        "routes": {"strong": Route(model_id=f"openai:{OTHER_MODELS['openai']}")},
        "escalate": [Escalation(to="strong", below={"confidence": 0.7})],
        "min_agreement": None,
    }
    have_tickets(openai, 100, 300, words=50)
    first = openai.complete("first", rows_per_request=10, **given).report
    assert (first.rounds, first.estimate_off["source"]) == (2, "counted")
    have_tickets(openai, 1100, 300, words=70)

    same = openai.complete("same", plan_only=True, rows_per_request=10, **given).report.estimate
    other = openai.complete("other", plan_only=True, rows_per_request=20, **given).report.estimate
    second = openai.complete("second", rows_per_request=10, **given).report

    assert second.rounds == 2
    for unit in ("input_tokens", "output_tokens", "usd"):
        assert abs(second.estimate_off[unit]) < 0.1, second.estimate_off
    assert same["usd"] == second.estimate["usd"]
    assert other["usd"] == pytest.approx(same["usd"], rel=0.1)
    assert any("asked again are taken to cost" in said for said in openai.said)
