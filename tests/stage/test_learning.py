"""A run's tokens make the next estimate for the same question."""

import pytest

from tests.stage.world import Bench


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
    assert any("mean of 40 requests of an earlier run" in said for said in bench.said)


def test_another_question_and_a_small_run_teach_nothing(openai: Bench) -> None:
    have_tickets(openai, 0, 19, words=5)
    openai.complete("small")
    have_tickets(openai, 100, 20, words=5)
    assert openai.complete("large").report.estimate_off["source"] != "earlier_run"
    have_tickets(openai, 200, 5, words=5)
    other = openai.complete("other", system_prompt="Another.").report
    assert other.estimate_off["source"] != "earlier_run"
    have_tickets(openai, 300, 5, words=5)
    assert openai.complete("same", target="elsewhere").report.estimate_off["source"] == "earlier_run"
